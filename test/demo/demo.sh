#!/usr/bin/env bash
# The main job with no cluster: programs run on this machine in a pod's stead. Each shows what it sees;
# then a request to the pod is stolen by it, and one is mirrored to it. What is not as it should be ends
# the demo with a message and exit code 1.
set -euo pipefail
cd "$(dirname "$0")/../.."
stead=$PWD/bin/stead
programs=$PWD/test/demo/programs
export STEAD_PLAYGROUND=demo-$$
mkdir -p .cache
work=$(mktemp -d "$PWD/.cache/demo.XXXXXX")
trap '"$stead" playground down 2>/dev/null || true; rm -rf "$work"' EXIT

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
die() { echo "demo: $*" >&2; exit 1; }
limit=30 # seconds for any one thing: far more than it takes

# hear prints what the program says up to the line that begins with $1.
hear() {
	local line
	while read -r -t "$limit" line <&"${out[0]}"; do
		echo "program: $line"
		[[ $line == "$1"* ]] && return
	done
	die "the program did not say: $1"
}

# serve FLAG ANSWER PROGRAM... runs a program, sends the pod a request, and looks who answers.
serve() {
	local flag=$1 want=$2 answer pid
	shift 2
	coproc out { exec "$stead" exec --target playground/orders "$flag" -- "$@"; }
	pid=$out_PID
	hear listening
	answer=$(timeout "$limit" "$stead" playground call "http://orders:8080/${flag#--}")
	echo "client:  $answer"
	[ "$answer" = "$want: GET /${flag#--}" ] || die "$flag: $answer"
	hear "got GET /${flag#--}"
	wait "$pid" || die "$flag: the program ended with exit code $?"
}

# show NAME PROGRAM... is one program's part.
show() {
	say "$1"
	shift
	serve --steal "the program on the laptop" "$@"
	serve --mirror "orders-0 (pod)" "$@" serve
}

have() { command -v "$1" >/dev/null; }

"$stead" playground up --detach
"$stead" playground status
printf '\n%s is this machine; below, each program sees the pod orders\n' "$(uname -n)"

CGO_ENABLED=0 go build -o "$work/hello-static" ./test/demo/programs/hello
show "static Go: what it sees, a request that it steals, and one that is mirrored to it" "$work/hello-static"
if have gcc; then
	CGO_ENABLED=1 go build -tags netcgo -o "$work/hello-cgo" ./test/demo/programs/hello
	show "Go with cgo" "$work/hello-cgo"
fi
if have musl-gcc; then
	musl-gcc -static -Os -o "$work/hello-musl" "$programs/hello.c"
	show "C, static, musl" "$work/hello-musl"
fi
have python3 && show "python3" python3 -u "$programs/hello.py"
have node && show "node" node "$programs/hello.js"
if have javac; then
	javac -d "$work" "$programs/Hello.java"
	show "java" java -cp "$work" Hello
fi
say "bash and curl"
"$stead" exec --target playground/orders --no-incoming -- bash "$programs/hello.sh"

say "afterwards"
answer=$("$stead" playground call http://orders:8080/after)
echo "client:  $answer"
[ "$answer" = "orders-0 (pod): GET /after" ] || die "after the sessions: $answer"
say "done"
