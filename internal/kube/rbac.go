package kube

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/stead-dev/stead/internal/fault"
)

// Rule is one thing that a developer's Role must allow.
type Rule struct {
	Group    string
	Resource string
	Verbs    []string
	Why      string
	Mode     Mode // for that way of starting an agent alone, "" for both
}

// Rules are all that stead asks of the API server on a developer's behalf; stead rbac prints them,
// stead doctor asks for them, and a refusal is explained by them.
var Rules = []Rule{
	{Resource: "pods", Verbs: []string{"get", "list", "watch"}, Why: "find the target and the agent's pod"},
	{Resource: "pods/portforward", Verbs: []string{"create", "get"}, Why: "reach the agent"},
	{Resource: "events", Verbs: []string{"list"}, Why: "say why an agent does not start"},
	{Resource: "services", Verbs: []string{"get", "list"}, Why: "targets of that kind"},
	{Group: "apps", Resource: "deployments", Verbs: []string{"get", "list"}, Why: "targets of that kind"},
	{Group: "apps", Resource: "statefulsets", Verbs: []string{"get", "list"}, Why: "targets of that kind"},
	{Group: "apps", Resource: "daemonsets", Verbs: []string{"get", "list"}, Why: "targets of that kind"},
	{Group: "apps", Resource: "replicasets", Verbs: []string{"get", "list"}, Why: "targets of that kind"},
	{Group: "batch", Resource: "cronjobs", Verbs: []string{"get", "list"}, Why: "targets of that kind"},
	{Group: "batch", Resource: "jobs", Verbs: []string{"get", "list"}, Why: "targets of that kind, and agents"},
	{Group: "batch", Resource: "jobs", Verbs: []string{"create", "patch", "delete"}, Why: "start an agent, renew its lease, remove one that failed", Mode: ModeJob},
	{Resource: "pods/ephemeralcontainers", Verbs: []string{"patch"}, Why: "start an agent in the target's pod", Mode: ModeEphemeral},
}

// Role prints the least Role for a developer who starts agents by mode, and its binding to user.
func Role(namespace, user string, mode Mode) string {
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {name: stead, namespace: %s}\nrules:\n", namespace)
	for _, r := range Rules {
		if r.Mode != "" && r.Mode != mode {
			continue
		}
		fmt.Fprintf(&b, "- {apiGroups: [%q], resources: [%s], verbs: [%s]} # %s\n", r.Group, r.Resource, strings.Join(r.Verbs, ", "), r.Why)
	}
	fmt.Fprintf(&b, "---\napiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding\nmetadata: {name: stead, namespace: %s}\n"+
		"roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: stead}\nsubjects:\n%s", namespace, subject(user, namespace))
	return b.String()
}

func subject(user, namespace string) string {
	if sa, ok := strings.CutPrefix(user, "system:serviceaccount:"); ok {
		ns, name, _ := strings.Cut(sa, ":")
		return fmt.Sprintf("- {kind: ServiceAccount, name: %s, namespace: %s}\n", name, ns)
	}
	return fmt.Sprintf("- {kind: User, apiGroup: rbac.authorization.k8s.io, name: %q}\n", user)
}

// forbidden reads the API server's refusal: who may not do what.
var forbidden = regexp.MustCompile(`User "([^"]+)" cannot (\S+) resource "([^"]+)" in API group "([^"]*)"(?: in the namespace "([^"]+)")?`)

// refusals is the table of what a refusal (code 403 or 422 mostly) may mean. The first whose
// pattern is in the message explains it.
var refusals = []struct {
	pattern string
	hint    string
}{
	{"exceeded quota", "kubectl describe quota: ask for more, put the agent elsewhere with --agent-namespace, or give it less with --agent-cpu and --agent-memory"},
	{"must specify limits", "the namespace's quota wants limits: --agent-cpu 100m --agent-memory 64Mi"},
	{"must specify requests", "the namespace's quota wants requests: --agent-cpu 100m --agent-memory 64Mi"},
	{"maximum cpu usage per", "kubectl describe limitrange: give the agent less with --agent-cpu"},
	{"minimum cpu usage per", "kubectl describe limitrange: give the agent more with --agent-cpu"},
	{"maximum memory usage per", "kubectl describe limitrange: give the agent less with --agent-memory"},
	{"minimum memory usage per", "kubectl describe limitrange: give the agent more with --agent-memory"},
	{"violates PodSecurity", "the agent needs hostPID and the capabilities " + strings.Join(capabilityNames(), ", ") + ": start it in a namespace that allows them (kubectl label namespace NAME pod-security.kubernetes.io/enforce=privileged) with --agent-namespace NAME"},
	{"denied the request", "an admission webhook of the cluster refused it: ask who runs it"},
	{"no PriorityClass", "kubectl get priorityclass; choose with --agent-priority"},
	{`serviceaccount "`, "kubectl get serviceaccount; choose with --agent-service-account"},
}

// refused gives the API server's refusal its hint.
func refused(s *StatusError) error {
	if m := forbidden.FindStringSubmatch(s.Message); m != nil {
		user, verb, resource, group, ns := m[1], m[2], m[3], m[4], m[5]
		if ns == "" {
			ns = "NAMESPACE"
		}
		what := "not one of the things that stead needs always"
		for _, r := range Rules {
			if r.Resource == resource && r.Group == group && slices.Contains(r.Verbs, verb) {
				what = r.Why
			}
		}
		return fault.With(fmt.Errorf("%s may not %s %s in namespace %s (to %s): %w", user, verb, resource, ns, what, s),
			fmt.Sprintf("whoever may give rights there runs: stead rbac -n %s --user %s | kubectl apply -f -", ns, user))
	}
	if hint := refusalHint(s.Message); hint != "" {
		return fault.With(s, hint)
	}
	if s.Code == 401 {
		return fault.With(fmt.Errorf("not logged in to the cluster: %w", s), "log in again (kubectl auth whoami tells when it worked)")
	}
	return s
}

func refusalHint(message string) string {
	for _, r := range refusals {
		if strings.Contains(message, r.pattern) {
			return r.hint
		}
	}
	return ""
}
