package kube

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/stead-dev/stead/internal/fault"
)

// Found is what a target resolves to: its pods, the best first, in an order that depends on
// nothing but the pods.
type Found struct {
	Spec      Spec
	Namespace string
	Pods      []Pod
	Container string // of Pods[0]
	Why       string // why that container

	query url.Values // that finds the target's pods again
}

// Resolve finds the pods of a target. The first of them is running.
func (c *Client) Resolve(ctx context.Context, s Spec, namespace string) (*Found, error) {
	if namespace == "" {
		namespace = c.Namespace
	}
	pods, query, err := c.pods(ctx, s, namespace)
	if err != nil {
		return nil, err
	}
	if len(pods) == 0 {
		return nil, fault.With(fmt.Errorf("target %s: it has no pods in namespace %s", s, namespace),
			"kubectl -n "+namespace+" get "+s.Kind+" (is it scaled to 0?)")
	}
	f := &Found{Spec: s, Namespace: namespace, Pods: pods, query: query}
	var first error
	order(f.Pods, s.Container)
	for i := range f.Pods {
		f.Pods[i].Meta.Namespace = namespace
		name, why, err := ChooseContainer(&f.Pods[i], s.Container)
		if err == nil {
			err = usable(&f.Pods[i], name)
		}
		if err == nil {
			f.Pods[0], f.Pods[i] = f.Pods[i], f.Pods[0]
			f.Container, f.Why = name, why
			return f, nil
		}
		if first == nil {
			first = err
		}
	}
	return nil, fmt.Errorf("target %s: %w", s, first)
}

// choose gives the pod of that name, the first for "".
func (f *Found) choose(name string) (*Pod, error) {
	var names []string
	for i := range f.Pods {
		if p := &f.Pods[i]; name == "" || name == OneReplica || p.Meta.Name == name {
			return p, usable(p, f.Container)
		} else {
			names = append(names, p.Meta.Name)
		}
	}
	return nil, fault.With(fmt.Errorf("target %s has no pod %s", f.Spec, name), "its pods: "+strings.Join(names, ", "))
}

// order sorts pods: ready ones first, then running ones, then by name.
func order(pods []Pod, container string) {
	rank := func(p *Pod) int {
		name, _, err := ChooseContainer(p, container)
		switch {
		case err != nil || usable(p, name) != nil:
			return 2
		case has(p.Status.Conditions, "Ready") == nil:
			return 1
		}
		return 0
	}
	slices.SortStableFunc(pods, func(a, b Pod) int {
		return cmp.Or(cmp.Compare(rank(&a), rank(&b)), cmp.Compare(a.Meta.Name, b.Meta.Name))
	})
}

// pods gives the pods of a target, and the query that finds them.
func (c *Client) pods(ctx context.Context, s Spec, ns string) ([]Pod, url.Values, error) {
	if s.Kind == labelKind {
		return c.podsBySelector(ctx, ns, s.Name)
	}
	k := lookupKind(s.Kind)
	if k == nil {
		var err error
		if k, err = c.discover(ctx, s); err != nil {
			return nil, nil, err
		}
	}
	switch k.how {
	case itself:
		var p Pod
		if err := c.object(ctx, k, ns, s, &p); err != nil {
			return nil, nil, err
		}
		return []Pod{p}, onePod(s.Name), nil
	case byJobs:
		return c.podsOfCronJob(ctx, k, ns, s)
	}
	var w Workload
	if err := c.object(ctx, k, ns, s, &w); err != nil {
		return nil, nil, err
	}
	sel, err := c.selector(ctx, k, ns, s, &w)
	if err != nil {
		return nil, nil, err
	}
	return c.podsBySelector(ctx, ns, sel)
}

// onePod is the query that finds a pod by its name.
func onePod(name string) url.Values {
	return url.Values{"fieldSelector": {"metadata.name=" + name}}
}

// object gets the named object into out.
func (c *Client) object(ctx context.Context, k *kindRow, ns string, s Spec, out any) error {
	err := c.get(ctx, k.path(ns)+"/"+url.PathEscape(s.Name), nil, out)
	if isStatus(err, http.StatusNotFound) {
		return fault.With(fmt.Errorf("target %s: not found in namespace %s", s, ns), fmt.Sprintf("stead ls -n %s lists what is there; -n chooses another namespace", ns))
	}
	return err
}

