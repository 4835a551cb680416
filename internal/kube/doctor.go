package kube

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/stead-dev/stead/internal/fault"
	"github.com/stead-dev/stead/internal/kube/image"
)

// Finding is one thing that was looked at: fine when Err is nil.
type Finding struct {
	What string
	Note string // what was found
	Err  error  // with a hint
	Soft bool   // stead works without it, less well; or it is not known
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
	s := c.seeNodes(ctx, p)
	out = append(out, judgeKernels(&s, &Grant{User: "YOU", Namespace: c.Namespace, AgentNamespace: ns, Mode: o.Mode, Nodes: true}))
	if o.Image == "" {
		add("agent's image", "", fault.With(errors.New("none is named"), "stead agent image --push REGISTRY/stead-agent:1, then export STEAD_AGENT_IMAGE=REGISTRY/stead-agent:1"))
		o.Image = "stead.local/stead-agent"
	} else {
		out = append(out, judgeImage(&s, o.Image, o.PullPolicy, func() ([]string, error) {
			ctx, cancel := context.WithTimeout(ctx, registryWithin)
			defer cancel()
			return image.Platforms(ctx, o.Image)
		}))
	}
	return append(out, c.admission(ctx, m, &o, ns))
}

// registryWithin bounds the question to the image's registry.
const registryWithin = 10 * time.Second

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

// admission asks the cluster whether it would take the agent, without making it.
func (c *Client) admission(ctx context.Context, m mark, o *Options, ns string) Finding {
	if o.Mode == ModeEphemeral {
		return c.admissionEphemeral(ctx, m, o)
	}
	j := newJob(m, o, "stead-doctor", "doctor")
	j.Meta.OwnerReferences = nil
	f := Finding{What: "the agent's pod", Note: "the cluster would take it in namespace " + ns}
	warnings, err := c.tryOut(ctx, http.MethodPost, lookupKind("job").path(ns), "", j)
	if err != nil {
		f.Note, f.Err = "", err
		return f
	}
	// A Job is let in where its pod will not be: ask for that, too.
	pod := &Pod{APIVersion: "v1", Kind: "Pod", Meta: j.Spec.Template.Meta, Spec: j.Spec.Template.Spec}
	pod.Meta.Name = "stead-doctor"
	_, err = c.tryOut(ctx, http.MethodPost, lookupKind("pod").path(ns), "", pod)
	if s := (*StatusError)(nil); errors.As(err, &s) && forbidden.MatchString(s.Message) {
		// A developer need not have that right. PodSecurity warns of the pod when the Job is asked for.
		if i := slices.IndexFunc(warnings, func(w string) bool { return refusalHint(w) != "" }); i >= 0 {
			err = refused(&StatusError{Code: http.StatusForbidden, Message: "its pod " + warnings[i]})
		} else {
			f.Soft, err = true, errors.New("the cluster would take its Job; whether it would take its pod too is not known: there is no right to create pods, nor need there be. The first session tells")
		}
	}
	if err != nil {
		f.Note, f.Err = "", err
	}
	return f
}

// admissionEphemeral asks for an ephemeral container.
func (c *Client) admissionEphemeral(ctx context.Context, m mark, o *Options) Finding {
	f := Finding{What: "the agent's container", Note: "the cluster would take it in pod " + m.pod}
	err := error(fault.With(errors.New("not known without a target: it is a part of the target's pod"), "stead doctor --agent ephemeral --target TARGET"))
	if f.Soft = m.uid == ""; !f.Soft {
		_, patch := ephemeral(m, o)
		_, err = c.tryOut(ctx, http.MethodPatch, lookupKind("pod").path(m.namespace)+"/"+m.pod+"/ephemeralcontainers", strategicPatch, patch)
	}
	if err != nil {
		f.Note, f.Err = "", err
	}
	return f
}

// tryOut sends a request that changes nothing, and gives the API server's warnings.
func (c *Client) tryOut(ctx context.Context, method, path, contentType string, body any) (warnings []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	r, err := c.send(ctx, method, path, url.Values{"dryRun": {"All"}}, contentType, body)
	if err != nil {
		return nil, err
	}
	r.Body.Close()
	for _, w := range r.Header.Values("Warning") { // 299 - "TEXT"
		if _, text, ok := strings.Cut(w, ` "`); ok {
			w = strings.ReplaceAll(strings.TrimSuffix(text, `"`), `\"`, `"`)
		}
		warnings = append(warnings, w)
	}
	return warnings, nil
}
