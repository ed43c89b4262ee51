#!/usr/bin/env bash
# usage: scripts/kernelvm/build.sh [--fresh]
# Makes what internal/testenv/kernelvm boots, and prints the directory it is in:
#
#   vmlinuz   the kernel of Debian's linux-image-cloud-amd64
#   initrd    busybox, the drivers of the virtual machine, and init.sh
#   usr.img   the guest's /usr: the programs below with all their libraries, and
#             all modules of that kernel; an ext4 image, mounted read-only
#
# Nothing of it is installed here: the packages are downloaded with apt-get, with
# lists and a package database of its own, and unpacked. What is there is used
# again, after a look at its checksums, as long as this directory's scripts and the
# Debian release are the same; --fresh builds anew, with the newest packages.
# Several may run at once. It is cached in $XDG_CACHE_HOME, or scripts/cache.
set -euo pipefail
cd "$(dirname "$0")"

packages=(linux-image-cloud-amd64 busybox-static dash nvme-cli nfs-common fio xfsprogs e2fsprogs util-linux iproute2)
# What those draw in and no program of the guest needs.
useless='^(perl|libperl|python3|libpython3|dpkg_|debconf|adduser|passwd|linux-base|initramfs-tools|klibc|libklibc|dracut)'
# The drivers that the guest needs before it has its /usr.
drivers=(virtio_pci virtio_console virtio_blk virtio_net)

die() {
	echo "kernelvm: $*" >&2
	exit 1
}
[[ $(dpkg --print-architecture 2>/dev/null) = amd64 ]] || die "this is no Debian on amd64"
PATH=$PATH:/usr/sbin:/sbin

cache=${XDG_CACHE_HOME:-$PWD/../cache}/kernelvm
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
# shellcheck source=/dev/null
release=$(. /etc/os-release && echo "$ID $VERSION_ID")
key=$( (cat build.sh init.sh && echo "$release") | sha256sum | cut -c1-16)
out=$cache/$key

exec 9>"$cache/lock"
flock 9 # packages are installed by one at a time, too
../need.sh qemu-system-x86_64:qemu-system-x86 mke2fs:e2fsprogs cpio:cpio >&2
if [[ ${1:-} != --fresh && -e $out/SHA256SUMS ]] && (cd "$out" && sha256sum --quiet --strict -c SHA256SUMS >&2); then
	echo "$out"
	exit
fi

began=$SECONDS
echo "kernelvm: building the test machine from packages of $release" >&2
rm -rf "$cache"/build.* # of a run that was killed; we have the lock
work=$(mktemp -d "$cache/build.XXXXXX")
trap 'rm -rf "$work"' EXIT

# --- packages -------------------------------------------------------------------
# An empty database of installed packages makes apt fetch every library too.
mkdir -p "$work"/apt/{lists,cache}/partial "$work/apt/cache/archives/partial"
: >"$work/apt/status"
apt=(apt-get -qq -y
	-o "Dir::State=$work/apt" -o "Dir::State::lists=$work/apt/lists" -o "Dir::State::status=$work/apt/status"
	-o "Dir::Cache=$work/apt/cache" -o APT::Sandbox::User= -o Acquire::Retries=5 -o APT::Install-Recommends=false)
{
	"${apt[@]}" update
	"${apt[@]}" --download-only install "${packages[@]}"
} >"$work/apt/log" 2>&1 </dev/null || {
	cat "$work/apt/log" >&2
	die "cannot download the packages"
}
tree=$work/tree
mkdir "$tree"
for deb in "$work"/apt/cache/archives/*.deb; do
	name=${deb##*/}
	[[ $name =~ $useless ]] || printf '%s\0' "$deb"
done | xargs -0 -P 4 -I{} dpkg -x {} "$tree"

