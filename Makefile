# Needs Go, git and GNU make. `make` lists what there is to make.

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
CACHE   ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/tidemark

# How many packages are tested at once. Several start a control plane of their own, which
# wants a core, so more than the cores only makes tests wait for each other.
P        ?= 2
PKG      ?= ./...
TIMEOUT  ?= 15m
FUZZTIME ?= 10s
BENCHTIME ?= 1s
BENCH    ?= .
SOAK     ?= 10m
OBJECTS  ?= 1000,10000,50000
RUNS     ?= 3
PROFILES ?= /tmp/tidemark-profiles

# The binaries need no C library, and building them no C compiler.
export CGO_ENABLED ?= 0
GOBUILD := go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=$(VERSION)"

LINT_VERSION := v2.15.0
LINT = $(CACHE)/tools/golangci-lint-$(LINT_VERSION)-$(shell go env GOVERSION)

.DEFAULT_GOAL := help
.PHONY: help build test e2e race lint fuzz bench bench-peers bench-check profile soak demo controlplane

help: ## list the targets
	@echo "Tidemark $(VERSION). Targets:"
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## bin/tidemark, and bin/kubectl-tidemark for `kubectl tidemark`
	@mkdir -p bin
	$(GOBUILD) -o bin/tidemark ./cmd/tidemark
	@ln -sf tidemark bin/kubectl-tidemark

test: controlplane ## vet, and all tests against a real control plane (PKG=./journal/... for some, P=2 packages at once)
	go vet $(PKG)
	go test -timeout $(TIMEOUT) -p $(P) $(PKG)

# Backups of volumes need a kubelet. What the machine lacks is said, and the tests are skipped.
e2e: controlplane ## volumes on a real node: kubelet, containerd, CSI; needs Linux, root, and packages that it names
	cd deploy/localnode/agent && go vet ./... && go test -count=1 ./...
	TIDEMARK_E2E=1 go test -count=1 -timeout 10m $(if $(RUN),-run '$(RUN)' -v) ./deploy/localnode
	cd bench/e2e && TIDEMARK_E2E=1 go test -count=1 -timeout 40m $(if $(RUN),-run '$(RUN)' -v)

race: controlplane ## the tests under the race detector, which needs a C compiler
	@command -v "$$(go env CC | cut -d' ' -f1)" >/dev/null || { \
		echo "make race: the race detector needs a C compiler, and $$(go env CC) is not there; install gcc or clang" >&2; exit 1; }
	CGO_ENABLED=1 go test -race -timeout 30m -p $(P) $(PKG)

lint: $(LINT) ## golangci-lint with .golangci.yml: style and import layers
	$(LINT) run ./...

# Built from the module proxy, once per machine and version, and renamed when complete.
$(LINT):
	@echo "building golangci-lint $(LINT_VERSION) (once per machine, a few minutes) ..."
	@mkdir -p $(@D) && tmp="$$(mktemp -d $(@D)/tmp-XXXXXX)" && trap 'rm -rf "$$tmp"' EXIT && \
		GOBIN="$$tmp" go install -trimpath -ldflags "-s -w" github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(LINT_VERSION) && \
		mv "$$tmp/golangci-lint" $@

fuzz: ## every fuzz target for FUZZTIME=10s
	@list="$$(go test -list '^Fuzz' $(PKG))" || { echo "$$list"; exit 1; }; \
	echo "$$list" | awk '/^Fuzz/ {names[++n] = $$1} /^ok/ {for (i = 1; i <= n; i++) print $$2, names[i]; n = 0}' | \
	while read -r pkg name; do \
		echo "$$pkg $$name"; \
		go test -run '^$$' -fuzz "^$$name$$" -fuzztime $(FUZZTIME) "$$pkg" </dev/null || exit 1; \
	done

# The head of OUT is for benchstat and for bench/peers --check: when, on what, and which units are ratios.
bench: controlplane ## the benchmarks (BENCH=Ingest BENCHTIME=5s); their figures are explained in bench; OUT=FILE keeps them
	@$(if $(OUT),{ echo "date: $$(date -u +%FT%TZ)"; echo "commit: $$(git describe --always --dirty)"; echo "kernel: $$(uname -r)"; \
		echo "processors: $$(nproc)"; echo "load: $$(cut -d' ' -f1-3 /proc/loadavg)"; cat bench/ratios.txt; } >'$(OUT)')
	go test -run '^$$' -bench '$(BENCH)' -benchtime $(BENCHTIME) -timeout 60m ./bench $(if $(OUT),>>'$(OUT)' && cat '$(OUT)')

soak: controlplane ## SOAK=10m of churn and faults under an independent checker; SEED=7 repeats one (as root also slow and full disks, and power cuts that lose what was not synced)
	go run ./bench/soak $(if $(TIDEMARK),--tidemark $(TIDEMARK)) --for $(SOAK) $(if $(SEED),--seed $(SEED)) $(if $(DIR),--dir $(DIR))

bench-peers: controlplane ## Tidemark beside Velero, etcd's snapshots and an informer, into docs/benchmarks.md, over two hours (OBJECTS=1000 RUNS=1 for less)
	go run ./bench/peers --objects $(OBJECTS) --runs $(RUNS)

bench-check: ## has a ratio become worse since OLD=FILE, in NEW=FILE (of bench-peers, or of make bench OUT=FILE)? It never looks at times
	go run ./bench/peers --check '$(OLD),$(NEW)'

profile: controlplane ## CPU and heap profiles of the daemon in a churn, beside an informer, into PROFILES=/tmp/tidemark-profiles
	go run ./bench/peers --objects 1000 --runs 1 --churn 20s --only reader,informer,recorder,recording --profiles $(PROFILES) --out '' --results $(PROFILES)

demo: build ## record a real control plane, lose a namespace, rewind it (KEEP=1 leaves it running)
	go run ./cmd/demo $(if $(KEEP),--keep) $(ARGS)

controlplane: ## build the servers that tests talk to (etcd, kube-apiserver, kube-controller-manager, an S3 server), once per machine
	@go run ./cmd/demo --binaries
