#!/usr/bin/env bash
# All static checks. Prints what is wrong; exit code 0 means that nothing is.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

bad=0
begin() { echo "lint: $*"; }
wrong() {
	bad=1
	(($# == 0)) || echo "$*"
}

begin "gofmt -s"
unformatted=$(git ls-files -z '*.go' | xargs -0 gofmt -l -s) || wrong
[[ -z $unformatted ]] || wrong "gofmt -s -w would change: $unformatted"

begin "go vet"
go vet ./... || wrong

begin staticcheck
go tool staticcheck ./... || wrong

begin "rules of the house (internal/lint)"
go test ./internal/lint || wrong

begin "generated code"
if command -v protoc >/dev/null; then
	# Headers name the version of protoc itself, which may differ.
	fresh=$(mktemp -d)
	scripts/protoc.sh "$fresh" || wrong
	for f in "$fresh"/*.go; do
		diff -I '^//.*protoc ' "internal/control/controlpb/${f##*/}" "$f" || wrong "${f##*/} is out of date: make generate"
	done
	rm -rf "$fresh"
else
	echo "skipped: no protoc here (Debian: protobuf-compiler)"
fi

begin shellcheck
if command -v shellcheck >/dev/null; then
	shellcheck scripts/*.sh scripts/*/*.sh .ci/run || wrong
else
	echo "skipped: no shellcheck here"
fi
exit $bad
