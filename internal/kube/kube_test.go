package kube

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stead-dev/stead/internal/fault"
)

var update = flag.Bool("update", false, "write the golden files")

func TestTargetsAreRead(t *testing.T) {
	for _, c := range []struct {
		text string
		want Spec
		err  string
	}{
		{"pod/orders-0", Spec{"pod", "orders-0", ""}, ""},
		{"Deployment/orders", Spec{"deployment", "orders", ""}, ""},
		{"deploy/orders/container/app", Spec{"deploy", "orders", "app"}, ""},
		{"rollouts.argoproj.io/x", Spec{"rollouts.argoproj.io", "x", ""}, ""},
		{"label/app=orders,tier=shop", Spec{"label", "app=orders,tier=shop", ""}, ""},
		{"label/app.kubernetes.io/name=orders/container/app", Spec{"label", "app.kubernetes.io/name=orders", "app"}, ""},
		{"orders", Spec{}, "want KIND/NAME"},
		{"/orders", Spec{}, "want KIND/NAME"},
		{"pod/", Spec{}, "no name"},
		{"pod/a/b", Spec{}, "cannot be a name"},
		{"pod/..", Spec{}, "cannot be a name"},
		{"pod/x/container/", Spec{}, "cannot be the name of a container"},
		{"label/app", Spec{}, "not KEY=VALUE"},
	} {
		got, err := ParseTarget(c.text)
		if got != c.want || (err == nil) != (c.err == "") || err != nil && (!strings.Contains(err.Error(), c.err) || fault.Hint(err) == "") {
			t.Errorf("%s: %+v, %v", c.text, got, err)
		}
	}
}

func FuzzParseTarget(f *testing.F) {
	for _, s := range []string{"pod/a", "label/a=b/container/c", "a/b/c", "/container/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := ParseTarget(s)
		if err != nil {
			return
		}
		if again, err := ParseTarget(got.String()); err != nil || again != got {
			t.Errorf("%q reads as %+v, and that as %+v, %v", s, got, again, err)
		}
	})
}

func podWith(names ...string) *Pod {
	p := &Pod{Meta: Meta{Name: "p", Namespace: "shop", UID: "uid-1"}, Spec: PodSpec{NodeName: "node1"}}
	for _, n := range names {
		p.Spec.Containers = append(p.Spec.Containers, Container{Name: n})
		p.Status.ContainerStatuses = append(p.Status.ContainerStatuses, ContainerStatus{
			Name: n, ContainerID: "containerd://" + strings.Repeat("ab", 32), State: ContainerState{Running: &Running{}}})
	}
	return p
}

func TestTheContainerThatIsMeant(t *testing.T) {
	noted := podWith("a", "b")
	noted.Meta.Annotations = map[string]string{defaultContainer: "b"}
	stale := podWith("a", "b")
	stale.Meta.Annotations = map[string]string{defaultContainer: "gone"}
	for _, c := range []struct {
		name  string
		p     *Pod
		asked string
		want  string
	}{
		{"asked for", podWith("a", "b"), "b", "b"},
		{"asked against the annotation", noted, "a", "a"},
		{"annotated", noted, "", "b"},
		{"an annotation of none", stale, "", "a"},
		{"the first that is no sidecar", podWith("istio-proxy", "vault-agent", "app", "other"), "", "app"},
		{"sidecars alone", podWith("istio-proxy", "envoy"), "", "istio-proxy"},
		{"none of that name", podWith("a"), "x", ""},
		{"none at all", podWith(), "", ""},
	} {
		got, why, err := ChooseContainer(c.p, c.asked)
		if got != c.want || (err == nil) != (c.want != "") || err == nil && why == "" {
			t.Errorf("%s: %q (%s), %v", c.name, got, why, err)
		}
	}
}

