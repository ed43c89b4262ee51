#!/usr/bin/env bash
# Shows SPACE at work on real input, in a store of its own that is gone afterwards.
# Every step is checked: the demo ends with exit code 0 only if all of them held.
set -euo pipefail
cd "$(dirname "$0")/.."

spacectl=$PWD/bin/spacectl
[[ -x $spacectl ]] || { echo "demo: bin/spacectl is missing; run it through make demo" >&2 && exit 1; }

tmp=$(mktemp -d "${TMPDIR:-/tmp}/space-demo.XXXXXX")
export SPACE_HOME=$tmp/home
unset SPACE_MASTER_KEY SPACE_MASTER_KEY_FILE SPACE_PASSPHRASE SPACE_PASSPHRASE_FILE
cleanup() {
	for d in "$tmp/d" "$tmp/ns" "$tmp/work" "$tmp/vol"; do
		# What is still projected after a step that failed.
		if [[ -d $d ]]; then "$spacectl" project unmount --lazy "$d" >/dev/null 2>&1 || true; fi
	done
	kill_node # where a step has failed it may still serve a disk
	if ((${#jobs[@]})); then
		kill "${jobs[@]}" 2>/dev/null || true
		wait "${jobs[@]}" 2>/dev/null || true
	fi
	rm -rf --one-file-system "$tmp"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

jobs=() # what runs beside the demo
job() { # NAME WHERE ARGS...: runs a spacectl command beside the demo, in the store directory WHERE, until it has printed or logged a line
	local name=$1 where=$2 tries=0
	shift 2
	printf '   $ SPACE_HOME=%s spacectl' "$where"
	printf ' %s' "${@//$tmp\//}"
	printf ' &\n'
	SPACE_HOME=$tmp/$where "$spacectl" "$@" >"$tmp/$name.out" 2>&1 &
	jobs+=($!)
	until [[ $(wc -l <"$tmp/$name.out") -gt 0 ]]; do
		((++tries < 600)) || die "$name says nothing"
		sleep 0.1
	done
	head -n 1 "$tmp/$name.out" | cut -c -160 | sed 's/^/     /'
}

step=0
say() { printf '\n%d. %s\n' $((++step)) "$*"; }
run() { # shows a spacectl command and runs it
	printf '   $ spacectl'
	printf ' %s' "${@//$tmp\//}"
	echo
	(cd "$tmp" && "$spacectl" "$@") 2>&1 | sed 's/^/     /'
}
ok() { printf '   ✓ %s\n' "$*"; }
die() { echo "demo: $*" >&2 && exit 1; }
kill_node() { # kill -9 of the node that serves our mounts, and of nothing else
	local p
	for p in /proc/[0-9]*; do
		if tr '\0' ' ' <"$p/cmdline" | grep -qF -- "serve --ephemeral --home $SPACE_HOME "; then kill -9 "${p#/proc/}"; fi
	done 2>/dev/null # processes that have ended meanwhile
}
id_of() { "$spacectl" stat "$1" -o json | sed -n 's/^ *"id": *"\([^"]*\)".*/\1/p' | head -n 1; }

src=$(go env GOROOT)/src
mkdir "$tmp/d" "$tmp/ns"

say "Real input: the Go source tree as one tar, and a part of it as a directory."
tar -C "$(dirname "$src")" -cf "$tmp/go.tar" src
tar -C "$src" -cf - net crypto go | (mkdir "$tmp/go" && tar -C "$tmp/go" -xf -)
ok "go.tar: $(du -m "$tmp/go.tar" | cut -f1) MB; go/: $(find "$tmp/go" -type f | wc -l) files"

say "Put the tar: nothing was set up, no server runs; the key is made at first use."
run put "$tmp/go.tar" --name go.tar
id=$(id_of go.tar)
if grep -rqF 'package runtime' "$SPACE_HOME"; then die "source code lies in the clear under SPACE_HOME"; fi
ok "durable, compressed and encrypted: \"package runtime\" is nowhere on the disk"

say "Mount it and compare, as a file that any program can read."
run project mount --id "$id" --target "$tmp/d"
run project list
if [[ $(stat -f -c %T "$tmp/d") == fuse* ]]; then
	view="through FUSE"
else
	view="through the portable fallback: there is no FUSE here, so the content was written to the target"
fi
cmp "$tmp/go.tar" "$tmp/d/content"
ok "cmp go.tar d/content: equal, $view"
run project unmount "$tmp/d"

say "Put a directory, one capsule per file, and mount the whole namespace."
"$spacectl" put -r "$tmp/go" --name go >/dev/null
run project mount --all --target "$tmp/ns"
diff -r "$tmp/go" "$tmp/ns/go"
cmp "$tmp/go.tar" "$tmp/ns/go.tar"
ok "diff -r go ns/go: equal"
run project unmount "$tmp/ns"

say "Get a range: it decodes only what it needs."
run get go.tar --offset 100000000 --length 65536 --out "$tmp/range"
cmp <(tail -c +100000001 "$tmp/go.tar" | head -c 65536) "$tmp/range"
ok "64 KiB from offset 100,000,000: equal"

say "Deduplication: the tar again, with one block changed, costs that block alone."
cp "$tmp/go.tar" "$tmp/changed.tar"
head -c 65536 /dev/urandom | dd of="$tmp/changed.tar" bs=65536 seek=777 conv=notrunc status=none
run put "$tmp/changed.tar" --name changed.tar
run stat changed.tar
run df

say "Policies: what a capsule asks for, parsed strictly, stored with it."
printf 'compression: zstd:9\nviews: [fuse]\n' >"$tmp/policy.yaml"
run policy set changed.tar "$tmp/policy.yaml"
run policy show changed.tar
printf 'compresion: zstd\n' >"$tmp/wrong.yaml"
if run policy validate "$tmp/wrong.yaml"; then die "a policy with a typing error was accepted"; fi
ok "a typing error is found, and told where"

if [[ $view == "through FUSE" ]]; then
	say "A tree: a directory to work in. Copy Go's sources into it, build in it, and look again after kill -9."
	run tree create work
	mkdir "$tmp/work"
	run project mount work --target "$tmp/work"
	cp -a "$tmp/go" "$tmp/work/go"
	printf 'package main\n\nfunc main() { println("     built in a tree") }\n' >"$tmp/work/hello.go"
	(cd "$tmp/work" && go run hello.go)
	sync -f "$tmp/work"
	run snapshot create work before
	rm -r "$tmp/work/go/net"
	kill_node
	umount -l "$tmp/work" 2>/dev/null || fusermount3 -uz "$tmp/work"
	run project mount work --target "$tmp/work"
	run project unmount "$tmp/work"
	run tree export work --snapshot before "$tmp/before"
	diff -r "$tmp/go" "$tmp/before/go"
	run fsck
	ok "the snapshot holds the tree as it was when it was taken, and fsck finds nothing"

	say "A volume: a disk image in, a snapshot, a change, and back."
	truncate -s 64M "$tmp/disk"
	head -c 3000000 "$tmp/go.tar" | dd of="$tmp/disk" bs=64K seek=100 conv=notrunc status=none
	run volume import "$tmp/disk" --name disk
	run snapshot create disk clean
	mkdir "$tmp/vol"
	run project mount disk --target "$tmp/vol"
	head -c 1000000 /dev/urandom | dd of="$tmp/vol/content" bs=64K seek=10 conv=notrunc,fsync status=none
	run project unmount "$tmp/vol"
	run snapshot diff disk clean
	run snapshot rollback disk clean
	run volume export disk "$tmp/disk.out"
	cmp "$tmp/disk" "$tmp/disk.out"
	ok "rolled back, the volume is the image that was imported"
else
	say "Trees and volumes are shown through FUSE, which is not here."
fi

say "A disk over the network: NVMe/TCP, written by a host, kill -9 of its node, read again."
run volume create net --size 64MiB
connect=$("$spacectl" project --view nvme --name net --listen 127.0.0.1:0)
printf '   $ spacectl project --view nvme --name net --listen 127.0.0.1:0\n     %s\n' "$connect"
addr=$(sed -E 's/.* -a ([^ ]+) -s ([0-9]+) .*/\1:\2/' <<<"$connect")
nqn=${connect##* }
head -c $((16 << 20)) "$tmp/go.tar" >"$tmp/net.img"
run nvme discover "$addr"
run nvme write "$addr" "$tmp/net.img" --overwrite
kill_node
run project --view nvme --name net # the next node serves it already, under the same names
run nvme read "$addr" --length 16MiB --out "$tmp/net.out"
cmp "$tmp/net.img" "$tmp/net.out"
run nvme bench "$addr" --time 1s
run project list
run project unmount --lazy "$nqn#1"
ok "what was written before kill -9 is there; a Linux host does the same with the line above"

say "Rotate the keys, remove a capsule, collect garbage."
run key rotate
run rm changed.tar
run gc
"$spacectl" get go.tar | cmp - "$tmp/go.tar"
ok "go.tar is sealed again under the new key, and reads the same"

say "Trust: kill -9 in the middle of a put, then look."
mkfifo "$tmp/pipe"
"$spacectl" put - --name killed <"$tmp/pipe" >/dev/null 2>&1 &
pid=$!
exec 3>"$tmp/pipe"
cat "$tmp/changed.tar" >&3 # the put has taken all this, and waits for more
kill -9 $pid
wait $pid 2>/dev/null || true
exec 3>&-
if "$spacectl" stat killed >/dev/null 2>&1; then die "a put that was killed half way left a capsule"; fi
run verify
ok "nothing of it can be seen, and the rest is whole"

say "Damage: flip one byte on the disk, in a copy of the store."
cp -a "$SPACE_HOME" "$tmp/copy"
log=$(find "$tmp/copy/segments" -name '*.seg' -size +1M | sort | head -n 1)
middle=$(($(stat -c %s "$log") / 2))
printf '\xff\x00\xff' | dd of="$log" bs=1 seek=$middle conv=notrunc status=none
if run --home "$tmp/copy" verify; then die "verify has not found the damage"; fi
ok "verify names the capsule, the range and the place in the log; the rest of the store reads on"

say "The fabric: two nodes, here on one machine; the disk from before, reached through a tunnel."
run --home "$tmp/one" fabric init --name one
job one one fabric serve --listen tls://127.0.0.1:0
"$spacectl" --home "$tmp/one" fabric token | "$spacectl" --home "$tmp/two" fabric join - --name two | sed 's/^/     /'
job two two fabric serve --listen tls://127.0.0.1:0
connect=$("$spacectl" project --view nvme --name net --listen 127.0.0.1:0)
nqn=${connect##* }
job expose two fabric expose disk "$(sed -E 's/.* -a ([^ ]+) -s ([0-9]+) .*/\1:\2/' <<<"$connect")"
job forward one fabric forward 0 disk --wait 60s
run nvme read "$(head -n 1 "$tmp/forward.out")" --length 16MiB --out "$tmp/far.out"
cmp "$tmp/net.img" "$tmp/far.out"
run --home "$tmp/one" fabric tunnels
run project unmount --lazy "$nqn#1"
job send one fabric send "$tmp/go.tar"
run --home "$tmp/two" fabric receive go.tar --out "$tmp/received.tar" --wait 60s
cmp "$tmp/go.tar" "$tmp/received.tar"
ok "a tunnel asks for a pool, not for an address; all of it is TLS 1.3 with certificates of the fabric's own"

printf '\nAll of it held. Nothing is left behind: %s is removed.\n' "$tmp"
