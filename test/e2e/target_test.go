//go:build e2e

package e2e

import (
	"strings"
	"testing"
)

func TestEveryKindOfTargetLeadsToItsPod(t *testing.T) {
	r := apply(`
apiVersion: batch/v1
kind: Job
metadata: {name: once, namespace: shop}
spec: {template: {metadata: {labels: {app: once}}, spec: {restartPolicy: Never, terminationGracePeriodSeconds: 0, containers: [{name: once, image: "registry.local/e2e:1", args: [idle]}]}}}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: often, namespace: shop}
spec: {schedule: "0 0 1 1 *", jobTemplate: {spec: {template: {metadata: {labels: {app: often}}, spec: {restartPolicy: Never, terminationGracePeriodSeconds: 0, containers: [{name: often, image: "registry.local/e2e:1", args: [idle]}]}}}}}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: everywhere, namespace: shop}
spec: {selector: {matchLabels: {app: everywhere}}, template: {metadata: {labels: {app: everywhere}}, spec: {terminationGracePeriodSeconds: 0, containers: [{name: everywhere, image: "registry.local/e2e:1", args: [idle]}]}}}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: rollouts.argoproj.io}
spec:
  group: argoproj.io
  scope: Namespaced
  names: {plural: rollouts, singular: rollout, kind: Rollout, shortNames: [ro]}
  versions:
  - name: v1alpha1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
    subresources: {status: {}, scale: {specReplicasPath: .spec.replicas, statusReplicasPath: .status.replicas, labelSelectorPath: .status.selector}}
`)
	if r.code != 0 {
		t.Fatal(r.stderr)
	}
	t.Cleanup(func() {
		kubectl("delete", "crd", "rollouts.argoproj.io")
		kubectl("delete", "job/once", "cronjob/often", "daemonset/everywhere", "--wait=false")
	})
	kubectl("wait", "--for=condition=Established", "crd/rollouts.argoproj.io", "--timeout=30s")
	if r := kubectl("create", "job", "--from=cronjob/often", "often-1"); r.code != 0 {
		t.Fatal(r.stderr)
	}
	t.Cleanup(func() { kubectl("delete", "job/often-1", "--wait=false") })
	// Of one the pods are known by its selector, and of one by the scale subresource alone: Argo's has no
	// selector where it refers to a workload.
	if r := apply(`
{apiVersion: argoproj.io/v1alpha1, kind: Rollout, metadata: {name: blue, namespace: shop}, spec: {replicas: 1, strategy: {blueGreen: {activeService: shared}}, selector: {matchLabels: {app: shared}, matchExpressions: [{key: app, operator: NotIn, values: [bare]}]},
  template: {metadata: {labels: {app: shared}}, spec: {containers: [{name: app, image: "registry.local/e2e:1"}]}}}}
---
{apiVersion: argoproj.io/v1alpha1, kind: Rollout, metadata: {name: canary, namespace: shop}, spec: {replicas: 1, strategy: {canary: {}}, workloadRef: {apiVersion: apps/v1, kind: Deployment, name: bare}}}
`); r.code != 0 {
		t.Fatal(r.stderr)
	}
	if r := kubectl("patch", "rollout", "canary", "--subresource=status", "--type=merge", "-p", `{"status":{"selector":"app=bare"}}`); r.code != 0 {
		t.Fatal(r.stderr)
	}
	for _, app := range []string{"once", "often", "everywhere"} {
		if r := kubectl("wait", "--for=condition=Ready", "pod", "-l", "app="+app, "--timeout=60s"); r.code != 0 {
			t.Fatal(r.stderr)
		}
	}
	bare := podOf(t, "bare")
	rs := kubectl("get", "pod", bare, "-o", "jsonpath={.metadata.ownerReferences[0].name}").stdout
	for _, c := range []struct{ target, pod string }{
		{"pod/" + bare, bare},
		{"po/" + bare + "/container/bare", bare},
		{"deployment/bare", bare},
		{"deploy/bare/container/istio-proxy", bare},
		{"replicaset/" + rs, bare},
		{"service/bare", bare},
		{"label/app=bare", bare},
		{"rollout/blue", podOf(t, "shared")},
		{"rollout/canary", bare},
		{"rollouts.argoproj.io/canary", bare},
		{"statefulset/db", "db-0"},
		{"daemonset/everywhere", podOf(t, "everywhere")},
		{"job/once", podOf(t, "once")},
		{"cronjob/often", podOf(t, "often")},
	} {
		t.Run(c.target, func(t *testing.T) {
			if r := execIn(c.target, []string{"--no-incoming"}, "hostname"); strings.TrimSpace(r.stdout) != c.pod || r.code != 0 {
				t.Errorf("exit code %d, host name %q, want %s: %s", r.code, r.stdout, c.pod, r.stderr)
			}
		})
	}
	nothingLeft(t, soon)
}

func TestOfTwoContainersTheSidecarIsNotChosen(t *testing.T) {
	// The sidecar has no /var/data. Its processes are seen by the app's, or are not.
	for _, name := range []string{"bare", "shared"} {
		for _, c := range []struct{ target, want string }{
			{"deployment/" + name, name + "\n/var/data/link\n"},
			{"deployment/" + name + "/container/istio-proxy", "istio-proxy\n"},
		} {
			r := execIn(c.target, []string{"--no-incoming"}, "sh", "-c", "echo $CONTAINER; ls /var/data/link 2>/dev/null")
			if r.stdout != c.want {
				t.Errorf("%s: %q, want %q: %s", c.target, r.stdout, c.want, r.stderr)
			}
		}
	}
}

func TestAReplicaCanBeChosen(t *testing.T) {
	names := strings.Fields(kubectl("get", "pods", "-l", "app=orders", "-o", "jsonpath={.items[*].metadata.name}").stdout)
	if len(names) != 2 {
		t.Fatalf("replicas %v", names)
	}
	for _, n := range names {
		if r := execIn("deployment/orders", []string{"--no-incoming", "--replica", n}, "hostname"); strings.TrimSpace(r.stdout) != n {
			t.Errorf("--replica %s: %q %s", n, r.stdout, r.stderr)
		}
	}
	r := execIn("deployment/orders", []string{"--replica", "none"}, "hostname")
	if r.code != 125 || !strings.Contains(r.stderr, "has no pod none") || !strings.Contains(r.stderr, names[0]) {
		t.Errorf("--replica none: %d %s", r.code, r.stderr)
	}
}
