//go:build e2e

package e2e

import (
	"strings"
	"testing"
	"time"
)

// stead agents clean removes what nobody uses, and neither what somebody uses nor what somebody is just
// starting.
func TestCleanRemovesWhatNobodyUsesAndNothingElse(t *testing.T) {
	nothingLeft(t, 30*time.Second)
	if r := execIn("statefulset/db", []string{"--no-incoming", "--agent-linger", "10m"}, "true"); r.code != 0 {
		t.Fatal(r.stderr)
	}
	// A Job of ours that has no pod yet, as between a colleague's request and the controller's answer.
	const starting = `
apiVersion: batch/v1
kind: Job
metadata: {name: stead-starting, namespace: shop, labels: {app.kubernetes.io/managed-by: stead}}
spec: {suspend: true, template: {spec: {restartPolicy: Never, containers: [{name: agent, image: "registry.local/e2e:1"}]}}}
`
	if r := apply(starting); r.code != 0 {
		t.Fatal(r.stderr)
	}
	s := begin(t, "pod/client", []string{"--no-incoming"}, "sh", "-c", "echo there; exec sleep 100")
	s.expect("there")
	r := tool("agents", "clean")
	if r.code != 0 || strings.Count(r.stdout, "removed ") != 1 || !strings.HasPrefix(r.stdout, "removed shop/stead-db-0-") {
		t.Errorf("removed: exit code %d: %s%s", r.code, r.stdout, r.stderr)
	}
	if !strings.Contains(r.stderr, "kept shop/stead-starting: it is being started\n") || !strings.Contains(r.stderr, ": it is in use\n") {
		t.Errorf("kept: %s", r.stderr)
	}
	if left := kubectl("get", "jobs", "-l", "app.kubernetes.io/managed-by=stead", "-o", "name").stdout; strings.Contains(left, "stead-db") || strings.Count(left, "\n") != 2 {
		t.Errorf("left: %s", left)
	}
	s.cmd.Process.Signal(interrupt)
	s.end()
	if r := tool("agents", "clean", "--used"); r.code != 0 || !strings.Contains(r.stdout, "removed shop/stead-starting\n") {
		t.Errorf("--used: exit code %d: %s%s", r.code, r.stdout, r.stderr)
	}
	nothingLeft(t, 30*time.Second)
}
