#!/usr/bin/env bash
# usage: scripts/bench_fs.sh [-s SRC] [-d DIR] [-l DURATION] [-o PATTERN] [-b PACKAGE] [TARGET...]
# Compares a mounted tree with the file system below it (ext4) and gocryptfs, in
# one run: seconds or rates, then the ratio to the first target. SRC is a source tree
# (default: Go's cmd directory); everything happens under DIR (default: a new one in /tmp).
# A rate is measured for DURATION (default 3s). PATTERN chooses tests by name (regular expression).
# Builds are of this project's PACKAGE (default: ./cmd/spacectl), whose sources, Go build cache and temporary
# files are all in the target: all of it, and again after a change of one package that many need.
# TARGETs: host space gocryptfs. Needs root; gocryptfs is left out where it is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
src=$(go env GOROOT)/src/cmd/compile base='' length=3s only=. package=./cmd/spacectl
while getopts s:d:l:o:b: o; do
	case $o in s) src=$OPTARG ;; d) base=$OPTARG ;; l) length=$OPTARG ;; o) only=$OPTARG ;; b) package=$OPTARG ;; *) exit 2 ;; esac
done
shift $((OPTIND - 1))
targets=("$@")
[ $# -gt 0 ] || targets=(host space gocryptfs)
base=${base:-$(mktemp -d /tmp/space-bench-fs.XXXX)}
work=$(mktemp -d "$base/run.XXXX")
cleanup() {
	cd /
	"$work/spacectl" --home "$work/home" project unmount --lazy "$work/space" 2>/dev/null || true
	fusermount3 -uz "$work/gocryptfs" 2>/dev/null || true
	sleep 1
	rm -rf "$work"
}
trap cleanup EXIT
CGO_ENABLED=0 go build -trimpath -o "$work/spacectl" ./cmd/spacectl
CGO_ENABLED=0 go build -trimpath -o "$work/fsops" ./scripts/fsops
tar -cf "$work/src.tar" -C "$src" .
git ls-files -z | tar -cf "$work/project.tar" --null -T -

mkdir "$work/host" "$work/space" "$work/gocryptfs" "$work/cipher"
for t in "${targets[@]}"; do
	case $t in
	space)
		id=$("$work/spacectl" --home "$work/home" tree create bench)
		"$work/spacectl" --home "$work/home" project mount "$id" --target "$work/space"
		;;
	gocryptfs)
		if ! command -v gocryptfs >/dev/null; then
			echo "gocryptfs is not installed; left out" >&2
			targets=("${targets[@]/gocryptfs/}")
			continue
		fi
		gocryptfs -q -init -scryptn 10 -extpass "echo x" "$work/cipher" >/dev/null
		gocryptfs -q -nosyslog -extpass "echo x" "$work/cipher" "$work/gocryptfs"
		;;
	esac
done

seconds() { # how long a command takes, and the file system's sync after it
	local t0=$EPOCHREALTIME
	"$@" >/dev/null
	echo "$EPOCHREALTIME $t0" | awk '{printf "%.3f", $1 - $2}'
}
drop() { echo 1 >/proc/sys/vm/drop_caches; }
build() {
	(cd "$1/project" && GOCACHE=$1/cache GOTMPDIR=$1 GOFLAGS="-buildvcs=false ${GOFLAGS:-}" go build -o "$1/built" "$package")
}
untar() { mkdir "$1/src" && tar -xf "$work/src.tar" -C "$1/src"; }

run() { # one test in one target
	local dir=$work/$2
	case $1 in
	"seq write+fsync MB/s" | "rand write 4K /s" | "rand write 4K+fsync /s" | "seq read cold MB/s" | "seq read warm MB/s" | "rand read 4K /s" | "create+fsync 1 /s" | "create+fsync 16 /s")
		case $1 in *cold* | *"rand read"*) drop ;; esac
		"$work/fsops" -for "$length" "$1" "$dir"
		;;
	"untar s") seconds untar "$dir" ;;
	"stat all cold s") drop && seconds find "$dir/src" -printf %s ;;
	"stat all warm s") find "$dir/src" -printf %s >/dev/null && seconds find "$dir/src" -printf %s ;;
	"read all cold s") drop && seconds sh -c "tar -cf - -C '$dir' src | cat" ;;
	"build all s")
		mkdir "$dir/project" && tar -xf "$work/project.tar" -C "$dir/project"
		seconds build "$dir"
		;;
	"build again s")
		echo "// changed" >>"$dir/project/capsule/errors.go"
		seconds build "$dir"
		;;
	"rm -r s") seconds rm -r "$dir/src" ;;
	esac
}

printf '%-24s' "" "${targets[@]}"
echo
for test in "seq write+fsync MB/s" "seq read cold MB/s" "seq read warm MB/s" "rand read 4K /s" "rand write 4K /s" "rand write 4K+fsync /s" \
	"create+fsync 1 /s" "create+fsync 16 /s" "untar s" "stat all cold s" "stat all warm s" "read all cold s" "rm -r s" "build all s" "build again s"; do
	[[ $test =~ $only ]] || continue
	printf '%-24s' "$test"
	first=
	for t in "${targets[@]}"; do
		[ -n "$t" ] || continue
		v=$(run "$test" "$t")
		first=${first:-$v}
		printf '%-24s' "$v ($(echo "$v $first" | awk '{printf "%.2f", $1 / ($2 == 0 ? 1 : $2)}'))"
	done
	echo
done
