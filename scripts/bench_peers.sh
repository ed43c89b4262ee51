#!/usr/bin/env bash
# Compares spacectl with restic and borg on the same corpora, in the same run, with
# encryption on and everything durable at the end, and prints a markdown page.
#
# Every round gives every tool every corpus in turn, each with a fresh repository, so
# that the machine's moods hit all alike; figures are medians over the rounds. Sources
# are in the page cache. "put" ends when the data is on the disk: the timed region has
# a sync of the repository's file system for each tool, also for spacectl, whose put
# is durable when it returns. "get" restores to a fresh directory on the same disk,
# without a sync. CPU seconds are user + system of all processes of a command.
set -euo pipefail

usage() {
	cat <<-'END'
		usage: scripts/bench_peers.sh [-n ROUNDS] [-m MIB] [-d DIR] [-t TOOLS] [-c CORPORA]
		  -n  rounds (3)
		  -m  size of the raw disk test and of RAND, and limit of BIN, in MiB (512)
		  -d  where corpora and repositories go; must be on the disk to measure (/var/tmp)
		  -t  tools, of: space restic borg borg-zstd (all)
		  -c  corpora, of: SRC TREE RAND BIN DUP (all)
	END
}

rounds=3 mib=512 base=/var/tmp tools="space restic borg borg-zstd" corpora="SRC TREE RAND BIN DUP"
while getopts n:m:d:t:c:h opt; do
	case $opt in
	n) rounds=$OPTARG ;;
	m) mib=$OPTARG ;;
	d) base=$OPTARG ;;
	t) tools=$OPTARG ;;
	c) corpora=$OPTARG ;;
	h) usage && exit ;;
	*) usage >&2 && exit 2 ;;
	esac
done

cd "$(dirname "$0")/.."
spacectl=$PWD/bin/spacectl
say() { printf '%s\n' "$*" >&2; }
die() { say "bench_peers: $*" && exit 1; }
has() { [[ " $1 " == *" $2 "* ]]; }

# --- what is needed -----------------------------------------------------------------

need=()
for pair in restic:restic borg:borgbackup /usr/bin/time:time; do
	command -v "${pair%:*}" >/dev/null || need+=("${pair#*:}")
done
if ((${#need[@]})); then
	say "installing ${need[*]}"
	root=() && ((EUID == 0)) || root=(sudo)
	"${root[@]}" apt-get update -qq >&2
	"${root[@]}" apt-get install -y -qq --no-install-recommends "${need[@]}" >&2
fi
if has "$tools" space; then
	go build -o bin/spacectl ./cmd/spacectl || die "spacectl does not build; measure the others with -t 'restic borg borg-zstd'"
fi

tmp=$(mktemp -d "$base/space-bench.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
results=$tmp/results # round corpus tool what value
: >"$results"

# --- corpora ------------------------------------------------------------------------

src=$(go env GOROOT)/src
data=$tmp/data
mkdir "$data"
ln -s "$src" "$data/TREE"

make_corpus() {
	case $1 in
	SRC) tar -C "${src%/*}" --sort=name -cf "$data/SRC" src ;;
	TREE) ;;
	RAND) head -c "${mib}M" /dev/urandom >"$data/RAND" ;;
	# head ends the pipe early, and some of /usr/lib may be unreadable.
	BIN) { tar -C / --sort=name -cf - usr/bin usr/lib 2>/dev/null || true; } | head -c "${mib}M" >"$data/BIN" ;;
	DUP) # one 64 KiB block in a hundred is new
		cp "$data/SRC" "$data/DUP"
		local blocks i
		blocks=$(($(stat -c %s "$data/DUP") / 65536))
		for ((i = 37; i < blocks; i += 100)); do
			dd if=/dev/urandom of="$data/DUP" bs=64K count=1 seek="$i" conv=notrunc status=none
		done
		;;
	*) die "unknown corpus $1" ;;
	esac
}

if has "$corpora" DUP; then make_corpus SRC; fi
for c in $corpora; do
	if [[ ! -e $data/$c || $c == TREE ]]; then
		say "making $c"
		make_corpus "$c"
	fi
done

