# stead: `make demo` shows it, `make test` proves it. Both need Go; the tests install what else they run
# (test/setup.sh: Debian packages), the demo shows what is there.
GO      ?= go
BIN     := bin
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS := -s -w -X github.com/stead-dev/stead/internal/cli.Version=$(VERSION)
AGENTS  := internal/kube/image/agents
export CGO_ENABLED = 0
export GOFLAGS += -buildvcs=false

.PHONY: build native agents launcher demo test bench lint cross setup setup-sip clean fuzz race
# bin/stead and bin/stead-agent for this machine, and both for both processors in bin/linux-*.
build: native
	@for a in amd64 arm64; do \
	  GOOS=linux GOARCH=$$a $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/linux-$$a/ ./cmd/stead ./cmd/stead-agent || exit 1; \
	done

native: agents launcher
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/stead ./cmd/stead
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/stead-agent ./cmd/stead-agent

# The agents that the CLI carries, for stead agent image.
agents:
	@for a in amd64 arm64; do \
	  GOOS=linux GOARCH=$$a $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o $(BIN)/agents/stead-agent-$$a ./cmd/stead-agent && \
	  gzip -9nc $(BIN)/agents/stead-agent-$$a > $(BIN)/agents/$$a.gz && \
	  { cmp -s $(BIN)/agents/$$a.gz $(AGENTS)/stead-agent-$$a.gz || cp $(BIN)/agents/$$a.gz $(AGENTS)/stead-agent-$$a.gz; } || exit 1; \
	done

# The small executable that starts programs; the CLI carries it.
LAUNCHER := internal/launch/helper
launcher:
	@for a in amd64 arm64; do \
	  GOOS=linux GOARCH=$$a $(GO) build -trimpath -ldflags '-s -w' -o $(BIN)/launcher/stead-launch-$$a ./cmd/stead-launch && \
	  { cmp -s $(BIN)/launcher/stead-launch-$$a $(LAUNCHER)/$$a/stead-launch || cp $(BIN)/launcher/stead-launch-$$a $(LAUNCHER)/$$a/stead-launch; } || exit 1; \
	done

# Every platform that we say we build for.
cross: build
	GOOS=darwin GOARCH=arm64 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/darwin-arm64/ ./cmd/stead
	GOOS=darwin GOARCH=amd64 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/darwin-amd64/ ./cmd/stead

setup:
	bash test/setup.sh

# Real macOS programs and what else reads them, from the package registries; see the script.
setup-sip: setup
	bash test/sip/setup.sh

demo: native
	bash test/demo/demo.sh

# One package after the other: they use the same ports of this machine. Nothing from the cache: most
# tests run a stead that they build, which the cache does not know of.
test: setup setup-sip native lint
	$(GO) test -count=1 -p 1 -timeout 14m ./...

# The packages in which goroutines share something, under the race detector, which needs cgo.
RACE := tunnel wire knock agent session/... kube/... forward podfs inet policy sip/... intercept/... launch
race: setup setup-sip
	CGO_ENABLED=1 $(GO) test -race -count=1 -timeout 9m $(RACE:%=./internal/%)

lint:
	@out=$$(gofmt -l cmd internal test); test -z "$$out" || { echo "gofmt: $$out"; exit 1; }
	$(GO) vet ./...
	$(GO) vet -tags e2e ./test/e2e

bench: setup native
	bash test/bench/run.sh

# Every fuzz test, one after the other on one core, each for FUZZTIME; FUZZ=sip/ takes those whose
# package or name has that in it. What is found stays in the package's testdata/fuzz: commit it.
FUZZTIME ?= 10m
FUZZ     ?= .
fuzz:
	@set -e; for f in $$(grep -rHo --include=*_test.go '^func Fuzz[A-Za-z0-9]*' internal | sed 's|/[^/]*:func |:|' | grep -e '$(FUZZ)'); do \
		echo "fuzz: $$f for $(FUZZTIME)"; \
		GOMAXPROCS=1 $(GO) test "./$${f%:*}" -run '^$$' -fuzz "^$${f#*:}\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1s -parallel 1; \
	done

clean:
	rm -rf $(BIN) $(AGENTS)/stead-agent-*.gz $(LAUNCHER)/*/stead-launch

-include test/cluster/cluster.mk
