//go:build e2e

package e2e

import (
	"strings"
	"testing"
	"time"
)

func TestAnAgentCanBeAnEphemeralContainer(t *testing.T) {
	flags := []string{"--agent", "ephemeral"}
	pod := podOf(t, "bare")
	same(t, podOf(t, "orders"), "orders", flags, programs()+"/app", "tree", "/etc/orders", "/var/run/projected", "/etc/resolv.conf")
	// Two containers that share a process namespace; the target is neither root nor the first.
	r := execIn("deployment/bare", append(flags, "--no-incoming"), programs()+"/app", "tree", "/var/data/private")
	if r.code != 0 || !strings.HasPrefix(r.stdout, "/var/data/private -rw------- 65532:65532 19") {
		t.Errorf("exit code %d: %s%s", r.code, r.stdout, r.stderr)
	}
	s := begin(t, "pod/"+pod, append(flags, "--steal"), programs()+"/goprobe", "serve", "8080", "3")
	s.expect("listening 8080")
	if r := call("http://bare/eph", "3"); strings.Count(r.stdout, "go program: GET /eph") != 3 {
		t.Errorf("%s%s", r.stdout, r.stderr)
	}
	s.end()
	if n := len(strings.Fields(kubectl("get", "pod", pod, "-o", "jsonpath={.spec.ephemeralContainers[*].name}").stdout)); n != 1 {
		t.Errorf("two sessions made %d agents", n)
	}
	if r := call("http://bare/after", "1"); !strings.HasPrefix(r.stdout, "pod bare-") {
		t.Errorf("after the session: %s%s", r.stdout, r.stderr)
	}
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(300 * time.Millisecond) {
		if r = tool("agents"); r.code == 0 && r.stdout == "" {
			break
		}
	}
	if r.stdout != "" {
		t.Errorf("agents that go on: %s", r.stdout)
	}
	// Such a pod is not for the next tests: what has ended stays in it.
	kubectl("delete", "pod", pod)
	kubectl("rollout", "status", "deployment/bare", "--timeout=60s")
	for range 100 {
		if r := call("http://bare/", "1"); r.code == 0 {
			break
		}
	}
}
