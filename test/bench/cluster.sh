#!/usr/bin/env bash
# make bench-cluster: the figures of docs/benchmarks.md that need a cluster, on standard output. The
# cluster is started where none is up, and then ended.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=$(mktemp -d /var/tmp/stead-bench.XXXXXX)
begun=
cleanup() {
	kubectl delete namespace bench --wait=false >/dev/null 2>&1 || true
	[ -z "$begun" ] || test/cluster/cluster.sh down
	rm -rf "$work"
}
test/cluster/cluster.sh status >/dev/null || { test/cluster/cluster.sh up >&2; begun=1; }
. test/cluster/env
trap cleanup EXIT
CGO_ENABLED=0 go build -o "$work/image/bench" ./test/bench/cluster
boot image "$work/bench.tar" registry.local/bench:1 "$work/image" /bench
bin/stead agent image --output "$work/agent.tar" --name registry.local/stead-agent:bench >/dev/null
test/cluster/cluster.sh load "$work/bench.tar" "$work/agent.tar" >&2
kubectl create namespace bench >&2
kubectl config view --raw > "$work/kubeconfig"
export KUBECONFIG=$work/kubeconfig STEAD=$PWD/bin/stead STEAD_AGENT_IMAGE=registry.local/stead-agent:bench
kubectl config set-context --current --namespace=bench >&2
kubectl run bench --image=registry.local/bench:1 --image-pull-policy=IfNotPresent --restart=Never -- serve >&2
kubectl wait --for=condition=Ready pod/bench --timeout=60s >&2
"$work/image/bench"
