#!/busybox sh
# shellcheck shell=sh
# The test machine's first process: drivers, file systems, the network, then the
# agent that runs what the test asks for. It reaps what the agent's jobs leave.
export PATH=/usr/sbin:/usr/bin HOME=/root TERM=dumb
b=/busybox

stop() {
	echo "init: $*"
	$b poweroff -f
}

$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs dev /dev || stop "no /dev"
$b mount -t tmpfs tmpfs /run
$b mount -t tmpfs tmpfs /tmp
for driver in /lib.init/*; do
	$b insmod "$driver" || stop "cannot load $driver"
done
# The disk is found when its driver has looked at the bus, which insmod waits for.
$b mount -t ext4 -o ro,noload /dev/vda /usr || stop "no /usr"
mkdir -p /dev/shm
mount -t tmpfs tmpfs /dev/shm
ln -s /proc/self/fd /dev/fd
hostname kernelvm
ip link set lo up
# QEMU's user network: this machine is 10.0.2.15, the host's loopback 10.0.2.2.
# There is no route to anywhere else.
ip addr add 10.0.2.15/24 dev eth0
ip link set eth0 up

/agent
stop "the agent ended"
