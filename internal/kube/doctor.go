package kube

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/stead-dev/stead/internal/fault"
)

// Finding is one thing that was looked at: fine when Err is nil.
type Finding struct {
	What string
	Note string // what was found
	Err  error  // with a hint
	Soft bool   // stead works without it, less well
}

// Doctor looks at what a session would need of the cluster, in the order in which it would need it.
func (c *Client) Doctor(ctx context.Context, target *Spec, o Options) (out []Finding) {
	o = o.withDefaults()
	add := func(what, note string, err error) bool {
		out = append(out, Finding{What: what, Note: note, Err: err})
		return err == nil
	}
	var v struct {
		GitVersion string `json:"gitVersion"`
	}
	err := c.get(ctx, "/version", nil, &v)
	if !add("cluster", c.Server+" "+v.GitVersion, err) {
		return out
	}
	ns := cmp.Or(o.Namespace, c.Namespace) // of the agent
	out = append(out, c.rights(ctx, &Grant{User: "YOU", Namespace: c.Namespace, AgentNamespace: ns, Mode: o.Mode})...)
	var p *Pod
	m := mark{namespace: c.Namespace, pod: "doctor", container: "app", id: strings.Repeat("0", 64)}
	if target != nil {
		f, err := c.Resolve(ctx, *target, "")
		if err == nil {
			if p, err = f.choose(o.Replica); err == nil {
				m = markOf(p, f.Container)
			}
		}
		note := ""
		if err == nil {
			note = fmt.Sprintf("%s: pod %s, container %s (%s)", target, p.Meta.Name, f.Container, f.Why)
		}
		add("target", note, err)
	}
	if o.Image == "" {
		add("agent's image", "", fault.With(errors.New("none is named"), "stead agent image --push REGISTRY/stead-agent:1, then export STEAD_AGENT_IMAGE=REGISTRY/stead-agent:1"))
		o.Image = "stead.local/stead-agent"
	} else {
		out = append(out, c.image(ctx, p, o.Image))
	}
	if o.Mode == ModeEphemeral { // it would stay in the pod, so it cannot be tried
		return out
	}
	return append(out, c.admission(ctx, m, &o, ns))
}

// rights asks for every verb of the grant's rules, each in its namespace.
func (c *Client) rights(ctx context.Context, g *Grant) (out []Finding) {
	asked := 0
	var where []string
	for _, p := range g.places() {
		where = append(where, p.namespace)
		for _, r := range g.rules(p) {
			for _, verb := range r.Verbs {
				ok, err := c.may(ctx, p.namespace, verb, r.Group, r.Resource)
				if err != nil {
					return append(out, Finding{What: "rights", Err: err})
				}
				asked++
				if !ok {
					out = append(out, Finding{What: "right to " + verb + " " + r.Resource,
						Err: fault.With(fmt.Errorf("missing in namespace %s (to %s)", p.namespace, r.Why), g.command())})
				}
			}
		}
	}
	if len(out) == 0 {
		out = append(out, Finding{What: "rights", Note: fmt.Sprintf("all %d in namespace %s", asked, strings.Join(where, " and "))})
	}
	return out
}

// may asks the cluster whether the user may do something.
func (c *Client) may(ctx context.Context, ns, verb, group, resource string) (bool, error) {
	resource, sub, _ := strings.Cut(resource, "/")
	review := map[string]any{
		"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
		"spec": map[string]any{"resourceAttributes": map[string]any{"namespace": ns, "verb": verb, "group": group, "resource": resource, "subresource": sub}},
	}
	var answer struct {
		Status struct {
			Allowed bool `json:"allowed"`
		} `json:"status"`
	}
	err := c.create(ctx, "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review, &answer)
	return answer.Status.Allowed, err
}

// image looks whether the target's node has the image already.
func (c *Client) image(ctx context.Context, p *Pod, image string) Finding {
	f := Finding{What: "agent's image", Note: image}
	if p == nil || p.Spec.NodeName == "" {
		return f
	}
	var n struct {
		Status struct {
			Images []struct {
				Names []string `json:"names"`
			} `json:"images"`
			NodeInfo struct {
				KernelVersion string `json:"kernelVersion"`
				Architecture  string `json:"architecture"`
				Runtime       string `json:"containerRuntimeVersion"`
			} `json:"nodeInfo"`
		} `json:"status"`
	}
	if err := c.get(ctx, "/api/v1/nodes/"+p.Spec.NodeName, nil, &n); err != nil {
		f.Note += " (you may not look whether node " + p.Spec.NodeName + " has it: it is pulled when it has not)"
		return f
	}
	on := fmt.Sprintf("node %s (kernel %s, %s, %s)", p.Spec.NodeName, n.Status.NodeInfo.KernelVersion, n.Status.NodeInfo.Architecture, n.Status.NodeInfo.Runtime)
	for _, i := range n.Status.Images {
		for _, name := range i.Names {
			if name == image || strings.TrimPrefix(name, "docker.io/library/") == image {
				f.Note += " is on " + on
				return f
			}
		}
	}
	f.Note += " is not yet on " + on + ": it is pulled with the first session"
	return f
}

// admission asks the cluster whether it would take the agent's pod, without making it.
func (c *Client) admission(ctx context.Context, m mark, o *Options, ns string) Finding {
	j := newJob(m, o, "stead-doctor", "doctor")
	j.Meta.OwnerReferences = nil
	f := Finding{What: "the agent's pod", Note: "the cluster would take it in namespace " + ns}
	dry := url.Values{"dryRun": {"All"}}
	if err := c.request(ctx, http.MethodPost, "/apis/batch/v1/namespaces/"+ns+"/jobs", dry, "", j, nil); err != nil {
		f.Note, f.Err = "", err
		return f
	}
	// A Job is let in where its pod will not be: ask for that, too.
	pod := &Pod{APIVersion: "v1", Kind: "Pod", Meta: j.Spec.Template.Meta, Spec: j.Spec.Template.Spec}
	pod.Meta.Name = "stead-doctor"
	err := c.request(ctx, http.MethodPost, "/api/v1/namespaces/"+ns+"/pods", dry, "", pod, nil)
	if s := (*StatusError)(nil); errors.As(err, &s) && forbidden.MatchString(s.Message) {
		f.Note = "the cluster would take its Job; you may not ask about its pod (create pods), whose refusal the first session would tell"
		return f
	}
	if err != nil {
		f.Note, f.Err = "", err
	}
	return f
}
