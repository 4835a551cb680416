package kube

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/stead-dev/stead/internal/fault"
	"github.com/stead-dev/stead/internal/tunnel"
	"github.com/stead-dev/stead/internal/wire"
)

// Listed is something that can be a target.
type Listed struct {
	Target     string   `json:"target"` // KIND/NAME
	Namespace  string   `json:"namespace"`
	Pods       []string `json:"pods"`
	Ready      int      `json:"ready"` // of Pods
	Containers []string `json:"containers"`
	Default    string   `json:"defaultContainer"` // the one that is meant when none is named
	Users      []string `json:"users,omitempty"`  // of stead sessions on its pods
}

// Kinds are the kinds that List knows.
func Kinds() (names []string) {
	for _, k := range kinds {
		if k.listed {
			names = append(names, k.names[0])
		}
	}
	return names
}

// List gives what can be a target in a namespace, in all for "", and who uses it, asked also of the
// agents in agentNamespace where that is not "". Of what the user may not list, denied says so.
func (c *Client) List(ctx context.Context, namespace, agentNamespace string, types []string) (out []Listed, denied []error, err error) {
	var want []*kindRow
	for _, t := range types {
		k := lookupKind(strings.ToLower(t))
		if k == nil || !k.listed {
			return nil, nil, fault.With(fmt.Errorf("--types %s: not listed", t), "--types "+strings.Join(Kinds(), ","))
		}
		want = append(want, k)
	}
	pods, err := list[Pod](ctx, c, lookupKind("pod").path(namespace), nil)
	if err != nil {
		return nil, nil, err
	}
	jobs, err := list[Workload](ctx, c, lookupKind("job").path(namespace), nil)
	if err != nil {
		denied = append(denied, err)
	}
	var agents []Agent
	for i := range pods {
		agents = append(agents, agentsIn(&pods[i])...)
	}
	if namespace != "" && agentNamespace != "" && agentNamespace != namespace {
		elsewhere, err := c.jobAgents(ctx, agentNamespace)
		if err != nil {
			denied = append(denied, err)
		}
		agents = append(agents, elsewhere...)
	}
	users := c.users(ctx, agents)
	// add makes a row of the pods that match.
	add := func(k *kindRow, m *Meta, match func(p *Pod) bool) {
		l := Listed{Target: k.names[0] + "/" + m.Name, Namespace: m.Namespace}
		for i := range pods {
			p := &pods[i]
			if p.Meta.Namespace != m.Namespace || p.Meta.Labels[managedBy] == ours || !match(p) {
				continue
			}
			if k.how == bySelector && k.resource != "jobs" && p.over() { // an evicted pod is no replica
				continue
			}
			l.Pods = append(l.Pods, p.Meta.Name)
			if has(p.Status.Conditions, "Ready") != nil {
				l.Ready++
			}
			if l.Containers == nil {
				l.Containers = append(containerNames(p.Spec.Containers), containerNames(p.sidecars())...)
				l.Default, _, _ = ChooseContainer(p, "")
			}
			for _, u := range users[p.Meta.UID] {
				if !slices.Contains(l.Users, u) {
					l.Users = append(l.Users, u)
				}
			}
		}
		if k.how != itself || len(l.Pods) > 0 {
			out = append(out, l)
		}
	}
	for _, k := range want {
		switch {
		case k.how == itself:
			for i := range pods {
				uid := pods[i].Meta.UID
				add(k, &pods[i].Meta, func(p *Pod) bool { return p.Meta.UID == uid })
			}
			continue
		case k.resource == "jobs":
			for i := range jobs {
				if j := &jobs[i]; len(j.Meta.OwnerReferences) == 0 && j.Meta.Labels[managedBy] != ours {
					add(k, &j.Meta, func(p *Pod) bool { return p.ownedBy(j.Meta.UID) })
				}
			}
			continue
		}
		objects, err := list[Workload](ctx, c, k.path(namespace), nil)
		if err != nil {
			denied = append(denied, err)
			continue
		}
		for i := range objects {
			w := &objects[i]
			if k.how == byJobs {
				add(k, &w.Meta, func(p *Pod) bool {
					return slices.ContainsFunc(jobs, func(j Workload) bool {
						return p.ownedBy(j.Meta.UID) && slices.ContainsFunc(j.Meta.OwnerReferences, func(o OwnerReference) bool { return o.UID == w.Meta.UID })
					})
				})
				continue
			}
			if sel := w.selector(); sel != nil {
				add(k, &w.Meta, func(p *Pod) bool { return sel.matches(p.Meta.Labels) })
			}
		}
	}
	return out, denied, nil
}

// selector reads the pods' selector from the specification, nil for none.
func (w *Workload) selector() *Selector {
	var s Selector
	if len(w.Spec.Selector) == 0 {
		return nil
	}
	if err := json.Unmarshal(w.Spec.Selector, &s); err != nil || len(s.MatchLabels)+len(s.MatchExpressions) == 0 {
		s = Selector{} // a service's is a plain map
		if json.Unmarshal(w.Spec.Selector, &s.MatchLabels) != nil {
			return nil
		}
	}
	if len(s.MatchLabels)+len(s.MatchExpressions) == 0 {
		return nil
	}
	return &s
}

