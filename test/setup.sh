#!/usr/bin/env bash
# Installs what the tests and the demo run on a bare Debian 12 with git, make and Go: Debian packages
# only, and only those whose commands are missing.
set -euo pipefail

declare -A package=(
	[python3]=python3 [node]=nodejs [java]=default-jdk-headless [javac]=default-jdk-headless
	[fusermount3]=fuse3 [gcc]=gcc [musl-gcc]=musl-tools [curl]=curl [bash]=bash [ps]=procps [ip]=iproute2 [setpriv]=util-linux
)
missing=()
for command in "${!package[@]}"; do
	command -v "$command" >/dev/null || missing+=("${package[$command]}")
done
# udev makes the device so on every machine that has one; a bare container or VM may not run it.
if [ "$(id -u)" -eq 0 ] && [ -e /dev/fuse ]; then
	chmod 666 /dev/fuse
fi
[ ${#missing[@]} -eq 0 ] && exit 0

apt=(apt-get)
if [ "$(id -u)" -ne 0 ]; then
	apt=(sudo apt-get)
fi
echo "setup: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
"${apt[@]}" update -qq
"${apt[@]}" install -y -qq --no-install-recommends $(printf '%s\n' "${missing[@]}" | sort -u) >/dev/null