// selector gives the pods' selector of a workload, as a query has it.
func (c *Client) selector(ctx context.Context, k *kindRow, ns string, s Spec, w *Workload) (string, error) {
	var asString string
	if len(w.Spec.Selector) > 0 && json.Unmarshal(w.Spec.Selector, &asString) == nil && asString != "" {
		return asString, nil
	}
	sel := w.selector()
	if sel == nil {
		sel = &Selector{}
	}
	text, err := sel.selectorString()
	if err == nil {
		return text, nil
	}
	var scale Workload
	serr := c.get(ctx, k.path(ns)+"/"+url.PathEscape(s.Name)+"/scale", nil, &scale)
	if serr == nil && scale.Status.Selector != "" {
		return scale.Status.Selector, nil
	}
	if isStatus(serr, http.StatusForbidden) {
		return "", fmt.Errorf("target %s: %w", s, serr)
	}
	return "", fault.With(fmt.Errorf("target %s: %w", s, err), "name a workload that has a selector, or the pod itself: --target pod/NAME")
}

func (c *Client) podsBySelector(ctx context.Context, ns, sel string) ([]Pod, url.Values, error) {
	query := url.Values{"labelSelector": {sel}}
	pods, err := list[Pod](ctx, c, lookupKind("pod").path(ns), query)
	return pods, query, err
}

// list gets all objects of a list, page by page.
func list[T any](ctx context.Context, c *Client, path string, query url.Values) ([]T, error) {
	out, _, err := listAt[T](ctx, c, path, query)
	return out, err
}

// listAt gives with the list where a watch of it begins.
func listAt[T any](ctx context.Context, c *Client, path string, query url.Values) (out []T, version string, err error) {
	q := url.Values{"limit": {"500"}}
	for k, v := range query {
		q[k] = v
	}
	for {
		var l List[T]
		if err := c.get(ctx, path, q, &l); err != nil {
			return nil, "", err
		}
		out = append(out, l.Items...)
		if l.Meta.Continue == "" {
			return out, l.Meta.ResourceVersion, nil
		}
		q.Set("continue", l.Meta.Continue)
	}
}

// podsOfCronJob gives the pods of the newest job that has any.
func (c *Client) podsOfCronJob(ctx context.Context, k *kindRow, ns string, s Spec) ([]Pod, url.Values, error) {
	var cj Workload
	if err := c.object(ctx, k, ns, s, &cj); err != nil {
		return nil, nil, err
	}
	jobs, err := list[Workload](ctx, c, lookupKind("job").path(ns), nil)
	if err != nil {
		return nil, nil, err
	}
	jobs = slices.DeleteFunc(jobs, func(j Workload) bool {
		return !slices.ContainsFunc(j.Meta.OwnerReferences, func(o OwnerReference) bool { return o.UID == cj.Meta.UID })
	})
	slices.SortFunc(jobs, func(a, b Workload) int {
		if a.Meta.CreationTimestamp != nil && b.Meta.CreationTimestamp != nil {
			if n := b.Meta.CreationTimestamp.Compare(*a.Meta.CreationTimestamp); n != 0 {
				return n
			}
		}
		return cmp.Compare(b.Meta.Name, a.Meta.Name)
	})
	for _, j := range jobs {
		pods, query, err := c.podsBySelector(ctx, ns, "batch.kubernetes.io/controller-uid="+j.Meta.UID)
		if err != nil || len(pods) > 0 {
			return pods, query, err
		}
	}
	return nil, nil, nil
}

// discover asks the cluster for a kind that the table does not have: its plural, singular or short
// name or its kind, with or without ".GROUP" behind it.
func (c *Client) discover(ctx context.Context, s Spec) (*kindRow, error) {
	name, group, withGroup := strings.Cut(s.Kind, ".")
	var groups struct {
		Groups []struct {
			Name      string `json:"name"`
			Preferred struct {
				Version string `json:"version"`
			} `json:"preferredVersion"`
		} `json:"groups"`
	}
	if err := c.get(ctx, "/apis", nil, &groups); err != nil {
		return nil, err
	}
	for _, g := range groups.Groups {
		if withGroup && g.Name != group {
			continue
		}
		var resources struct {
			Resources []struct {
				Name       string   `json:"name"`
				Singular   string   `json:"singularName"`
				Namespaced bool     `json:"namespaced"`
				Kind       string   `json:"kind"`
				Short      []string `json:"shortNames"`
			} `json:"resources"`
		}
		err := c.get(ctx, "/apis/"+g.Name+"/"+g.Preferred.Version, nil, &resources)
		if err != nil {
			if s := (*StatusError)(nil); errors.As(err, &s) {
				continue // an aggregated API whose server is away
			}
			return nil, err
		}
		for _, r := range resources.Resources {
			if !r.Namespaced || strings.Contains(r.Name, "/") {
				continue
			}
			if r.Name == name || r.Singular == name || strings.ToLower(r.Kind) == name || slices.Contains(r.Short, name) {
				return &kindRow{names: []string{name}, group: g.Name, version: g.Preferred.Version, resource: r.Name, how: bySelector}, nil
			}
		}
	}
	return nil, fault.With(fmt.Errorf("target %s: the cluster has no kind %q", s, s.Kind), targetHint)
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
