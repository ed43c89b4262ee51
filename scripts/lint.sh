#!/usr/bin/env bash
# All static checks. Prints what is wrong; exit code 0 means that nothing is.
set -uo pipefail
cd "$(dirname "$0")/.."

bad=0
check() { # what, command...
	echo "lint: $1"
	"${@:2}" || bad=1
}

formatted() {
	local files
	files=$(gofmt -l -s $(git ls-files '*.go'))
	[[ -z $files ]] || { printf 'not as gofmt -s writes it: %s\n' $files && return 1; }
}

# What protoc makes of control.proto must be what is committed, but for the
# version of protoc itself, which its header names.
generated() {
	local dir=internal/control/controlpb out
	if ! command -v protoc >/dev/null; then
		echo "skipped: no protoc here (Debian: protobuf-compiler)"
		return
	fi
	out=$(mktemp -d)
	scripts/protoc.sh "$out" && for f in "$out"/*.go; do
		diff -I '^//.*protoc ' "$f" "$dir/$(basename "$f")" || { echo "$dir is out of date: make generate" && false; } || break
	done
	local result=$?
	rm -rf "$out"
	return $result
}

shell() {
	if ! command -v shellcheck >/dev/null; then
		echo "skipped: no shellcheck here"
		return
	fi
	shellcheck scripts/*.sh .ci/run
}

check gofmt formatted
check "go vet" go vet ./...
check "staticcheck" go tool staticcheck ./...
check "rules of the house (internal/lint)" go test ./internal/lint
check "generated code" generated
check shellcheck shell
exit $bad
