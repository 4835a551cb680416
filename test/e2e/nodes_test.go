//go:build e2e

package e2e

import (
	"strings"
	"testing"
	"time"
)

// twoNodes skips what needs them: NODES=2 make cluster-up.
func twoNodes(t *testing.T) {
	t.Helper()
	if n := len(strings.Fields(kubectl("get", "nodes", "-o", "name").stdout)); n < 2 {
		t.Skip("the cluster has one node")
	}
}

// on is a Deployment with one pod on a node, and its Service.
func on(node, name string) string {
	return strings.NewReplacer("NAME", name, "NODE", node).Replace(`
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: NAME, namespace: shop}
spec:
  selector: {matchLabels: {app: NAME}}
  template:
    metadata: {labels: {app: NAME}}
    spec:
      nodeName: NODE
      terminationGracePeriodSeconds: 0
      containers: [{name: app, image: "registry.local/e2e:1", args: [orders], volumeMounts: [{name: data, mountPath: /var/data}]}]
      initContainers: [{name: furnish, image: "registry.local/e2e:1", args: [furnish, /var/data], volumeMounts: [{name: data, mountPath: /var/data}]}]
      volumes: [{name: data, emptyDir: {}}]
---
apiVersion: v1
kind: Service
metadata: {name: NAME, namespace: shop}
spec: {selector: {app: NAME}, ports: [{port: 80, targetPort: 8080}]}
`)
}

// The API server is on node1, the target and its kubelet on node2, callers on both.
func TestATargetOnAnotherNodeIsStoodForAsOneOnThis(t *testing.T) {
	twoNodes(t)
	caller := func(name, node string) string {
		return "---" + strings.Replace(pod(name, namespace, "registry.local/e2e:1", "idle"), "spec: {", "spec: {nodeName: "+node+", ", 1)
	}
	if r := apply(on("node2", "far") + caller("caller1", "node1") + caller("caller2", "node2")); r.code != 0 {
		t.Fatal(r.stderr)
	}
	t.Cleanup(func() {
		kubectl("delete", "deployment/far", "service/far", "pod/caller1", "pod/caller2", "--wait=false")
	})
	if r := kubectl("wait", "--for=condition=Ready", "pod/caller1", "pod/caller2", "--timeout=60s"); r.code != 0 {
		t.Fatal(r.stderr)
	}
	podsOf(t, "far")
	callFrom := func(name, url string) result { return kubectl("exec", name, "--", "/app", "call", url, "5") }
	for end := time.Now().Add(limit); ; time.Sleep(200 * time.Millisecond) { // both nodes know the Service
		if callFrom("caller1", "http://far/").code == 0 && callFrom("caller2", "http://far/").code == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the Service is not reached")
		}
	}
	for _, mode := range []string{"--steal", "--mirror"} {
		s := begin(t, "deployment/far", []string{mode}, programs()+"/goprobe", "serve", "8080", "10")
		s.expect("listening 8080")
		for _, who := range []string{"caller1", "caller2"} {
			ip := kubectl("get", "pod", who, "-o", "jsonpath={.status.podIP}").stdout
			r := callFrom(who, "http://far/"+who)
			want := map[string]string{"--steal": "go program: GET /" + who + " from " + ip, "--mirror": "pod far-"}[mode]
			if strings.Count(r.stdout, want) != 5 {
				t.Errorf("%s, from %s: %s%s", mode, who, r.stdout, r.stderr)
			}
			for range 5 {
				if l := s.line(); !strings.HasPrefix(l, "served GET /"+who+" "+ip) {
					t.Errorf("%s, from %s: the program saw %q", mode, who, l)
				}
			}
		}
		if code := s.end(); code != 0 {
			t.Errorf("%s: exit code %d: %s", mode, code, s.stderr())
		}
	}
	native := kubectl("exec", podOf(t, "far"), "--", "/app", "reach", "db:5432", "no-such-name:80")
	under := execIn("deployment/far", []string{"--no-incoming"}, programs()+"/app", "reach", "db:5432", "no-such-name:80")
	if native.code != 0 || under.stdout != native.stdout || !strings.Contains(native.stdout, "db: ping") {
		t.Errorf("in the pod: %s%s\nunder stead: %s%s", native.stdout, native.stderr, under.stdout, under.stderr)
	}
	nothingLeft(t, soon)
}

// A node that the cluster has lost is named, and a session beside one of its pods goes on beside one of
// another node.
func TestANodeThatIsLost(t *testing.T) {
	twoNodes(t)
	if r := apply(on("node2", "far") + strings.ReplaceAll(strings.ReplaceAll(on("node1", "near"), "{app: near}", "{app: near, also: far}"), "selector: {app: near, also: far}", "selector: {app: near}")); r.code != 0 {
		t.Fatal(r.stderr)
	}
	t.Cleanup(func() {
		kubectl("delete", "deployment/far", "service/far", "deployment/near", "service/near", "--wait=false")
	})
	far, near := podsOf(t, "far"), podsOf(t, "near")
	if r := kubectl("label", "pod", slicesMin(far), "also=far"); r.code != 0 {
		t.Fatal(r.stderr)
	}
	// The cluster's names may be served from the lost node: it looks at files alone.
	s := begin(t, "label/also=far", []string{"--steal"}, "sh", "-c", `last=; while :; do now=$(cat /etc/hostname) && [ "$now" != "$last" ] && echo "$now"; last=$now; sleep 0.2; done`)
	old, next := slicesMin(far), slicesMin(near) // far is the first by name
	s.expect(old)
	if _, err := cluster("cut", "2"); err != nil {
		t.Fatal(err)
	}
	healed := false
	heal := func() {
		if !healed {
			healed = true
			if _, err := cluster("join", "2"); err != nil {
				t.Error(err)
			}
			ready(t)
		}
	}
	t.Cleanup(heal)
	for end := time.Now().Add(limit); kubectl("get", "node", "node2", "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`).stdout != "Unknown"; time.Sleep(time.Second) {
		if time.Now().After(end) {
			t.Fatal("the cluster does not know that node2 is lost")
		}
	}
	const ann = "ann@example.com"
	if r := apply(tool("rbac", "--user", ann).stdout); r.code != 0 {
		t.Fatal(r.stderr)
	}
	t.Cleanup(func() { kubectl("delete", "role,rolebinding", "stead") })
	for _, as := range [][]string{nil, {"--as", ann}} { // who may ask about nodes, and who may not
		r := fails("deployment/far", append(as, "--no-incoming")...)
		if r.code != 125 || !strings.Contains(r.stderr, "node node2 is lost: ") || !strings.Contains(r.stderr, "hint: kubectl describe node node2") {
			t.Errorf("as %v: exit code %d: %s", as, r.code, r.stderr)
		}
	}
	s.expect(next)
	if told := s.stderr(); !strings.Contains(told, "pod "+old) || !strings.Contains(told, "; now in the stead of pod "+next) {
		t.Errorf("what is told: %s", told)
	}
	heal()
	s.cmd.Process.Signal(interrupt)
	s.end()
	nothingLeft(t, lease)
}