func TestReadyPodsComeFirstThenByName(t *testing.T) {
	var pods []Pod
	for _, s := range []struct {
		name  string
		ready bool
		runs  bool
	}{{"d", true, true}, {"a", false, false}, {"c", true, true}, {"b", false, true}} {
		p := podWith("app")
		p.Meta.Name = s.name
		if s.ready {
			p.Status.Conditions = []Condition{{Type: "Ready", Status: "True"}}
		}
		if !s.runs {
			p.Status.ContainerStatuses[0].State = ContainerState{Waiting: &ContainerReason{Reason: "ContainerCreating"}}
		}
		pods = append(pods, *p)
	}
	order(pods, "")
	var got []string
	for _, p := range pods {
		got = append(got, p.Meta.Name)
	}
	if diff := cmp.Diff([]string{"c", "d", "b", "a"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestTheAgentsJobIsAsAgreed(t *testing.T) {
	o := Options{Image: "registry.local/stead-agent:1", PullSecrets: []string{"pull"}, Labels: map[string]string{"team": "shop", labelAgent: "mine"}}.withDefaults()
	m := markOf(podWith("app"), "app")
	j := newJob(m, &o, m.agentName(&o, 0), "secret")
	got, err := json.MarshalIndent(j, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	const golden = "testdata/job.json"
	if *update {
		if err := os.WriteFile(golden, append(got, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)+"\n"); diff != "" {
		t.Error(diff)
	}
	// The pod that the cluster makes of it is read back.
	p := &Pod{Meta: j.Spec.Template.Meta, Spec: j.Spec.Template.Spec}
	if a := agentOf(p); a == nil || !a.fits(m) || a.secret != "secret" || a.port != agentPort || a.Job != j.Meta.Name {
		t.Errorf("read back as %+v", a)
	}
	p.Status.Phase = "Succeeded"
	if a := agentOf(p); a.fits(m) {
		t.Error("an agent that has ended fits")
	}
	if a := agentOf(podWith("agent")); a != nil {
		t.Errorf("somebody else's pod is our agent: %+v", a)
	}
}

func TestAnAgentInAnotherNamespaceHasNoOwnerThere(t *testing.T) {
	o := Options{Namespace: "tools"}.withDefaults()
	m := markOf(podWith("app"), "app")
	if j := newJob(m, &o, "x", "s"); j.Meta.Namespace != "tools" || len(j.Meta.OwnerReferences) != 0 {
		t.Errorf("namespace %s, owners %v", j.Meta.Namespace, j.Meta.OwnerReferences)
	}
}

func TestNamesOfAgentsAreNamesAndDiffer(t *testing.T) {
	o := Options{}
	long := podWith("app")
	long.Meta.Name = strings.Repeat("a-very.long-name", 15)
	m := markOf(long, "app")
	seen := make(map[string]bool)
	for nth := range 3 {
		n := m.agentName(&o, nth)
		// A Job's pods add six characters, and a label holds 63.
		if len(n) > 57 || strings.ContainsAny(n, "._") || seen[n] {
			t.Errorf("name %q", n)
		}
		seen[n] = true
	}
	other := m
	other.id = strings.Repeat("cd", 32)
	if seen[other.agentName(&o, 0)] {
		t.Error("two containers, one name")
	}
}

func TestRefusalsAreExplained(t *testing.T) {
	for _, c := range []struct{ message, hint string }{
		{`pods "x" is forbidden: exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1`, "kubectl describe quota"},
		{`pods "x" is forbidden: violates PodSecurity "baseline:latest": host namespaces (hostPID=true)`, "--agent-namespace"},
		{`deployments.apps "orders" is forbidden: User "eve" cannot get resource "deployments" in API group "apps" in the namespace "shop"`, "stead rbac -n shop --user eve"},
		{`jobs.batch is forbidden: User "system:serviceaccount:ci:bot" cannot create resource "jobs" in API group "batch" in the namespace "shop"`, "--user system:serviceaccount:ci:bot"},
		{`rollouts.argoproj.io "web" is forbidden: User "eve" cannot get resource "rollouts" in API group "argoproj.io" in the namespace "shop"`,
			"kubectl -n shop create role stead-get-rollouts --verb=get --resource=rollouts.argoproj.io && kubectl -n shop create rolebinding stead-get-rollouts --role=stead-get-rollouts --user=eve"},
		{`rollouts.argoproj.io "web" is forbidden: User "system:serviceaccount:ci:bot" cannot get resource "rollouts/scale" in API group "argoproj.io" in the namespace "shop"`,
			"create role stead-get-rollouts-scale --verb=get --resource=rollouts.argoproj.io/scale && kubectl -n shop create rolebinding stead-get-rollouts-scale --role=stead-get-rollouts-scale --serviceaccount=ci:bot"},
		{`replicationcontrollers "old" is forbidden: User "eve" cannot get resource "replicationcontrollers" in API group "" in the namespace "shop"`, "stead rbac -n shop --user eve"},
		{`pods "x" is forbidden: User "eve" cannot patch resource "pods/ephemeralcontainers" in API group "" in the namespace "shop"`, "stead rbac -n shop --agent ephemeral --user eve"},
		{`pods is forbidden: User "eve" cannot list resource "pods" in API group "" at the cluster scope`, "kubectl create clusterrole stead-list-pods --verb=list --resource=pods && kubectl create clusterrolebinding stead-list-pods --clusterrole=stead-list-pods --user=eve"},
		{`admission webhook "no.example" denied the request: not here`, "webhook"},
	} {
		err := refused(&StatusError{Code: 403, Message: c.message})
		var s *StatusError
		if !strings.Contains(fault.Hint(err), c.hint) || !errors.As(err, &s) {
			t.Errorf("%s: %v, hint %q", c.message, err, fault.Hint(err))
		}
	}
}
