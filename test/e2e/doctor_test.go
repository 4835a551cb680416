//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stead-dev/stead/test/internal/bed"
)

// restricted makes a namespace with PodSecurity restricted, a pod app in it and a Service before it.
func restricted(t *testing.T, ns string) {
	t.Helper()
	r := apply(strings.ReplaceAll(`
{apiVersion: v1, kind: Namespace, metadata: {name: NS, labels: {pod-security.kubernetes.io/enforce: restricted}}}
---
{apiVersion: v1, kind: Service, metadata: {name: app, namespace: NS}, spec: {selector: {app: app}, ports: [{port: 80, targetPort: 8080}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: app, namespace: NS, labels: {app: app}}, spec: {terminationGracePeriodSeconds: 0, securityContext: {runAsNonRoot: true, runAsUser: 1000, seccompProfile: {type: RuntimeDefault}}, containers: [{name: app, image: "registry.local/e2e:1", args: [orders], securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}}]}}
`, "NS", ns))
	t.Cleanup(func() { kubectl("delete", "namespace", ns, "--wait=false") })
	if r.code != 0 {
		t.Fatal(r.stderr)
	}
	if r := kubectl("-n", ns, "wait", "--for=condition=Ready", "pod/app", "--timeout=60s"); r.code != 0 {
		t.Fatal(r.stderr)
	}
}

// inside runs a command of stead that takes the namespace.
func inside(ns string, args ...string) result {
	return command("", stead, append(args, "-n", ns)...)
}

// lines fails the test unless every line of want, a regular expression, is one of what doctor said.
func lines(t *testing.T, r result, code int, want ...string) {
	t.Helper()
	for _, w := range want {
		if !regexp.MustCompile("(?m)^" + w + "$").MatchString(r.stdout) {
			t.Errorf("no line %q", w)
		}
	}
	if r.code != code || t.Failed() {
		t.Errorf("exit code %d, want %d:\n%s%s", r.code, code, r.stdout, r.stderr)
	}
}

const capabilitiesHint = `      hint: the agent needs hostPID and the capabilities SYS_ADMIN, SYS_PTRACE, NET_ADMIN, NET_RAW, DAC_READ_SEARCH, SETUID, SETGID, NET_BIND_SERVICE: start it in a namespace that allows them .*--agent-namespace NAME`

func TestDoctorSaysWhatIsThere(t *testing.T) {
	for end := time.Now().Add(limit); !strings.Contains(kubectl("get", "nodes", "-o", "jsonpath={.items[*].status.images[*].names}").stdout, agentImage); time.Sleep(time.Second) {
		if time.Now().After(end) {
			t.Fatal("the nodes do not tell of the agent's image") // they do so some time after they have it
		}
	}
	node := nodeOf(t, namespace, podOf(t, "bare"))
	laptop := []string{`ok    kernel: \d+\.\d+.*`, `ok    seccomp user notification: there, and nobody else listens`, `(ok|warn)  +/dev/fuse: .*`, `ok    Yama: .*`, `(ok|warn)  +mount namespace: .*`}
	cluster := []string{`ok    cluster: https://\S+ v1\.\S+`, `ok    rights: all 23 in namespace shop`}
	t.Run("with a target", func(t *testing.T) {
		lines(t, tool("doctor", "--target", "deployment/bare"), 0, append(append(laptop, cluster...),
			`ok    target: deployment/bare: pod bare-\S+, container bare \(the first that is no known sidecar\)`,
			`ok    node kernel: \d+\.\S+ on node `+node, `ok    agent's image: registry.local/stead-agent:e2e is on node `+node,
			`ok    the agent's pod: the cluster would take it in namespace shop`)...)
	})
	t.Run("without a target", func(t *testing.T) {
		lines(t, tool("doctor"), 0, append(append(laptop, cluster...),
			`ok    node kernel: \d+\.\S+ on (node node1|2 nodes)`, `ok    agent's image: registry.local/stead-agent:e2e is on (node node1|2 nodes)`)...)
	})
	t.Run("an ephemeral agent", func(t *testing.T) {
		lines(t, tool("doctor", "--agent", "ephemeral", "--target", "deployment/bare"), 0, `ok    the agent's container: the cluster would take it in pod bare-\S+`)
		lines(t, tool("doctor", "--agent", "ephemeral"), 0, `warn  the agent's container: not known without a target: .*`, `      hint: stead doctor --agent ephemeral --target TARGET`)
		if n := kubectl("get", "pod", podOf(t, "bare"), "-o", "jsonpath={.spec.ephemeralContainers}").stdout; n != "" {
			t.Errorf("it is there: %s", n)
		}
	})
	t.Run("an image that is nowhere", func(t *testing.T) {
		lines(t, tool("doctor", "--target", "deployment/bare", "--agent-image", "127.0.0.1:1/none:1"), 0,
			`warn  agent's image: 127.0.0.1:1/none:1 cannot be looked at from here; the nodes may be able to pull it all the same: .*`)
		lines(t, tool("doctor", "--target", "deployment/bare", "--agent-image", "127.0.0.1:1/none:1", "--agent-pull-policy", "Never"), 1,
			`FAIL  agent's image: 127.0.0.1:1/none:1 is not on node `+node+`, and --agent-pull-policy says Never`)
		lines(t, tool("doctor", "--agent-image", ""), 1, `FAIL  agent's image: none is named`, `      hint: stead agent image --push .*`)
	})
	t.Run("a target that is not", func(t *testing.T) {
		lines(t, tool("doctor", "--target", "deployment/none"), 1, `FAIL  target: target deployment/none: not found in namespace shop`)
	})
	if r := kubectl("get", "jobs,pods", "-l", "app.kubernetes.io/managed-by=stead", "-o", "name"); strings.Contains(r.stdout, "doctor") {
		t.Errorf("doctor left %s", r.stdout)
	}
}