corpus_bytes() { du -sDb --apparent-size "$data/$1" | cut -f1; }

warm() { # reads a corpus into the page cache
	if [[ $1 == TREE ]]; then tar -C "$src" -cf - . | cat >/dev/null; else cat "$data/$1" >/dev/null; fi
}

# --- measuring ----------------------------------------------------------------------

record() { printf '%s\t%s\t%s\t%s\t%s\n' "$round" "$@" >>"$results"; } # corpus tool what value

# untimed COMMAND… runs it and keeps its output for when it fails.
untimed() {
	"$@" >"$tmp/log" 2>&1 || {
		cat "$tmp/log" >&2
		die "failed: $*"
	}
}

# timed CORPUS TOOL OP COMMAND…: runs the command and records OP.wall, OP.cpu and OP.rss.
timed() {
	local corpus=$1 tool=$2 op=$3 start end
	shift 3
	sync -f "$tmp"
	start=$EPOCHREALTIME
	untimed /usr/bin/time -q -f '%U %S %M' -o "$tmp/time" "$@"
	end=$EPOCHREALTIME
	local user sys rss
	read -r user sys rss <"$tmp/time"
	record "$corpus" "$tool" "$op.wall" "$(awk "BEGIN { print ${end/,/.} - ${start/,/.} }")"
	record "$corpus" "$tool" "$op.cpu" "$(awk "BEGIN { print $user + $sys }")"
	record "$corpus" "$tool" "$op.rss" "$((rss * 1024))"
}

disk_bytes() { du -s --block-size=1 "$1" | cut -f1; }

# Each tool: init REPO; put REPO CORPUS PREFIX…; get REPO CORPUS DIR PREFIX…, where the
# prefix is a command to run it under. All of a tool's state is under REPO's parent.
export RESTIC_PASSWORD=bench BORG_PASSPHRASE=bench
unset SPACE_MASTER_KEY SPACE_MASTER_KEY_FILE SPACE_PASSPHRASE SPACE_PASSPHRASE_FILE

at() { export RESTIC_CACHE_DIR=$1/../restic-cache BORG_BASE_DIR=$1/../borg-base SPACE_HOME=$1; }

init() { # tool repo
	at "$2"
	case $1 in
	restic) untimed restic -q -r "$2" init ;;
	borg*) untimed borg init -e repokey "$2" ;;
	esac
}

# durable REPO COMMAND… is the command with its data on the disk.
# shellcheck disable=SC2016 # for the inner shell to expand
durable=(bash -c 'repo=$1; shift; "$@" && sync -f "$repo"' durable)

put() { # tool repo corpus, then a prefix
	local tool=$1 repo=$2 corpus=$3 recurse=()
	shift 3
	at "$repo"
	cd "$data"
	if [[ $corpus == TREE ]]; then
		cd "${src%/*}"
		recurse=(-r)
	fi
	local path=$corpus
	[[ $corpus != TREE ]] || path=src
	case $tool in
	space) "$@" "${durable[@]}" "$repo" "$spacectl" put "${recurse[@]}" "$path" --name "$corpus" ;;
	restic) "$@" "${durable[@]}" "$repo" restic -q -r "$repo" backup "$path" ;;
	borg) "$@" "${durable[@]}" "$repo" borg create "$repo::$corpus" "$path" ;;
	borg-zstd) "$@" "${durable[@]}" "$repo" borg create -C zstd "$repo::$corpus" "$path" ;;
	*) die "unknown tool $tool" ;;
	esac
	cd "$OLDPWD"
}

get() { # tool repo corpus dir, then a prefix
	local tool=$1 repo=$2 corpus=$3 dir=$4 recurse=() out
	shift 4
	at "$repo"
	out=$dir/$corpus
	if [[ $corpus == TREE ]]; then
		recurse=(-r)
		out=$dir/src
	fi
	mkdir "$dir"
	cd "$dir"
	case $tool in
	space) "$@" "$spacectl" get "${recurse[@]}" "$corpus" --out "$out" ;;
	restic) "$@" restic -q -r "$repo" restore latest --target "$dir" ;;
	borg*) "$@" borg extract "$repo::$corpus" ;;
	esac
	cd "$OLDPWD"
	if ((round == 1)); then
		diff -rq "$out" "$data/$corpus" >&2 || die "$tool gave back something else than $corpus"
	fi
}

