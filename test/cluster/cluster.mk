# A real Kubernetes cluster for tests; see cluster.sh. NODES=2 gives two nodes.
.PHONY: cluster-up cluster-down cluster-load cluster-check e2e bench-cluster
cluster-up:
	test/cluster/cluster.sh up

cluster-down:
	test/cluster/cluster.sh down

# make cluster-load TAR=image.tar
cluster-load:
	@test -n "$(TAR)" || { echo 'usage: make cluster-load TAR=image.tar' >&2; exit 2; }
	test/cluster/cluster.sh load $(TAR)

cluster-check: cluster-up
	test/cluster/check.sh

# The end-to-end tests, on a cluster of their own where none is up.
e2e: setup build
	$(GO) test -tags e2e -count=1 -timeout 30m -v ./test/e2e

# Figures, beside kubectl port-forward.
bench-cluster: setup build
	test/bench/cluster.sh