func TestDoctorSaysWhatTheClusterWouldRefuse(t *testing.T) {
	const ns, agents, eve = "shop-doctor", "shop-doctor-agents", "eve@example.com"
	restricted(t, ns)
	if r := apply(fmt.Sprintf("{apiVersion: v1, kind: Namespace, metadata: {name: %s}}", agents)); r.code != 0 {
		t.Fatal(r.stderr)
	}
	t.Cleanup(func() { kubectl("delete", "namespace", agents, "--wait=false") })
	refused := `FAIL  the agent's pod: .*violates? PodSecurity "restricted:latest".*`
	lines(t, inside(ns, "doctor", "--target", "pod/app"), 1, refused, capabilitiesHint)
	lines(t, inside(ns, "doctor"), 1, refused, capabilitiesHint)
	lines(t, inside(ns, "doctor", "--target", "pod/app", "--agent", "ephemeral"), 1, `FAIL  the agent's container: .*violates PodSecurity "restricted:latest".*`, capabilitiesHint)
	lines(t, inside(ns, "doctor", "--target", "pod/app", "--agent-namespace", agents), 0,
		`ok    the agent's pod: the cluster would take it in namespace `+agents, `ok    rights: all \d+ in namespace `+ns+` and `+agents)
	// Without any right, each is named with its own namespace and with the command that gives all of them.
	lines(t, inside(ns, "doctor", "--as", eve, "--agent-namespace", agents), 1,
		`FAIL  right to get deployments: missing in namespace `+ns+` \(to targets of that kind\)`,
		`FAIL  right to create jobs: missing in namespace `+agents+` \(.*\)`,
		`      hint: whoever may give rights there runs: stead rbac -n `+ns+` --agent-namespace `+agents+` --user YOU \| kubectl apply -f -`,
		`warn  node kernel: not known: no right to get nodes, .*`, `      hint: .*stead rbac -n `+ns+` --agent-namespace `+agents+` --nodes --user YOU .*`)
	if r := inside(ns, "doctor", "--as", eve, "--agent-namespace", agents); strings.Contains(r.stdout, "right to create jobs: missing in namespace "+ns+" ") ||
		strings.Contains(r.stdout, "right to get deployments: missing in namespace "+agents+" ") {
		t.Errorf("a right is asked for where it is not needed:\n%s", r.stdout)
	}
	// With the Role that we print there is no right to create pods: PodSecurity's warning tells all the same.
	if r := apply(inside(ns, "rbac", "--user", eve).stdout); r.code != 0 {
		t.Fatal(r.stderr)
	}
	lines(t, inside(ns, "doctor", "--as", eve, "--target", "pod/app"), 1, refused, capabilitiesHint)
	// And the right to look at nodes is had by the command of the hint.
	t.Cleanup(func() {
		kubectl("delete", "clusterrole", "stead-nodes")
		kubectl("delete", "clusterrolebinding", "stead-nodes-"+eve)
	})
	if r := apply(inside(ns, "rbac", "--user", eve, "--nodes").stdout); r.code != 0 {
		t.Fatal(r.stderr)
	}
	node := nodeOf(t, ns, "app")
	lines(t, inside(ns, "doctor", "--as", eve, "--target", "pod/app"), 1, `ok    node kernel: .* on node `+node, `ok    agent's image: \S+ is on node `+node)
}

