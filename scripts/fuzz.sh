#!/usr/bin/env bash
# Runs every fuzz target of the module for FUZZTIME (20s) each.
set -euo pipefail
cd "$(dirname "$0")/.."

targets=0
while read -r pkg dir; do
	while read -r target; do
		echo "fuzz: $pkg $target, ${FUZZTIME:=20s}"
		go test -run '^$' -fuzz "^$target\$" -fuzztime "$FUZZTIME" "$pkg"
		targets=$((targets + 1))
	done < <(sed -nE 's/^func (Fuzz[A-Za-z0-9_]*)\(.*/\1/p' "$dir"/*_test.go 2>/dev/null)
done < <(go list -f '{{.ImportPath}} {{.Dir}}' ./...)
echo "fuzz: $targets targets found nothing"
