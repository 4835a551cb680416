//go:build e2e

package e2e

import (
	"strings"
	"testing"
	"time"
)

// Pods that are not as most are: a native sidecar, the node's own network, one that has ended and is
// still listed.
func TestPodsThatAreNotAsMostAre(t *testing.T) {
	r := apply(`
{apiVersion: v1, kind: Pod, metadata: {name: sidecar, namespace: shop}, spec: {terminationGracePeriodSeconds: 0,
  initContainers: [{name: furnish, image: "registry.local/e2e:1", args: [env]}, {name: proxy, image: "registry.local/e2e:1", args: [db], restartPolicy: Always, env: [{name: WHO, value: the sidecar}]}],
  containers: [{name: app, image: "registry.local/e2e:1", args: [idle], env: [{name: WHO, value: the app}]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: on-node, namespace: shop}, spec: {terminationGracePeriodSeconds: 0, hostNetwork: true, nodeName: node1, containers: [{name: app, image: "registry.local/e2e:1", args: [orders]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: ended-1, namespace: shop, labels: {app: ending}}, spec: {restartPolicy: Never, containers: [{name: app, image: "registry.local/e2e:1", args: [no-such-command]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: ended-2, namespace: shop, labels: {app: ending}}, spec: {terminationGracePeriodSeconds: 0, containers: [{name: app, image: "registry.local/e2e:1", args: [idle]}]}}
`)
	t.Cleanup(func() { kubectl("delete", "pod", "sidecar", "on-node", "ended-1", "ended-2", "--wait=false") })
	if r.code != 0 {
		t.Fatal(r.stderr)
	}
	for _, w := range [][]string{{"--for=condition=Ready", "pod/sidecar", "pod/on-node", "pod/ended-2"}, {"--for=jsonpath={.status.phase}=Failed", "pod/ended-1"}} {
		if r := kubectl(append([]string{"wait", "--timeout=60s"}, w...)...); r.code != 0 {
			t.Fatal(r.stderr)
		}
	}
	t.Run("a native sidecar", func(t *testing.T) {
		for target, want := range map[string]string{"pod/sidecar": "the app\n", "pod/sidecar/container/proxy": "the sidecar\n"} {
			if r := execIn(target, []string{"--no-incoming"}, "sh", "-c", `echo "$WHO"`); r.code != 0 || r.stdout != want {
				t.Errorf("%s: exit code %d: %s%s", target, r.code, r.stdout, r.stderr)
			}
		}
		r := execIn("pod/sidecar/container/furnish", nil, "true")
		if r.code != 125 || !strings.Contains(r.stderr, "hint: its containers: app; its sidecars: proxy\n") {
			t.Errorf("an init container that ends: exit code %d: %s", r.code, r.stderr)
		}
	})
	t.Run("the node's network", func(t *testing.T) {
		const warning = "warning: pod on-node has the network of its node: what the program listens on is stolen from the whole of node node1, whoever has that port there\n"
		node := kubectl("get", "pod", "on-node", "-o", "jsonpath={.status.podIP}").stdout
		s := begin(t, "pod/on-node", []string{"-q", "--steal"}, programs()+"/goprobe", "serve", "8080", "1")
		s.expect("listening 8080")
		if r := call("http://"+node+":8080/node", "1"); !strings.HasPrefix(r.stdout, "go program: GET /node") {
			t.Errorf("%s%s", r.stdout, r.stderr)
		}
		s.end()
		if s.stderr() != warning {
			t.Errorf("steal says %q", s.stderr())
		}
		if r := execIn("pod/on-node", nil, "true"); r.code != 0 || r.stderr != "" {
			t.Errorf("mirror: exit code %d: %s", r.code, r.stderr)
		}
	})
	t.Run("one that has ended", func(t *testing.T) {
		r := command("", stead, "exec", "-n", namespace, "--target", "label/app=ending", "--", "cat", "/etc/hostname")
		if r.code != 0 || r.stdout != "ended-2\n" || r.stderr != "" {
			t.Errorf("exit code %d: %s%s", r.code, r.stdout, r.stderr)
		}
	})
	nothingLeft(t, 30*time.Second)
}

// What an agent did can be read when it has ended, where it is kept.
func TestTheLogOfAnAgentCanBeReadAfterwards(t *testing.T) {
	nothingLeft(t, 30*time.Second)
	s := begin(t, "deployment/bare", []string{"--steal", "--agent-log-level", "debug", "--agent-ttl", "10m", "--agent-linger", "1s"}, programs()+"/goprobe", "serve", "8080", "1")
	s.expect("listening 8080")
	call("http://bare/logged", "1")
	s.end()
	if r := kubectl("wait", "--for=condition=Complete", "job", "-l", "app.kubernetes.io/managed-by=stead", "--timeout=60s"); r.code != 0 {
		t.Fatal(r.stderr)
	}
	time.Sleep(5 * time.Second) // longer than it is kept by default
	r := kubectl("logs", "-l", "app.kubernetes.io/managed-by=stead", "--tail=-1")
	for _, want := range []string{`level=INFO msg="session begins" holder=`, `level=INFO msg="steal begins" port=8080`, `level=DEBUG msg="a connection goes to the session"`, `level=INFO msg="agent ends" why="no session for 1s"`} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("no %q in\n%s%s", want, r.stdout, r.stderr)
		}
	}
	// It is in nobody's way: neither of the next session's, nor of clean.
	if r := execIn("deployment/bare", []string{"--no-incoming", "--agent-linger", "1s"}, "true"); r.code != 0 {
		t.Errorf("the next session: exit code %d: %s", r.code, r.stderr)
	}
	if r := tool("agents", "clean"); r.code != 0 || !strings.Contains(r.stdout, "removed shop/stead-bare-") {
		t.Errorf("clean: exit code %d: %s%s", r.code, r.stdout, r.stderr)
	}
	nothingLeft(t, 30*time.Second)
}