// Two Roles, one beside the targets and one where the agents are, are enough for all of it.
func TestADeveloperWithTheTwoRolesHasHerAgentElsewhere(t *testing.T) {
	const ns, agents, ann = "shop-two", "shop-two-agents", "zoe@example.com"
	restricted(t, ns)
	if r := apply(fmt.Sprintf("{apiVersion: v1, kind: Namespace, metadata: {name: %s}}", agents)); r.code != 0 {
		t.Fatal(r.stderr)
	}
	t.Cleanup(func() { kubectl("delete", "namespace", agents, "--wait=false") })
	roles := inside(ns, "rbac", "--agent-namespace", agents, "--user", ann)
	if r := apply(roles.stdout); r.code != 0 || strings.Count(roles.stdout, "kind: Role\n") != 2 {
		t.Fatal(roles.stdout, r.stderr)
	}
	// What is then given to somebody else takes nothing from her.
	if r := apply(inside(ns, "rbac", "--agent-namespace", agents, "--user", "max@example.com").stdout + "---\n" + inside(ns, "rbac", "--agent", "ephemeral", "--user", "max@example.com").stdout); r.code != 0 {
		t.Fatal(r.stderr)
	}
	may := func(verb, what, where string) string {
		return strings.TrimSpace(kubectl("-n", where, "auth", "can-i", verb, what, "--as", ann).stdout)
	}
	for _, c := range []struct{ verb, what, where, want string }{
		{"create", "jobs", ns, "no"}, {"create", "pods/portforward", ns, "no"}, {"get", "deployments.apps", agents, "no"},
		{"create", "jobs", agents, "yes"}, {"get", "deployments.apps", ns, "yes"},
	} {
		if got := may(c.verb, c.what, c.where); got != c.want {
			t.Errorf("%s %s in %s: %s", c.verb, c.what, c.where, got)
		}
	}
	flags := []string{"-n", ns, "--agent-namespace", agents, "--as", ann}
	if r := inside(ns, append([]string{"doctor", "--target", "pod/app"}, flags...)...); r.code != 0 || strings.Contains(r.stdout, "FAIL") {
		t.Errorf("doctor: exit code %d: %s%s", r.code, r.stdout, r.stderr)
	}
	ask := func(path string) result { return call("http://app."+ns+"/"+path, "1") }
	s := begin(t, "pod/app", append(flags, "--steal"), programs()+"/goprobe", "serve", "8080", "1")
	s.expect("listening 8080")
	if r := ask("steal"); !strings.HasPrefix(r.stdout, "go program: GET /steal") {
		t.Errorf("steal: %s%s; %s", r.stdout, r.stderr, s.stderr())
	}
	s.end()
	s = begin(t, "pod/app", flags, programs()+"/goprobe", "serve", "8080", "1000")
	s.expect("listening 8080")
	if r := ask("mirror"); !strings.HasPrefix(r.stdout, "pod app") {
		t.Errorf("mirror: %s%s", r.stdout, r.stderr)
	}
	if l := s.line(); !strings.HasPrefix(l, "served GET /mirror ") {
		t.Errorf("mirror: %q; %s", l, s.stderr())
	}
	// Who uses the target is told where the agents are named.
	used := regexp.MustCompile(`(?m)^pod/app +1/1 +app +\S+@\S+`)
	if r := inside(ns, append([]string{"ls"}, flags...)...); r.code != 0 || !used.MatchString(r.stdout) {
		t.Errorf("ls: exit code %d: %s%s", r.code, r.stdout, r.stderr)
	}
	if r := inside(ns, "ls"); r.code != 0 || used.MatchString(r.stdout) {
		t.Errorf("ls without it: exit code %d: %s%s", r.code, r.stdout, r.stderr)
	}
	// It has no owner there, and ends with its target all the same.
	kubectl("-n", ns, "delete", "pod", "app")
	s.end()
	began := time.Now()
	var left result
	for time.Since(began) < 15*time.Second {
		if left = kubectl("-n", agents, "get", "jobs,pods", "-l", "app.kubernetes.io/managed-by=stead", "-o", "name"); left.code == 0 && left.stdout == "" {
			t.Logf("gone within %v of the session's end", time.Since(began).Round(100*time.Millisecond))
			return
		}
		time.Sleep(200 * time.Millisecond)
	}
	t.Errorf("left: %s%s", left.stdout, left.stderr)
}

