#!/usr/bin/env bash
# usage: scripts/protoc.sh [DIR]
# Generates the control API's Go code, with the plugins that go.mod pins, in
# place or into DIR.
set -euo pipefail
cd "$(dirname "$0")/../internal/control/controlpb"
out=${1:-.}
protoc --plugin=protoc-gen-go="$(go tool -n protoc-gen-go)" --plugin=protoc-gen-go-grpc="$(go tool -n protoc-gen-go-grpc)" \
	--go_out="$out" --go_opt=paths=source_relative --go-grpc_out="$out" --go-grpc_opt=paths=source_relative control.proto fabric.proto
