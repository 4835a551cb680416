//go:build e2e

package e2e

import (
	"strings"
	"testing"
	"time"
)

const podOfState = `
{apiVersion: v1, kind: Pod, metadata: {name: NAME, namespace: NS}, spec: {terminationGracePeriodSeconds: 0, containers: [{name: app, image: "IMAGE", imagePullPolicy: IfNotPresent, args: [ARG]}]}}
`

func pod(name, ns, image, arg string) string {
	return strings.NewReplacer("NAME", name, "NS", ns, "IMAGE", image, "ARG", arg).Replace(podOfState)
}

// named bounds how long a failure may take to be named. No row may wait for a time-out: that of the start
// is far longer.
const named = 30 * time.Second

// fails runs a session that must fail before that.
func fails(target string, flags ...string) result {
	args := append([]string{"exec", "-q", "-n", namespace, "--target", target, "--agent-startup-timeout", "5m"}, flags...)
	return within(named, "", stead, append(args, "--", "true")...)
}

// TestFailuresAreNamed: every row is a cause, the words that name it, and the words that help.
func TestFailuresAreNamed(t *testing.T) {
	const img = "registry.local/e2e:1"
	r := apply("---" + pod("crashing", namespace, img, "no-such-command") + "---" + pod("unpullable", namespace, "registry.invalid/none:1", "x") +
		`
---
{apiVersion: v1, kind: Pod, metadata: {name: ended, namespace: shop}, spec: {restartPolicy: Never, containers: [{name: app, image: "registry.local/e2e:1", args: [env]}]}}
---
{apiVersion: batch/v1, kind: Job, metadata: {name: done, namespace: shop}, spec: {template: {metadata: {labels: {app: done}}, spec: {restartPolicy: Never, containers: [{name: app, image: "registry.local/e2e:1", args: [env]}]}}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: unschedulable, namespace: shop}, spec: {nodeSelector: {no: such}, containers: [{name: app, image: "registry.local/e2e:1"}]}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: shop-restricted, labels: {pod-security.kubernetes.io/enforce: restricted}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: shop-quota}}
---
{apiVersion: v1, kind: ResourceQuota, metadata: {name: q, namespace: shop-quota}, spec: {hard: {pods: "1"}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: shop-limits}}
---
{apiVersion: v1, kind: LimitRange, metadata: {name: l, namespace: shop-limits}, spec: {limits: [{type: Container, max: {memory: 32Mi}, default: {memory: 16Mi}, defaultRequest: {memory: 16Mi}}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: app, namespace: shop-restricted}, spec: {terminationGracePeriodSeconds: 0, securityContext: {runAsNonRoot: true, runAsUser: 1000, seccompProfile: {type: RuntimeDefault}}, containers: [{name: app, image: "registry.local/e2e:1", args: [idle], securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}}]}}
---` + pod("app", "shop-quota", img, "idle") + "---" + pod("app", "shop-limits", img, "idle"))
	if r.code != 0 {
		t.Fatal(r.stderr)
	}
	t.Cleanup(func() {
		kubectl("delete", "namespace", "shop-restricted", "shop-quota", "shop-limits", "--wait=false")
		kubectl("delete", "pod/crashing", "pod/unpullable", "pod/ended", "job/done", "pod/unschedulable", "--wait=false")
	})
	for _, ns := range []string{"shop-restricted", "shop-quota", "shop-limits"} {
		if r := kubectl("-n", ns, "wait", "--for=condition=Ready", "pod/app", "--timeout=60s"); r.code != 0 {
			t.Fatal(r.stderr)
		}
	}
	state := func(name, path, want string) {
		t.Helper()
		for end := time.Now().Add(limit); ; time.Sleep(200 * time.Millisecond) {
			got := kubectl("get", "pod", name, "-o", "jsonpath={"+path+"}").stdout
			if strings.Contains(got, want) {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("pod %s: %s is %q", name, path, got)
			}
		}
	}
	state("crashing", ".status.containerStatuses[0].state.waiting.reason", "CrashLoopBackOff")
	state("unpullable", ".status.containerStatuses[0].state.waiting.reason", "Err")
	state("unschedulable", ".status.conditions[0].message", "node")
	state("ended", ".status.phase", "Succeeded")
	if r := kubectl("wait", "--for=condition=Complete", "job/done", "--timeout=60s"); r.code != 0 {
		t.Fatal(r.stderr)
	}
	for _, c := range []struct {
		name, target string
		flags        []string
		error, hint  string
	}{
		{"no such deployment", "deployment/none", nil, "deployment/none: not found in namespace shop", "stead ls"},
		{"no such namespace", "deployment/none", []string{"-n", "none"}, "not found in namespace none", "-n"},
		{"no such kind", "thing/x", nil, `no kind "thing"`, "--target"},
		{"no such container", "deployment/bare/container/none", nil, "no container none", "istio-proxy, bare"},
		{"no pods", "label/app=none", nil, "no pods", "kubectl"},
		{"not a target", "orders", nil, "want KIND/NAME", "--target"},
		{"a target that keeps crashing", "pod/crashing", nil, "keeps crashing", "kubectl -n shop logs crashing -c app --previous"},
		{"a target without its image", "pod/unpullable", nil, "not running", "describe pod unpullable"},
		{"a target that has ended", "pod/ended", nil, "has ended: Completed, exit code 0", "kubectl -n shop logs ended -c app"},
		{"a job that is complete", "job/done", nil, "has ended: Completed, exit code 0", "kubectl -n shop logs done-"},
		{"a target without a node", "pod/unschedulable", nil, "has no node", "describe pod unschedulable"},
		{"no image named", "deployment/bare", []string{"--agent-image", ""}, "no image for the agent", "stead agent image --push"},
		{"an image that is nowhere", "deployment/bare", []string{"--agent-image", "127.0.0.1:1/none:1"}, "image cannot be pulled", "does the image 127.0.0.1:1/none:1 exist"},
		{"an image of a registry that has no name", "deployment/bare", []string{"--agent-image", "registry.invalid/none:1"}, "image cannot be pulled", "does the image registry.invalid/none:1 exist"},
		{"an image of a registry that is not there", "deployment/bare", []string{"--agent-image", "10.88.0.99:5000/none:1"}, "image cannot be pulled", "does the image 10.88.0.99:5000/none:1 exist"},
		{"an image that is not there and not to be pulled", "deployment/bare", []string{"--agent-image", "registry.local/none:1", "--agent-pull-policy", "Never"}, "not on the node", "registry.local/none:1"},
		{"an image name that is none", "deployment/bare", []string{"--agent-image", "UPPER case"}, "no valid name", "--agent-image"},
		{"an image that is no agent", "deployment/bare", []string{"--agent-image", img}, "ended at once", ""},
		{"a node that is full", "deployment/bare", []string{"--agent-cpu", "request=1000"}, "OutOfcpu", "the node is full"},
		{"no such priority class", "deployment/bare", []string{"--agent-priority", "none"}, "PriorityClass", "kubectl get priorityclass"},
		{"no such service account", "deployment/bare", []string{"--agent-service-account", "none"}, "serviceaccount", "kubectl get serviceaccount"},
		{"PodSecurity restricted", "pod/app", []string{"-n", "shop-restricted"}, "violates PodSecurity", "SYS_ADMIN, SYS_PTRACE, NET_ADMIN, NET_RAW"},
		{"a quota that is used up", "pod/app", []string{"-n", "shop-quota"}, "exceeded quota", "kubectl describe quota"},
		{"a limit range", "pod/app", []string{"-n", "shop-limits", "--agent-memory", "64Mi"}, "maximum memory usage", "--agent-memory"},
		{"no such context", "deployment/bare", []string{"--context", "none"}, "none", "kubectl config get-contexts"},
		{"no such kubeconfig", "deployment/bare", []string{"--kubeconfig", "/no/such"}, "/no/such", "kubectl config view"},
		{"no rights", "deployment/bare", []string{"--as", "eve"}, `eve may not get deployments in namespace shop`, "stead rbac -n shop --user eve"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := fails(c.target, c.flags...)
			lines := strings.Split(strings.TrimSpace(r.stderr), "\n")
			if r.code != 125 || len(lines) != 2 && c.hint != "" || !strings.HasPrefix(lines[0], "error: ") || !strings.Contains(lines[0], c.error) {
				t.Fatalf("exit code %d, want an error with %q:\n%s", r.code, c.error, r.stderr)
			}
			if c.hint != "" && (!strings.HasPrefix(lines[1], "hint: ") || !strings.Contains(lines[1], c.hint)) {
				t.Errorf("want a hint with %q:\n%s", c.hint, r.stderr)
			}
		})
	}
	t.Run("PodSecurity restricted, the agent elsewhere", func(t *testing.T) {
		r := execIn("pod/app", []string{"-n", "shop-restricted", "--agent-namespace", namespace, "--no-incoming"}, "hostname")
		if r.code != 0 || r.stdout != "app\n" {
			t.Errorf("exit code %d: %s%s", r.code, r.stdout, r.stderr)
		}
	})
	nothingLeft(t, soon)
}

func TestAClusterThatIsNotThereIsNamed(t *testing.T) {
	server := kubectl("config", "view", "-o", "jsonpath={.clusters[0].cluster.server}").stdout
	config := strings.ReplaceAll(kubectl("config", "view", "--raw").stdout, server, "https://127.0.0.1:1")
	r := command(config, stead, "exec", "--kubeconfig", "/dev/stdin", "--target", "deployment/orders", "--", "true")
	if r.code != 125 || !strings.Contains(r.stderr, "connection refused") || !strings.Contains(r.stderr, "kubectl cluster-info") {
		t.Errorf("exit code %d: %s", r.code, r.stderr)
	}
}