// What is not in the Role that we print is named with the rule that it takes, and the hint gives it.
func TestWhatTheRoleDoesNotCoverIsGivenByTheHint(t *testing.T) {
	const mia = "mia@example.com"
	crd := `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: parades.hint.example.com}
spec:
  group: hint.example.com
  scope: Namespaced
  names: {plural: parades, singular: parade, kind: Parade}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {scale: {specReplicasPath: .spec.replicas, statusReplicasPath: .status.replicas, labelSelectorPath: .status.selector}, status: {}}
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
`
	if r := apply(crd); r.code != 0 {
		t.Fatal(r.stderr)
	}
	t.Cleanup(func() {
		kubectl("delete", "crd", "parades.hint.example.com", "--wait=false")
		kubectl("delete", "role", "stead", "stead-get-parades", "stead-get-parades-scale", "--ignore-not-found")
		kubectl("delete", "rolebinding", "stead-"+mia, "stead-get-parades", "stead-get-parades-scale", "--ignore-not-found")
	})
	kubectl("wait", "--for=condition=Established", "crd/parades.hint.example.com", "--timeout=60s")
	if r := apply(`{apiVersion: hint.example.com/v1, kind: Parade, metadata: {name: web, namespace: shop}, spec: {replicas: 1}}`); r.code != 0 {
		t.Fatal(r.stderr)
	}
	if r := kubectl("patch", "parade", "web", "--subresource=status", "--type=merge", "-p", `{"status": {"replicas": 1, "selector": "app=db"}}`); r.code != 0 {
		t.Fatal(r.stderr)
	}
	if r := apply(tool("rbac", "--user", mia).stdout); r.code != 0 {
		t.Fatal(r.stderr)
	}
	for _, what := range []string{"parades", "parades/scale"} {
		r := execIn("parade/web", []string{"--as", mia, "--no-incoming"}, "hostname")
		if r.code != 125 || !strings.Contains(r.stderr, fmt.Sprintf(`%s may not get %s in namespace shop, which takes the rule {apiGroups: ["hint.example.com"], resources: [%q], verbs: ["get"]}`, mia, what, what)) {
			t.Fatalf("%s: exit code %d: %s", what, r.code, r.stderr)
		}
		_, give, ok := strings.Cut(strings.TrimSpace(r.stderr), "hint: whoever may give rights there runs: ")
		if !ok {
			t.Fatal(r.stderr)
		}
		if r := command("", "sh", "-c", give); r.code != 0 {
			t.Fatalf("%s: %s%s", give, r.stdout, r.stderr)
		}
	}
	if r := execIn("parade/web", []string{"--as", mia, "--no-incoming"}, "hostname"); r.code != 0 || r.stdout != "db-0\n" {
		t.Errorf("with them: exit code %d: %s%s", r.code, r.stdout, r.stderr)
	}
	if r := tool("ls", "-A", "--as", mia); r.code != 125 || !strings.Contains(r.stderr, "in the whole cluster") || !strings.Contains(r.stderr, "kubectl create clusterrole stead-list-pods --verb=list --resource=pods && ") {
		t.Errorf("ls -A: exit code %d: %s", r.code, r.stderr)
	}
	nothingLeft(t, 30*time.Second)
}

