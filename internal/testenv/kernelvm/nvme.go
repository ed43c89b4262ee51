package kernelvm

// NVMe is a library of shell functions for NVMe/TCP, for a script to begin with.
const NVMe = `
# connect NQN PORT [OPTION...]: connects and prints the block device. It tries
# again for ever when the connection breaks.
connect() {
	nqn=$1 port=$2
	shift 2
	nvme connect -t tcp -a 10.0.2.2 -s $port -n $nqn --reconnect-delay=1 --ctrl-loss-tmo=-1 --keep-alive-tmo=120 "$@" >&2
	device $nqn
}

# device NQN: prints the block device of the namespace that has turned up, which
# it does some time after connecting.
device() {
	while :; do
		for b in /sys/block/nvme*n*; do
			[ -e $b/device/subsysnqn ] && [ "$(cat $b/hidden)" = 0 ] || continue
			if [ "$(cat $b/device/subsysnqn)" = $1 ] && [ -b /dev/${b##*/} ] && [ "$(cat $b/size)" != 0 ]; then
				echo /dev/${b##*/}
				return
			fi
		done
		sleep 0.1
	done
}

# controller NQN: prints a live controller's name.
controller() {
	for c in /sys/class/nvme/nvme*; do
		[ "$(cat $c/subsysnqn 2>/dev/null)" != $1 ] || echo ${c##*/}
	done
}

# live CONTROLLER: waits until it is connected.
live() {
	until [ "$(cat /sys/class/nvme/$1/state)" = live ]; do sleep 0.1; done
}

# verify DEVICE [OPTION...]: writes with fio, then reads it all and checks it.
verify() {
	dev=$1
	shift
	fio --name=verify --filename=$dev --rw=randwrite --direct=1 --ioengine=libaio --verify=crc32c --verify_fatal=1 \
		--verify_state_save=0 --randrepeat=0 --output-format=terse "$@" >/tmp/fio.out 2>&1 || { cat /tmp/fio.out >&2; return 1; }
}

# sums DIR: the checksums of everything in it.
sums() { (cd $1 && find . -type f | sort | xargs sha256sum); }
`
