#!/usr/bin/env bash
# make bench: the figures of docs/benchmarks.md, on standard output.
set -euo pipefail
cd "$(dirname "$0")/../.."
# In /var/tmp: a pod has a /tmp of its own, should the repository lie there.
work=$(mktemp -d /var/tmp/stead-bench.XXXXXX)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
if command -v npm >/dev/null; then
	npm install --silent --no-save --prefix "$work" eslint@9 typescript@5
	chmod -R a+rX "$work/node_modules"
fi
# node reads this bundle at each start; a session does not import it, so it would look three times as fast.
unset NODE_EXTRA_CA_CERTS
CGO_ENABLED=0 go build -o "$work/local" ./test/bench/local
"$work/local"
echo
CGO_ENABLED=0 go build -o "$work/sip" ./test/bench/sip
mkdir "$work/copies"
"$work/sip" "$work/copies"