// stead ls in all its forms.
func TestTargetsAreListedInEveryForm(t *testing.T) {
	bare := podOf(t, "bare")
	for _, c := range []struct {
		name      string
		args      []string
		has, lack []string
	}{
		{"of the namespace", nil, []string{`(?m)^TARGET +READY +CONTAINER +USED BY$`, `(?m)^deployment/orders +2/2 +orders +-$`, `(?m)^statefulset/db +1/1 +db +-$`, `(?m)^service/bare +1/1 +bare +-$`, `(?m)^pod/client +1/1 +client +-$`},
			[]string{"coredns", `(?m)^replicaset/`}},
		{"some kinds", []string{"--types", "statefulset,deploy"}, []string{`(?m)^statefulset/db `, `(?m)^deployment/bare `}, []string{"pod/", "service/"}},
		{"of all namespaces", []string{"-A", "--types", "deployment"}, []string{`(?m)^NAMESPACE +TARGET +READY +CONTAINER +USED BY$`, `(?m)^kube-system +deployment/coredns +\d/\d +coredns +-$`, `(?m)^shop +deployment/bare +1/1 +bare +-$`}, nil},
		{"wide", []string{"-o", "wide", "--types", "deployment"}, []string{`(?m)^TARGET +READY +CONTAINER +USED BY +CONTAINERS +PODS$`, `(?m)^deployment/bare +1/1 +bare +- +istio-proxy,bare +` + bare + `$`}, nil},
		{"names", []string{"-o", "name", "--types", "deployment"}, []string{`^deployment/bare\n(deployment/\w+\n)*deployment/orders\n(deployment/\w+\n)*$`}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := tool(append([]string{"ls"}, c.args...)...)
			for _, want := range c.has {
				if !regexp.MustCompile(want).MatchString(r.stdout) {
					t.Errorf("no %s", want)
				}
			}
			for _, not := range c.lack {
				if regexp.MustCompile(not).MatchString(r.stdout) {
					t.Errorf("%s", not)
				}
			}
			if r.code != 0 || r.stderr != "" || t.Failed() {
				t.Errorf("exit code %d: %s%s", r.code, r.stdout, r.stderr)
			}
		})
	}
	t.Run("json", func(t *testing.T) {
		r := tool("ls", "-o", "json", "--types", "deployment")
		var rows []struct {
			Target, Namespace, DefaultContainer string
			Pods, Containers                    []string
			Ready                               int
		}
		if err := json.Unmarshal([]byte(r.stdout), &rows); err != nil {
			t.Fatalf("%v: %s%s", err, r.stdout, r.stderr)
		}
		found := 0
		for _, row := range rows {
			switch row.Target {
			case "deployment/shared":
				found++
				if row.Namespace != "shop" || row.DefaultContainer != "shared" || len(row.Pods) != 1 || len(row.Containers) != 2 || row.Ready != 1 {
					t.Errorf("%+v", row)
				}
			case "deployment/orders":
				found++
				if len(row.Pods) != 2 || row.Ready != 2 {
					t.Errorf("%+v", row)
				}
			}
		}
		if found != 2 {
			t.Errorf("deployments of shop: %s", r.stdout)
		}
		if r := tool("ls", "-o", "json", "--types", "cronjob"); r.stdout != "[]\n" {
			t.Errorf("none: %s", r.stdout)
		}
	})
	t.Run("wrong", func(t *testing.T) {
		if r := tool("ls", "-o", "yaml"); r.code != 125 || r.stderr != "error: --output yaml: no such form\nhint: -o name, wide or json\n" {
			t.Errorf("exit code %d: %s", r.code, r.stderr)
		}
		if r := tool("ls", "--types", "deployment,thing"); r.code != 125 || !strings.HasPrefix(r.stderr, "error: --types thing: not listed\nhint: --types pod,deployment,") {
			t.Errorf("exit code %d: %s", r.code, r.stderr)
		}
	})
}

// A registry that takes connections and says nothing is told while the node waits for it.
func TestAPullThatTakesLongIsToldMeanwhile(t *testing.T) {
	hole := exec.Command(filepath.Join(bed.Root(), "test/cluster/cluster.sh"), "net", "python3", "-c",
		`import socket,sys; s=socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind(("127.0.0.1",5998)); s.listen(64); print("there", flush=True); sys.stdin.read()`)
	node := nodeOf(t, namespace, "db-0")
	hole.Env = append(os.Environ(), "I="+strings.TrimPrefix(node, "node"))
	in, err := hole.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := hole.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := hole.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); hole.Wait() })
	if _, err := out.Read(make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	r := command("", stead, "exec", "-n", namespace, "--target", "statefulset/db", "--no-incoming", "--agent-image", "127.0.0.1:5998/stead-agent:1", "--agent-startup-timeout", "12s", "--", "true")
	if r.code != 125 || !regexp.MustCompile(`(?m)^stead: still pulling image 127.0.0.1:5998/stead-agent:1 on node `+node+` \(\d+ s\)$`).MatchString(r.stderr) {
		t.Errorf("exit code %d: %s", r.code, r.stderr)
	}
	in.Close() // the kubelet keeps the pod for as long as it pulls
	nothingLeft(t, 30*time.Second)
}
