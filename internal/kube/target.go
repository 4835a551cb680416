package kube

import (
	"errors"
	"fmt"
	"strings"

	"github.com/stead-dev/stead/internal/fault"
)

// Spec is a target as a user names it.
type Spec struct {
	Kind      string // as written, lower case: pod, deploy, rollouts.argoproj.io, label
	Name      string // or the label selector
	Container string // "" for our choice
}

func (s Spec) String() string {
	t := s.Kind + "/" + s.Name
	if s.Container != "" {
		t += "/container/" + s.Container
	}
	return t
}

const targetHint = "stead ls lists them: --target pod/NAME, deployment/NAME, statefulset/NAME, service/NAME or label/KEY=VALUE, with /container/NAME behind it where one is meant"

// ParseTarget reads KIND/NAME[/container/CONTAINER] and label/KEY=VALUE,...[/container/CONTAINER].
func ParseTarget(text string) (Spec, error) {
	bad := func(why string) (Spec, error) {
		return Spec{}, fault.With(fmt.Errorf("target %q: %s", text, why), targetHint)
	}
	kind, rest, ok := strings.Cut(text, "/")
	if !ok || kind == "" {
		return bad("want KIND/NAME")
	}
	s := Spec{Kind: strings.ToLower(kind)}
	// The last one counts: a label's key may have a slash too.
	if i := strings.LastIndex(rest, "/container/"); i >= 0 {
		rest, s.Container = rest[:i], rest[i+len("/container/"):]
		if !validName(s.Container) {
			return bad(fmt.Sprintf("%q cannot be the name of a container", s.Container))
		}
	}
	s.Name = rest
	switch {
	case s.Name == "":
		return bad("it has no name")
	case s.Kind == labelKind:
		if _, err := parseLabels(s.Name); err != nil {
			return bad(err.Error())
		}
	case !validName(s.Name):
		return bad(fmt.Sprintf("%q cannot be a name", s.Name))
	}
	return s, nil
}

const labelKind = "label"

// validName accepts every name that Kubernetes may have given; the API server knows the rest.
func validName(s string) bool {
	if s == "" || len(s) > 253 || s == "." || s == ".." {
		return false
	}
	for _, c := range s {
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c == '-' || c == '.' || c == '_' || c == ':') {
			return false
		}
	}
	return true
}

func parseLabels(s string) (map[string]string, error) {
	m := make(map[string]string)
	for _, kv := range strings.Split(s, ",") {
		k, v, ok := strings.Cut(kv, "=")
		if !ok || k == "" {
			return nil, fmt.Errorf("%q is not KEY=VALUE", kv)
		}
		m[k] = v
	}
	return m, nil
}

// how says by which way a kind leads to pods.
type how int

const (
	itself     how = iota // it is a pod
	bySelector            // spec.selector, or the scale subresource's
	byJobs                // its jobs' pods, the newest job first
)

// kindRow is one kind that may be a target. Every other kind is looked up in the cluster.
type kindRow struct {
	names    []string // the first is the one we print
	group    string   // "" for the core
	version  string
	resource string
	how      how
	listed   bool // by stead ls
}

var kinds = []kindRow{
	{[]string{"pod", "pods", "po"}, "", "v1", "pods", itself, true},
	{[]string{"deployment", "deployments", "deploy"}, "apps", "v1", "deployments", bySelector, true},
	{[]string{"statefulset", "statefulsets", "sts"}, "apps", "v1", "statefulsets", bySelector, true},
	{[]string{"daemonset", "daemonsets", "ds"}, "apps", "v1", "daemonsets", bySelector, true},
	{[]string{"replicaset", "replicasets", "rs"}, "apps", "v1", "replicasets", bySelector, false},
	{[]string{"replicationcontroller", "replicationcontrollers", "rc"}, "", "v1", "replicationcontrollers", bySelector, false},
	{[]string{"job", "jobs"}, "batch", "v1", "jobs", bySelector, true},
	{[]string{"cronjob", "cronjobs", "cj"}, "batch", "v1", "cronjobs", byJobs, true},
	{[]string{"service", "services", "svc"}, "", "v1", "services", bySelector, true},
}

func lookupKind(name string) *kindRow {
	for i := range kinds {
		for _, n := range kinds[i].names {
			if n == name {
				return &kinds[i]
			}
		}
	}
	return nil
}

// path is where the API server has the objects of the row, all of them for namespace "".
func (k *kindRow) path(namespace string) string {
	p := "/api/" + k.version
	if k.group != "" {
		p = "/apis/" + k.group + "/" + k.version
	}
	if namespace != "" {
		p += "/namespaces/" + namespace
	}
	return p + "/" + k.resource
}

// selectorString gives the query form of a selector.
func (s *Selector) selectorString() (string, error) {
	var parts []string
	for _, k := range sortedKeys(s.MatchLabels) {
		parts = append(parts, k+"="+s.MatchLabels[k])
	}
	for _, e := range s.MatchExpressions {
		switch e.Operator {
		case "In":
			parts = append(parts, e.Key+" in ("+strings.Join(e.Values, ",")+")")
		case "NotIn":
			parts = append(parts, e.Key+" notin ("+strings.Join(e.Values, ",")+")")
		case "Exists":
			parts = append(parts, e.Key)
		case "DoesNotExist":
			parts = append(parts, "!"+e.Key)
		default:
			return "", fmt.Errorf("selector with operator %q", e.Operator)
		}
	}
	if len(parts) == 0 {
		return "", errors.New("it selects no pods")
	}
	return strings.Join(parts, ","), nil
}
