#!/usr/bin/env bash
# The main job with no cluster: programs run on this machine in a pod's stead. Each asks for what
# only the pod has; then a request that reaches the pod is stolen, and one is mirrored.
set -euo pipefail
cd "$(dirname "$0")/.."
stead=$PWD/bin/stead
work=$PWD/.cache/demo
export STEAD_PLAYGROUND=demo
mkdir -p "$work"
trap '"$stead" playground down 2>/dev/null || true' EXIT

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

CGO_ENABLED=0 go build -o "$work/hello" ./test/demo
"$stead" playground up --detach
"$stead" playground status

in_stead() { "$stead" exec --target playground/orders --no-incoming -- "$@"; }

say "a static Go program on this machine ($(uname -n)), in the stead of orders"
in_stead "$work/hello"

if command -v python3 >/dev/null; then
	say "python3"
	in_stead python3 -c '
import os, socket, urllib.request
print("env    GREETING:", os.environ["GREETING"])
print("host   ", socket.gethostname())
print("file   /var/run/secrets/orders/token:", open("/var/run/secrets/orders/token").read())
print("name   db:", socket.getaddrinfo("db", 80, type=socket.SOCK_STREAM)[0][4][0])
print("http   db saw a connection from", urllib.request.urlopen("http://db/").read().decode().strip())'
fi
if command -v curl >/dev/null; then
	say "curl"
	in_stead curl -sS http://db.shop.svc.cluster.local/
fi
if command -v node >/dev/null; then
	say "node"
	in_stead node -e 'require("dns").lookup("db", (e, a) => console.log("name   db:", a, "| host", require("os").hostname()))'
fi

for mode in steal mirror; do
	say "--$mode: a request to orders, from another pod"
	coproc program { exec "$stead" exec --target playground/orders --$mode -- "$work/hello" serve 8080 2>&1; }
	read -r line <&"${program[0]}"
	echo "program: $line"
	echo "client:  $("$stead" playground call http://orders:8080/$mode)"
	read -r line <&"${program[0]}"
	echo "program: $line"
	wait "$program_PID" || true
	echo "client:  $("$stead" playground call http://orders:8080/after) (the session has ended)"
done
say "done"
