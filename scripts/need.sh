#!/usr/bin/env bash
# usage: scripts/need.sh COMMAND-OR-FILE:PACKAGE...
# Installs the Debian packages of those that this machine lacks, and says so.
set -euo pipefail

packages=()
for pair in "$@"; do
	what=${pair%%:*}
	[[ -e $what ]] || PATH=$PATH:/usr/sbin:/sbin command -v "$what" >/dev/null || packages+=("${pair##*:}")
done
if ((${#packages[@]} == 0)); then
	exit 0
fi
root=()
if ((EUID != 0)); then
	root=(sudo)
fi
if ! command -v apt-get >/dev/null || ! command -v "${root[@]:-true}" >/dev/null; then
	echo "need.sh: missing: ${packages[*]}; install them (this is no Debian, or there is no root here)" >&2
	exit 1
fi
echo "installing ${packages[*]} (Debian packages)"
export DEBIAN_FRONTEND=noninteractive
apt=("${root[@]}" apt-get -qq -o Acquire::Retries=5 -o DPkg::Lock::Timeout=300) # the network fails at times, and others install, too
"${apt[@]}" update >/dev/null
"${apt[@]}" install -y --no-install-recommends "${packages[@]}" </dev/null >/dev/null