run() { # tool corpus
	local tool=$1 corpus=$2 work=$tmp/work repo before=0
	repo=$work/repo
	mkdir "$work"
	init "$tool" "$repo"
	warm "$corpus"
	if [[ $corpus == DUP ]]; then # what counts is what DUP adds
		put "$tool" "$repo" SRC untimed
		before=$(disk_bytes "$repo")
	fi
	put "$tool" "$repo" "$corpus" timed "$corpus" "$tool" put
	record "$corpus" "$tool" disk "$(($(disk_bytes "$repo") - before))"
	get "$tool" "$repo" "$corpus" "$work/out" timed "$corpus" "$tool" get
	rm -rf "$work/out"
	if [[ $tool == space ]]; then
		timed "$corpus" space recompress "${durable[@]}" "$repo" "$spacectl" gc --recompress
		record "$corpus" space recompressed "$(disk_bytes "$repo")" # of DUP: together with SRC
		if ((round == 1)); then
			get "$tool" "$repo" "$corpus" "$work/out" untimed
		fi
	fi
	rm -rf "$work"
}

raw_disk() { # what the disk itself takes and gives
	local from=$tmp/raw.in start end
	if [[ $(stat -f -c %T /dev/shm 2>/dev/null) == tmpfs ]]; then from=$(mktemp /dev/shm/space-bench.XXXXXX); fi
	head -c "${mib}M" /dev/urandom >"$from"
	sync -f "$tmp"
	start=$EPOCHREALTIME
	dd if="$from" of="$tmp/raw" bs=1M conv=fsync status=none
	end=$EPOCHREALTIME
	rm -f "$from"
	record raw raw write.wall "$(awk "BEGIN { print ${end/,/.} - ${start/,/.} }")"
	if { echo 3 >/proc/sys/vm/drop_caches; } 2>/dev/null; then
		start=$EPOCHREALTIME
		dd if="$tmp/raw" of=/dev/null bs=1M status=none
		end=$EPOCHREALTIME
		record raw raw read.wall "$(awk "BEGIN { print ${end/,/.} - ${start/,/.} }")"
	fi
	rm -f "$tmp/raw"
}

for ((round = 1; round <= rounds; round++)); do
	say "round $round of $rounds: raw disk"
	raw_disk
	for corpus in $corpora; do
		for tool in $tools; do
			say "round $round of $rounds: $corpus $tool"
			run "$tool" "$corpus"
		done
	done
done

# --- report -------------------------------------------------------------------------

version() {
	case $1 in
	space) "$spacectl" version | head -n 1 ;;
	restic) restic version | cut -d' ' -f1,2 ;;
	borg) borg --version ;;
	borg-zstd) echo "borg with -C zstd" ;;
	esac
}

cat <<END
Median of $rounds rounds on $(nproc) cores of $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1), Linux $(uname -r), $(df --output=fstype "$tmp" | tail -n 1); $(date -u +%F).
Tools: $(for t in $tools; do printf '%s; ' "$(version "$t")"; done)encryption on, durable at the end of put, sources in the page cache.

END
{
	for c in $corpora; do printf '0\t%s\tcorpus\tbytes\t%s\n' "$c" "$(corpus_bytes "$c")"; done
	cat "$results"
} | awk -F'\t' -v tools="$tools" -v corpora="$corpora" -v mib="$mib" '
{ key = $2 SUBSEP $3 SUBSEP $4; samples[key] = samples[key] " " $5 }

