#!/usr/bin/env bash
# build.sh: fetch and build what a cluster is made of, and print the directory that has it.
#
# The outputs go to $STEAD_CACHE/cluster/HASH, where HASH is that of this script and src/: what is
# there is complete (it is renamed into place when it is) and is not built again.
# Needs: root, go, apt-get; no gcc, docker, systemd, openssl, nft or iptables.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
cache=${STEAD_CACHE:-$HOME/.cache/stead}/cluster
hash=$(cd "$here" && find build.sh src -type f | LC_ALL=C sort | xargs sha256sum | sha256sum | cut -c1-16)
out=$cache/$hash
case ${1:-build} in
  path) echo "$out"; exit 0 ;;       # where it is or would be
  build) ;;
  *) echo "usage: build.sh [build|path]" >&2; exit 2 ;;
esac
if [ -d "$out" ]; then echo "$out"; exit 0; fi

mkdir -p "$cache"
exec 9> "$cache/lock"; flock 9          # a second builder waits for the first and finds its work
if [ -d "$out" ]; then echo "$out"; exit 0; fi
say() { echo "[$(date +%T)] $*" >&2; }
D=$cache/$hash.part                     # kept after a failure: the next run goes on from it
mkdir -p "$D"/{bin,deb,root,images}
export CGO_ENABLED=0 GOFLAGS=-buildvcs=false GOWORK=off GOTOOLCHAIN=local
KVER=v1.34.4

# 1. containerd, runc, CNI plugins, busybox, nft (for kube-proxy) and iptables (for the portmap
#    plugin) with their libraries: Debian's, unpacked to one side, not installed: no service is set
#    up and nothing else on the machine changes.
if [ ! -e "$D/root/usr/sbin/iptables" ]; then   # made last
  say "fetching Debian packages"
  debs="containerd runc containernetworking-plugins busybox-static nftables iptables libnftables1 libnftnl11
    libxtables12 libip4tc2 libip6tc2 libnetfilter-conntrack3 libnfnetlink0 libmnl0 libjansson4 libgmp10 libedit2 libbsd0 libmd0"
  ( cd "$D/deb"
    # shellcheck disable=SC2086
    apt-get -o APT::Sandbox::User=root download -q $debs ||
      { apt-get update -q && apt-get -o APT::Sandbox::User=root download -q $debs; } ) >&2
  for d in "$D"/deb/*.deb; do dpkg -x "$d" "$D/root"; done
  for d in ip ip6; do ln -sf xtables-nft-multi "$D/root/usr/sbin/${d}tables"; done   # as update-alternatives would
  rm -rf "$D/deb"
fi

# 2. Every Kubernetes component, etcd and kubectl are one binary: one link, one file.
P=k8s.io/component-base/version
kube_flags="-s -w -X $P.gitVersion=$KVER -X $P.gitMajor=1 -X $P.gitMinor=$(cut -d. -f2 <<< $KVER) -X $P.gitTreeState=clean
  -X $P.gitCommit=0000000000000000000000000000000000000000 -X $P.buildDate=2026-01-01T00:00:00Z"
gobuild() { # NAME LDFLAGS
  [ -x "$D/bin/$1" ] && return
  say "building $1"
  (cd "$here/src/$1" && go build -trimpath -gcflags=all=-dwarf=false -ldflags "$2" -o "$D/bin/$1.part" . && mv "$D/bin/$1.part" "$D/bin/$1") >&2
}
gobuild boot "-s -w"
gobuild pause "-s -w"
gobuild coredns "-s -w"
gobuild kube "$kube_flags"
for c in etcd kubectl kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy; do
  ln -sf kube "$D/bin/$c"
done

# 3. Images, without docker.
t=$(mktemp -d); trap 'rm -rf "$t"' EXIT
mkdir -p "$t/pause" "$t/coredns" "$t"/busybox/{bin,tmp,etc,proc,sys,dev,root}
cp "$D/bin/pause" "$t/pause/pause"
cp "$D/bin/coredns" "$t/coredns/coredns"
cp "$D/root/bin/busybox" "$t/busybox/bin/busybox"
for a in $("$t/busybox/bin/busybox" --list); do [ -e "$t/busybox/bin/$a" ] || ln -s busybox "$t/busybox/bin/$a"; done
echo 'root:x:0:0:root:/root:/bin/sh' > "$t/busybox/etc/passwd"; chmod 1777 "$t/busybox/tmp"
"$D/bin/boot" image "$D/images/pause.tar" registry.local/pause:1 "$t/pause" /pause
"$D/bin/boot" image "$D/images/coredns.tar" registry.local/coredns:1 "$t/coredns" /coredns
"$D/bin/boot" image "$D/images/busybox.tar" registry.local/busybox:1 "$t/busybox" sh
mv "$D" "$out"
echo "$out"
