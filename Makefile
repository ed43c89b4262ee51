# `make` alone lists what there is.

GO      ?= go
PREFIX  ?= /usr/local
VERSION := $(shell git describe --tags --dirty 2>/dev/null || echo devel-$$(git rev-parse --short=12 HEAD))

.DEFAULT_GOAL := help
.PHONY: help build install demo test quick bench lint fuzz nightly generate clean

help: ## list the targets
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 18

build: ## build bin/spacectl, one static binary
	@echo "building bin/spacectl (static)"
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.release=$(VERSION)' -o bin/spacectl ./cmd/spacectl

install: build ## install spacectl, its man pages and completion, and the systemd unit under PREFIX (/usr/local)
	install -D -m 755 bin/spacectl $(DESTDIR)$(PREFIX)/bin/spacectl
	install -d $(DESTDIR)$(PREFIX)/share/man/man1 $(DESTDIR)$(PREFIX)/share/bash-completion/completions
	bin/spacectl man $(DESTDIR)$(PREFIX)/share/man/man1
	bin/spacectl completion bash > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/spacectl
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	sed 's,/usr/local,$(PREFIX),' deployment/systemd/space.service > $(DESTDIR)$(PREFIX)/lib/systemd/system/space.service

demo: ## build SPACE and show what it does on real input; cleans up after itself
	@scripts/need.sh fusermount3:fuse3
	@$(MAKE) --no-print-directory build
	@scripts/demo.sh

test: ## run all tests with the race detector; says what was skipped, and why
	@echo "all tests, race detector on"
	@scripts/test.sh

quick: ## run the tests in under three minutes: short, no race detector
	@echo "short tests, no race detector"
	$(GO) test -short ./...

bench: ## run the Go benchmarks; scripts/bench_peers.sh compares with restic and borg
	@echo "Go benchmarks; 'spacectl bench' measures this machine's limits too, and scripts/bench_peers.sh the peers"
	$(GO) test -run '^$$' -bench . -benchmem $(if $(BENCHTIME),-benchtime $(BENCHTIME)) ./...

lint: ## gofmt, go vet, staticcheck, the import rule, generated code, shellcheck
	@scripts/lint.sh

fuzz: ## fuzz every target for FUZZTIME each (20s)
	@scripts/fuzz.sh

nightly: export TEST_SEED = random
nightly: ## the long runs: power cuts, kill -9, fuzzing; takes hours
	@echo "power cuts at every I/O step, 40 rounds, and 10,000 under trees; 100 full disks; kill -9, 1000 rounds; faults under a stock kernel, 50 rounds; an hour of fsx; ten minutes of writing at full speed; 10 minutes of each fuzz target"
	$(GO) test -timeout 6h ./capsule/store -run PowerCut -crash-rounds 40
	$(GO) test -timeout 6h ./capsule/tree -run PowerCut -crash-rounds 125
	$(GO) test -timeout 6h ./capsule/tree -run JournalFull -full-rounds 100
	$(GO) test -timeout 6h ./views/fuse -run AgainstHost -random-ops 300000
	$(GO) test -timeout 6h ./internal/e2e -run Fsx -fsx-time 1h
	$(GO) test -timeout 6h ./internal/e2e -run MemoryBound -memory-time 10m
	$(GO) test -timeout 6h ./internal/e2e -run Kill -kill-rounds 1000
	$(GO) test -timeout 6h ./views/nvme -run TestKernel -kernel-rounds 50
	@FUZZTIME=$${FUZZTIME:-10m} scripts/fuzz.sh

generate: ## generate code again from internal/control/controlpb/control.proto
	@scripts/need.sh protoc:protobuf-compiler
	scripts/protoc.sh

clean: ## remove what was built
	rm -rf bin
	$(GO) clean -testcache