# med returns the median, or "" where nothing was measured.
function med(corpus, tool, what,    n, v, i, j, t) {
	n = split(samples[corpus, tool, what], v, " ")
	for (i = 2; i <= n; i++)
		for (j = i; j > 1 && v[j] + 0 < v[j - 1] + 0; j--) { t = v[j]; v[j] = v[j - 1]; v[j - 1] = t }
	if (!n) return ""
	return n % 2 ? v[(n + 1) / 2] + 0 : (v[n / 2] + v[n / 2 + 1]) / 2
}
function sec(v) { return v == "" ? "–" : sprintf("%.2f", v) }
function mb(v) { return v == "" ? "–" : sprintf("%.1f", v / 1e6) }
function rate(bytes, v) { return v == "" || v == 0 ? "–" : sprintf("%.0f", bytes / 1e6 / v) }
# best is the smallest figure of the peers.
function best(corpus, what,    i, v, b) {
	b = ""
	for (i = 1; i <= nt; i++) {
		if (T[i] == "space") continue
		v = med(corpus, T[i], what)
		if (v != "" && (b == "" || v < b)) b = v
	}
	return b
}
function ratio(v, peer, limit) {
	if (v == "" || peer == "" || peer == 0) return "–"
	return sprintf("%.2f %s", v / peer, v / peer <= limit ? "✓" : "✗")
}
function share(v, raw, limit) {
	if (v == "" || raw == "" || v == 0) return "–"
	return sprintf("%.0f %% %s", 100 * raw / v, raw / v >= limit ? "✓" : "✗")
}
# recompressed is the size after gc --recompress; of DUP, what it adds to SRC.
function recompressed(c,    v, s) {
	v = med(c, "space", "recompressed")
	if (c != "DUP" || v == "") return v
	s = med("SRC", "space", "recompressed")
	return s == "" ? "" : v - s
}
END {
	nt = split(tools, T, " "); nc = split(corpora, C, " ")
	w = med("raw", "raw", "write.wall"); r = med("raw", "raw", "read.wall")
	printf "The disk itself, %d MiB in sequence: write and fsync %s MB/s, cold read %s MB/s.\n\n", mib, rate(mib * 1048576, w), rate(mib * 1048576, r)
	print "| corpus | MB | tool | put s | CPU s | RSS MB | get s | CPU s | RSS MB | on disk MB |"
	print "|---|---:|---|---:|---:|---:|---:|---:|---:|---:|"
	for (i = 1; i <= nc; i++) {
		c = C[i]
		for (j = 1; j <= nt; j++) {
			t = T[j]
			printf "| %s | %s | %s | %s | %s | %s | %s | %s | %s | %s |\n", c, mb(med(c, "corpus", "bytes")), t,
				sec(med(c, t, "put.wall")), sec(med(c, t, "put.cpu")), mb(med(c, t, "put.rss")),
				sec(med(c, t, "get.wall")), sec(med(c, t, "get.cpu")), mb(med(c, t, "get.rss")), mb(med(c, t, "disk"))
		}
	}
	print "\nDUP is stored after SRC in the same repository; its size is what it adds.\n"
	if (index(" " tools " ", " space ")) {
		print "space against the best peer (targets: put at most 0.33 of the time, get 0.50, disk 1.10):\n"
		print "| corpus | put | get | disk | disk after `gc --recompress` | recompressed MB | its wall s | its CPU s | put + recompress CPU s |"
		print "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
		for (i = 1; i <= nc; i++) {
			c = C[i]; z = recompressed(c)
			cpu = med(c, "space", "recompress.cpu")
			printf "| %s | %s | %s | %s | %s | %s | %s | %s | %s |\n", c,
				ratio(med(c, "space", "put.wall"), best(c, "put.wall"), 0.33), ratio(med(c, "space", "get.wall"), best(c, "get.wall"), 0.5),
				ratio(med(c, "space", "disk"), best(c, "disk"), 1.1), ratio(z, best(c, "disk"), 1.1), mb(z),
				sec(med(c, "space", "recompress.wall")), sec(cpu), sec(cpu == "" ? "" : cpu + med(c, "space", "put.cpu"))
		}
		if (index(" " corpora " ", " RAND ")) {
			scale = med("RAND", "corpus", "bytes") / (mib * 1048576)
			printf "\nRAND against the disk itself (target: 60 %%): in at %s of its write, out at %s of its cold read.\n",
				share(med("RAND", "space", "put.wall"), w == "" ? "" : w * scale, 0.6), share(med("RAND", "space", "get.wall"), r == "" ? "" : r * scale, 0.6)
		}
	}
}'
