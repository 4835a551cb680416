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
	At       Place
	Why      string
	Mode     Mode // for that way of starting an agent alone, "" for both
}

// Place says in which namespace a rule is needed.
type Place int

// The places: in most cases they are one namespace.
const (
	AtTarget Place = 1 << iota
	AtAgent
)

// Rules are all that stead asks of the API server on a developer's behalf; stead rbac prints them,
// stead doctor asks for them, and a refusal is explained by them.
var Rules = []Rule{
	{Resource: "pods", Verbs: []string{"get", "list", "watch"}, At: AtTarget | AtAgent, Why: "find the target and the agent's pod"},
	{Resource: "pods/portforward", Verbs: []string{"create", "get"}, At: AtAgent, Why: "reach the agent"},
	{Resource: "events", Verbs: []string{"list"}, At: AtAgent, Why: "say why an agent does not start"},
	{Resource: "services", Verbs: []string{"get", "list"}, At: AtTarget, Why: "targets of that kind"},
	{Resource: "replicationcontrollers", Verbs: []string{"get"}, At: AtTarget, Why: "targets of that kind"},
	{Group: "apps", Resource: "deployments", Verbs: []string{"get", "list"}, At: AtTarget, Why: "targets of that kind"},
	{Group: "apps", Resource: "statefulsets", Verbs: []string{"get", "list"}, At: AtTarget, Why: "targets of that kind"},
	{Group: "apps", Resource: "daemonsets", Verbs: []string{"get", "list"}, At: AtTarget, Why: "targets of that kind"},
	{Group: "apps", Resource: "replicasets", Verbs: []string{"get"}, At: AtTarget, Why: "targets of that kind"},
	{Group: "batch", Resource: "cronjobs", Verbs: []string{"get", "list"}, At: AtTarget, Why: "targets of that kind"},
	{Group: "batch", Resource: "jobs", Verbs: []string{"get", "list"}, At: AtTarget | AtAgent, Why: "targets of that kind, and agents"},
	{Group: "batch", Resource: "jobs", Verbs: []string{"create", "patch", "delete"}, At: AtAgent, Why: "start an agent, renew its lease, remove one that failed", Mode: ModeJob},
	{Resource: "pods/ephemeralcontainers", Verbs: []string{"patch"}, At: AtTarget, Why: "start an agent in the target's pod", Mode: ModeEphemeral},
}

// Grant is what a developer is to be allowed.
type Grant struct {
	User           string // or system:serviceaccount:NAMESPACE:NAME
	Namespace      string // of their targets
	AgentNamespace string // "" for the same
	Mode           Mode
	Nodes          bool // to look at nodes, too: for doctor alone
}

// places gives each namespace of the grant what is needed there, the targets' first.
func (g *Grant) places() (out []place) {
	if g.AgentNamespace == "" || g.AgentNamespace == g.Namespace || g.Mode == ModeEphemeral { // that one is in the target's pod
		role := "stead"
		if g.Mode == ModeEphemeral {
			role += "-ephemeral"
		}
		return []place{{g.Namespace, AtTarget | AtAgent, role}}
	}
	return []place{{g.Namespace, AtTarget, "stead-targets"}, {g.AgentNamespace, AtAgent, "stead-agents"}}
}

// place is a namespace, what is there, and the name of a Role for it: the same name, the same rules.
type place struct {
	namespace string
	at        Place
	role      string
}

// rules are those of a place.
func (g *Grant) rules(p place) (out []Rule) {
	for _, r := range Rules {
		if r.At&p.at != 0 && (r.Mode == "" || r.Mode == g.Mode) {
			out = append(out, r)
		}
	}
	return out
}

// Roles prints the least Roles of a grant and their bindings, for kubectl apply -f -. Each user has a
// binding of their own: what is applied for one takes nothing from another.
func (g *Grant) Roles() string {
	var parts []string
	for _, p := range g.places() {
		var b strings.Builder
		fmt.Fprintf(&b, "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {name: %s, namespace: %s}\nrules:\n", p.role, p.namespace)
		for _, r := range g.rules(p) {
			fmt.Fprintf(&b, "- {apiGroups: [%q], resources: [%s], verbs: [%s]} # %s\n", r.Group, r.Resource, strings.Join(r.Verbs, ", "), r.Why)
		}
		parts = append(parts, b.String(), fmt.Sprintf("apiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding\nmetadata: {name: %q, namespace: %s}\n"+
			"roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: %s}\nsubjects:\n%s", g.binding(p.role), p.namespace, p.role, subject(g.User)))
	}
	if g.Nodes {
		parts = append(parts, "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {name: stead-nodes}\nrules:\n"+
			"- {apiGroups: [\"\"], resources: [nodes], verbs: [get, list]} # stead doctor: their kernels, architectures and images\n",
			fmt.Sprintf("apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\nmetadata: {name: %q}\n", g.binding("stead-nodes"))+
				"roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: stead-nodes}\nsubjects:\n"+subject(g.User))
	}
	return strings.Join(parts, "---\n")
}

