//go:build e2e

package e2e

import (
	"strings"
	"testing"
)

func TestWithoutATargetTheClustersNamesAndAddressesAreReached(t *testing.T) {
	// A namespace where no agent may stand beside anybody.
	r := apply(`{apiVersion: v1, kind: Namespace, metadata: {name: shop-strict, labels: {pod-security.kubernetes.io/enforce: restricted}}}`)
	if r.code != 0 {
		t.Fatal(r.stderr)
	}
	t.Cleanup(func() { kubectl("delete", "namespace", "shop-strict", "--wait=false") })
	for _, c := range []struct{ ns, addr string }{{namespace, "db:5432"}, {"shop-strict", "db.shop:5432"}} {
		r := command("", stead, "exec", "-q", "-n", c.ns, "--targetless", "--", programs()+"/app", "reach", c.addr)
		if r.code != 0 || !strings.Contains(r.stdout, `tcp `+c.addr+` "db: ping\n" ok`) {
			t.Errorf("in %s: exit code %d: %s%s", c.ns, r.code, r.stdout, r.stderr)
		}
		if r := command("", stead, "exec", "-q", "-n", c.ns, "--targetless", "--", "env"); r.code != 0 || strings.Contains(r.stdout, "STEAD_AGENT_SECRET") {
			t.Errorf("in %s: exit code %d, or the agent's secret is shown: %s", c.ns, r.code, r.stderr)
		}
	}
	if r := command("", stead, "exec", "--targetless", "--steal", "--", "true"); r.code != 125 || !strings.Contains(r.stderr, "error: --targetless") {
		t.Errorf("exit code %d: %s", r.code, r.stderr)
	}
	nothingLeft(t, soon)
}
