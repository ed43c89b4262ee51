#!/usr/bin/env bash
# Runs every test, having installed what the tests need. Ends with the sums; fails
# too if a test was skipped that this machine can run.
#
# First all that need nothing but this machine, with the race detector. Then those
# with a kernel of their own in an emulated machine (internal/testenv/kernelvm), which
# are called TestKernel...: by themselves, because everything takes long there, and
# without the race detector, because the same code has run under it before.
#
# The time limits are for hangs: the longest package took eleven minutes where two
# cores were busy with more than this.
set -euo pipefail
cd "$(dirname "$0")/.."

# The race detector needs a C compiler; the tests mount (FUSE, tmpfs, ext4) and
# limit (prlimit), and do what people do with rsync, databases, git and ssh.
scripts/need.sh gcc:gcc /usr/include/stdlib.h:libc6-dev fusermount3:fuse3 mkfs.ext4:e2fsprogs mount:mount prlimit:util-linux diff:diffutils \
	rsync:rsync setfacl:acl sqlite3:sqlite3 python3:python3 git:git ssh:openssh-client
# The packages of sshd and PostgreSQL start a server, which nobody here wants.
if [[ ! -x /usr/sbin/sshd ]]; then
	scripts/need.sh /usr/sbin/sshd:openssh-server
	if [[ -d /run/systemd/system ]]; then
		systemctl disable --now ssh.socket ssh.service || true # not every release has both
	elif service ssh status >/dev/null 2>&1; then
		service ssh stop || true
	fi
fi
if ! command -v pg_ctlcluster >/dev/null; then
	scripts/need.sh pg_ctlcluster:postgresql
	pg_lsclusters -h | while read -r version name _; do
		pg_ctlcluster "$version" "$name" stop || true # it may not run: there need be no init here
	done
fi
if [[ ! -e /dev/fuse ]] && ((EUID == 0)); then
	modprobe fuse 2>/dev/null || echo "no /dev/fuse here: tests of the kernel mount will be skipped"
fi
if [[ $(dpkg --print-architecture 2>/dev/null) = amd64 ]]; then
	scripts/kernelvm/build.sh >/dev/null
fi
mapfile -t kernel < <(grep -rl --include='*_test.go' '^func TestKernel' . | xargs -n 1 dirname | sort -u)
{
	status=0
	CGO_ENABLED=1 go test -race -timeout 2h -json -skip '^TestKernel' "$@" ./... || status=$?
	go test -timeout 2h -json "$@" -p 1 -run '^TestKernel' "${kernel[@]}" || status=$?
	exit $status
} | go run ./scripts/testreport
