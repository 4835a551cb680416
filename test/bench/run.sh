#!/usr/bin/env bash
# make bench: the figures of docs/benchmarks.md, on standard output.
set -euo pipefail
cd "$(dirname "$0")/../.."
mkdir -p .cache/bench
CGO_ENABLED=0 go build -o .cache/bench/local ./test/bench/local
exec .cache/bench/local