func (s *Selector) matches(labels map[string]string) bool {
	for k, v := range s.MatchLabels {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	for _, e := range s.MatchExpressions {
		v, ok := labels[e.Key]
		in := ok && slices.Contains(e.Values, v)
		switch e.Operator {
		case "In":
			ok = in
		case "NotIn":
			ok = !in
		case "Exists":
		case "DoesNotExist":
			ok = !ok
		default:
			return false
		}
		if !ok {
			return false
		}
	}
	return true
}

// askTime bounds one question to one agent.
const askTime = 5 * time.Second

// users asks agents who uses them, and gives the answers by the targets' UIDs.
func (c *Client) users(ctx context.Context, agents []Agent) map[string][]string {
	var mu sync.Mutex
	var work sync.WaitGroup
	out := make(map[string][]string)
	for i := range agents {
		a := &agents[i]
		if a.over {
			continue
		}
		work.Go(func() {
			st, err := c.Status(ctx, a)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				out[a.TargetUID] = append(out[a.TargetUID], "?")
			}
			for _, s := range st.Sessions {
				out[a.TargetUID] = append(out[a.TargetUID], s.Holder)
			}
		})
	}
	work.Wait()
	for _, l := range out {
		slices.Sort(l)
	}
	return out
}

// Status asks an agent who uses it.
func (c *Client) Status(ctx context.Context, a *Agent) (st wire.Status, err error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	t, err := tunnel.Dial(ctx, func(ctx context.Context) (net.Conn, error) { return c.reach(ctx, a) }, tunnel.Options{Resume: -1, Lanes: 1})
	if err != nil {
		return st, err
	}
	defer t.Close()
	s, err := t.Open(ctx)
	if err != nil {
		return st, err
	}
	_ = s.SetDeadline(time.Now().Add(askTime))
	if err = wire.Write(s, wire.Open{Kind: wire.KindStatus}); err == nil {
		err = wire.Read(s, &st)
	}
	return st, err
}

// Cleaned is what Clean has done, by NAMESPACE/JOB.
type Cleaned struct {
	Removed []string
	Kept    []string // each with the reason
}

// Clean removes the agents of a namespace (of all for ""): those of which it is known that nobody uses
// them, every one where all is set.
func (c *Client) Clean(ctx context.Context, namespace string, all bool) (out Cleaned, err error) {
	// The Jobs first: one that is made meanwhile is somebody's.
	jobs, err := list[Job](ctx, c, lookupKind("job").path(namespace), url.Values{"labelSelector": {oursSelector}})
	if err != nil {
		return out, err
	}
	agents, err := c.jobAgents(ctx, namespace)
	if err != nil {
		return out, err
	}
	used := make(map[string]usage)
	if !all {
		used = c.usage(ctx, agents)
	}
	var errs []error
	slices.SortFunc(jobs, func(a, b Job) int { return cmp.Compare(a.Meta.Namespace+a.Meta.Name, b.Meta.Namespace+b.Meta.Name) })
	for i := range jobs {
		j := &jobs[i]
		name := j.Meta.Namespace + "/" + j.Meta.Name
		if why := keep(j, used[name]); why != "" && !all {
			out.Kept = append(out.Kept, name+": "+why)
			continue
		}
		if j.Meta.DeletionTimestamp != nil {
			continue
		}
		if err := c.remove(ctx, lookupKind("job").path(j.Meta.Namespace)+"/"+j.Meta.Name); err != nil {
			errs = append(errs, err)
			continue
		}
		out.Removed = append(out.Removed, name)
	}
	return out, errors.Join(errs...)
}

// usage is what is known of who uses an agent.
type usage struct {
	there    bool // it has a pod that goes on
	sessions int
	err      error // it did not say
}

// usage asks all agents at once, and gives their answers by NAMESPACE/JOB.
func (c *Client) usage(ctx context.Context, agents []Agent) map[string]usage {
	var mu sync.Mutex
	var work sync.WaitGroup
	out := make(map[string]usage)
	for i := range agents {
		if a := &agents[i]; !a.over {
			work.Go(func() {
				st, err := c.Status(ctx, a)
				mu.Lock()
				out[a.Namespace+"/"+a.Job] = usage{there: true, sessions: len(st.Sessions), err: err}
				mu.Unlock()
			})
		}
	}
	work.Wait()
	return out
}

// keep says why an agent's Job is not to be removed, "" where nobody needs it. What does not answer may
// be in use, and what has no pod yet is about to be.
func keep(j *Job, u usage) string {
	switch {
	case j.over():
		return ""
	case !u.there:
		return "it is being started"
	case u.err != nil:
		return fmt.Sprintf("it does not say who uses it: %v", u.err)
	case u.sessions > 0:
		return "it is in use"
	}
	return ""
}