// binding is the name of the user's binding to a role. Names of RBAC may have all but these.
func (g *Grant) binding(role string) string {
	return role + "-" + strings.NewReplacer("/", "-", "%", "-").Replace(g.User)
}

// command is the one that gives the grant.
func (g *Grant) command() string {
	c := "stead rbac -n " + g.Namespace
	if len(g.places()) > 1 {
		c += " --agent-namespace " + g.AgentNamespace
	}
	if g.Mode == ModeEphemeral {
		c += " --agent ephemeral"
	}
	if g.Nodes {
		c += " --nodes"
	}
	return "whoever may give rights there runs: " + c + " --user " + g.User + " | kubectl apply -f -"
}

func subject(user string) string {
	if sa, ok := strings.CutPrefix(user, "system:serviceaccount:"); ok {
		ns, name, _ := strings.Cut(sa, ":")
		return fmt.Sprintf("- {kind: ServiceAccount, name: %s, namespace: %s}\n", name, ns)
	}
	return fmt.Sprintf("- {kind: User, apiGroup: rbac.authorization.k8s.io, name: %q}\n", user)
}

// forbidden reads the API server's refusal: who may not do what.
var forbidden = regexp.MustCompile(`User "([^"]+)" cannot (\S+) resource "([^"]+)" in API group "([^"]*)"(?: in the namespace "([^"]+)")?`)

var podSecurityHint = "the agent needs hostPID and the capabilities " + strings.Join(capabilityNames(), ", ") + ": start it in a namespace that allows them (kubectl label namespace NAME pod-security.kubernetes.io/enforce=privileged) with --agent-namespace NAME"

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
	{"violates PodSecurity", podSecurityHint},
	{"would violate PodSecurity", podSecurityHint}, // a warning about a Job
	{"denied the request", "an admission webhook of the cluster refused it: ask who runs it"},
	{"no PriorityClass", "kubectl get priorityclass; choose with --agent-priority"},
	{`serviceaccount "`, "kubectl get serviceaccount; choose with --agent-service-account"},
}

// refused gives the API server's refusal its hint.
func refused(s *StatusError) error {
	if m := forbidden.FindStringSubmatch(s.Message); m != nil {
		return denied(&want{user: m[1], verb: m[2], resource: m[3], group: m[4], namespace: m[5]}, s)
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

// want is what somebody may not do; namespace is "" for the whole cluster.
type want struct{ user, verb, resource, group, namespace string }

// denied explains that something may not be done, and gives the command that allows it: all of Rules
// where it is one of them, else it alone.
func denied(w *want, cause error) error {
	err := fmt.Errorf("%s may not %s %s", w.user, w.verb, w.resource)
	if w.namespace == "" {
		err = fmt.Errorf("%w in the whole cluster", err)
	} else {
		err = fmt.Errorf("%w in namespace %s", err, w.namespace)
	}
	for _, r := range Rules {
		if r.Resource == w.resource && r.Group == w.group && slices.Contains(r.Verbs, w.verb) && w.namespace != "" {
			g := Grant{User: w.user, Namespace: w.namespace, Mode: r.Mode}
			return fault.With(fmt.Errorf("%w (to %s): %w", err, r.Why, cause), g.command())
		}
	}
	return fault.With(fmt.Errorf("%w, which takes the rule {apiGroups: [%q], resources: [%q], verbs: [%q]}: %w", err, w.group, w.resource, w.verb, cause), w.command())
}

// command allows that one thing.
func (w *want) command() string {
	where, role, binding := "-n "+w.namespace+" ", "role", "rolebinding"
	if w.namespace == "" {
		where, role, binding = "", "clusterrole", "clusterrolebinding"
	}
	name := "stead-" + w.verb + "-" + strings.ReplaceAll(w.resource, "/", "-")
	resource, sub, isSub := strings.Cut(w.resource, "/")
	if w.group != "" {
		resource += "." + w.group
	}
	if isSub {
		resource += "/" + sub
	}
	who := "--user=" + w.user
	if sa, ok := strings.CutPrefix(w.user, "system:serviceaccount:"); ok {
		who = "--serviceaccount=" + sa
	}
	return fmt.Sprintf("whoever may give rights there runs: kubectl %[1]screate %[2]s %[4]s --verb=%[5]s --resource=%[6]s && kubectl %[1]screate %[3]s %[4]s --%[2]s=%[4]s %[7]s",
		where, role, binding, name, w.verb, resource, who)
}
