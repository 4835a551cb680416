//go:build e2e

package e2e

import (
	"strings"
	"testing"
)

func TestAnAgentCanBeAnEphemeralContainer(t *testing.T) {
	flags := []string{"--agent", "ephemeral"}
	pod := podOf(t, "bare")
	same(t, podOf(t, "orders"), "orders", flags, programs()+"/app", "tree", "/etc/orders", "/var/run/projected", "/etc/resolv.conf")
	// The second of two containers: not root, or sharing a process namespace with the first.
	var r result
	for _, app := range []string{"bare", "shared"} {
		r = execIn("deployment/"+app, append(flags, "--no-incoming"), programs()+"/app", "tree", "/var/data/private")
		if r.code != 0 || !strings.HasPrefix(r.stdout, "/var/data/private -rw------- 65532:65532 19") {
			t.Errorf("%s: exit code %d: %s%s", app, r.code, r.stdout, r.stderr)
		}
		r = execIn("deployment/"+app, append(flags, "--no-incoming"), "sh", "-c", "echo $CONTAINER")
		if r.stdout != app+"\n" {
			t.Errorf("%s: it is %q: %s", app, r.stdout, r.stderr)
		}
	}
	s := begin(t, "pod/"+pod, append(flags, "--steal"), programs()+"/goprobe", "serve", "8080", "3")
	s.expect("listening 8080")
	if r := call("http://bare/eph", "3"); strings.Count(r.stdout, "go program: GET /eph") != 3 {
		t.Errorf("%s%s", r.stdout, r.stderr)
	}
	s.end()
	if n := len(strings.Fields(kubectl("get", "pod", pod, "-o", "jsonpath={.spec.ephemeralContainers[*].name}").stdout)); n != 1 {
		t.Errorf("three sessions made %d agents", n)
	}
	if r := call("http://bare/after", "1"); !strings.HasPrefix(r.stdout, "pod bare-") {
		t.Errorf("after the session: %s%s", r.stdout, r.stderr)
	}
	nothingLeft(t, soon)
	// Such pods are not for the next tests: what has ended stays in them.
	kubectl("delete", "pod", pod, podOf(t, "shared"))
	for _, app := range []string{"bare", "shared"} {
		kubectl("rollout", "status", "deployment/"+app, "--timeout=60s")
	}
	for range 100 {
		if r := call("http://bare/", "1"); r.code == 0 {
			break
		}
	}
}