# --- /usr -----------------------------------------------------------------------
# Packages of before the merge still have /bin, /sbin and /lib of their own.
for dir in bin sbin lib lib64; do
	if [[ -d $tree/$dir ]]; then
		mkdir -p "$tree/usr/$dir"
		cp -a "$tree/$dir/." "$tree/usr/$dir/"
		rm -r "${tree:?}/$dir"
	fi
done
rm -rf "${tree:?}"/usr/{share,include,games,local,src}
kernels=("$tree"/boot/vmlinuz-*)
[[ ${#kernels[@]} = 1 ]] || die "packages hold ${#kernels[@]} kernels"
version=${kernels[0]##*/vmlinuz-}
modules=$tree/usr/lib/modules/$version
busybox=$tree/usr/bin/busybox
ln -sf dash "$tree/usr/bin/sh" # busybox's shell takes its own applets for real programs
ln -sf ../bin/busybox "$tree/usr/sbin/modprobe" # kmod's cannot read what busybox's depmod writes
for applet in $("$busybox" --list); do
	[[ -e $tree/usr/bin/$applet || -e $tree/usr/sbin/$applet ]] || ln -s busybox "$tree/usr/bin/$applet"
done
ln -s usr/lib "$tree/lib"
"$busybox" depmod -b "$tree" "$version"

# --- initrd ---------------------------------------------------------------------
root=$work/root
mkdir -p "$root"/{usr,proc,sys,dev,tmp,run,mnt,root,etc/nvme,var/lib/nfs,lib.init}
for dir in bin sbin lib lib64; do ln -s "usr/$dir" "$root/$dir"; done
install "$busybox" "$root/busybox"
install init.sh "$root/init"
declare -A loaded
for driver in "${drivers[@]}"; do
	# Modules that it needs, last one first; each is loaded from a file whose
	# name says the order.
	while read -r file; do
		[[ -z ${loaded[$file]:-} ]] || continue
		loaded[$file]=1
		cp "$modules/$file" "$root/lib.init/$(printf %02d ${#loaded[@]})-${file##*/}"
	done < <(awk -F: -v want="/$driver.ko" '
		substr($1, length($1) - length(want) + 1) == want { n = split($2, need, " "); while (n > 0) print need[n--]; print $1 }' \
		"$modules/modules.dep")
done
((${#loaded[@]} > 0)) || die "no drivers found in $modules/modules.dep"
# What the programs look up: libtirpc the netconfig, mount.nfs the protocols.
echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
echo 'root:x:0:' >"$root/etc/group"
echo '127.0.0.1 localhost' >"$root/etc/hosts"
printf '%s\n' 'tcp 6 TCP' 'udp 17 UDP' >"$root/etc/protocols"
cp "$tree/etc/netconfig" "$root/etc/"
ln -s /proc/self/mounts "$root/etc/mtab"
# The NVMe host's identity, the same at every boot, so that a target knows it again.
host=7a6e1f0c-5d0b-4c52-9f5e-2f8f6f3c1a01
echo "nqn.2014-08.org.nvmexpress:uuid:$host" >"$root/etc/nvme/hostnqn"
echo "$host" >"$root/etc/nvme/hostid"

# --- the three files ------------------------------------------------------------
mkdir "$work/out"
cp "${kernels[0]}" "$work/out/vmlinuz"
(cd "$root" && find . -mindepth 1 | LC_ALL=C sort | cpio -o -H newc -R 0:0 --quiet) >"$work/out/initrd"
size=$(du -sm "$tree/usr" | cut -f1)
mke2fs -q -t ext4 -O ^has_journal -m 0 -d "$tree/usr" "$work/out/usr.img" "$((size * 5 / 4 + 16))m" >/dev/null
(cd "$work/apt/cache/archives" && printf '%s\n' *.deb) >"$work/out/packages"
(cd "$work/out" && sha256sum vmlinuz initrd usr.img packages >SHA256SUMS)
rm -rf "$out"
mv "$work/out" "$out"
echo "kernelvm: Linux $version, built in $((SECONDS - began)) s" >&2
echo "$out"
