package kube

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/stead-dev/stead/internal/fault"
	"github.com/stead-dev/stead/internal/knock"
	"github.com/stead-dev/stead/internal/tunnel"
)

// reach connects to an agent: a forward to its port, and the proof that it is the agent.
func (c *Client) reach(ctx context.Context, a *Agent) (net.Conn, error) {
	conn, err := c.Forward(ctx, a.Namespace, a.Pod, a.port, tunnel.ForBulk(ctx))
	if err != nil {
		return nil, err
	}
	kctx, cancel := context.WithTimeout(ctx, forwardWithin)
	defer cancel()
	if err := knock.Knock(kctx, conn, []byte(a.secret)); err != nil {
		conn.Close()
		return nil, fmt.Errorf("agent %s/%s: %w", a.Namespace, a.Pod, err)
	}
	return conn, nil
}

// Agents lists the agents of a namespace, of all for "".
func (c *Client) Agents(ctx context.Context, namespace string) ([]Agent, error) {
	return c.agents(ctx, namespace, nil)
}

// jobAgents lists those that are Jobs, which is cheaper.
func (c *Client) jobAgents(ctx context.Context, namespace string) ([]Agent, error) {
	return c.agents(ctx, namespace, url.Values{"labelSelector": {oursSelector}})
}

func (c *Client) agents(ctx context.Context, namespace string, query url.Values) (out []Agent, err error) {
	pods, err := list[Pod](ctx, c, lookupKind("pod").path(namespace), query)
	if err != nil {
		return nil, err
	}
	for i := range pods {
		for _, a := range agentsIn(&pods[i]) {
			if a.Job != "" || !a.over { // an ephemeral one that has ended cannot be taken away
				out = append(out, a)
			}
		}
	}
	return out, nil
}

// stand gives a connected agent beside m: one that is there, or a new one. known are the agents of
// the namespace, as they were a moment ago.
func (c *Client) stand(ctx context.Context, m mark, o *Options, known []Agent) (*Agent, net.Conn, error) {
	for i := range known {
		// Whether the kubelet says already that it runs does not matter: it answers or not.
		if a := &known[i]; a.fits(m) {
			kctx, cancel := context.WithTimeout(ctx, knownWithin)
			conn, err := c.reach(kctx, a)
			cancel()
			if err == nil {
				return a, conn, nil
			}
			break // not yet, or no more
		}
	}
	if o.Image == "" {
		return nil, nil, fault.With(errors.New("no image for the agent"),
			"stead agent image --push REGISTRY/stead-agent:1, then export STEAD_AGENT_IMAGE=REGISTRY/stead-agent:1 (or --agent-image)")
	}
	if o.Mode == ModeEphemeral && m.id != noTarget {
		return c.startEphemeral(ctx, m, o)
	}
	return c.startJob(ctx, m, o)
}

// knownWithin bounds the attempt to reach an agent that is there.
const knownWithin = 5 * time.Second

// maxGenerations bounds how many agents of one container may have ended and still be there.
const maxGenerations = 20

// startJob makes a Job, or joins one that somebody else is making.
func (c *Client) startJob(ctx context.Context, m mark, o *Options) (*Agent, net.Conn, error) {
	cleared := false
	for nth := 0; nth < maxGenerations; nth++ {
		j := newJob(m, o, m.agentName(o, nth), newSecret())
		path := "/apis/batch/v1/namespaces/" + j.Meta.Namespace + "/jobs"
		var made Job
		err := c.create(ctx, path, j, &made)
		if isStatus(err, http.StatusConflict) {
			var there Job
			err = c.get(ctx, path+"/"+j.Meta.Name, nil, &there)
			if isStatus(err, http.StatusNotFound) || err == nil && (there.over() || there.Meta.Labels[labelTargetUID] != m.uid) {
				if nth == maxGenerations-1 && !cleared { // they are kept for long (Options.TTL)
					c.clear(ctx, m, o)
					nth, cleared = -1, true
				}
				continue
			}
			if err != nil {
				return nil, nil, fmt.Errorf("start an agent beside %s: %w", m, err)
			}
			a, conn, err := c.await(ctx, m, o, ofJob(&there))
			if errors.Is(err, errAgentOver) {
				continue // it had ended when we came
			}
			return a, conn, err
		}
		if err != nil {
			return nil, nil, fmt.Errorf("start an agent beside %s: %w", m, err)
		}
		a, conn, err := c.await(ctx, m, o, ofJob(&made))
		if err != nil {
			// Not the caller's context: that may be why we are here.
			cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeWithin)
			_ = c.remove(cctx, path+"/"+j.Meta.Name) // its lease would end it as well
			cancel()
		}
		return a, conn, err
	}
	return nil, nil, fault.With(fmt.Errorf("%d agents beside %s have ended and were not removed", maxGenerations, m), "stead agents clean")
}

// clear removes the Jobs of agents beside m that have ended.
func (c *Client) clear(ctx context.Context, m mark, o *Options) {
	path := "/apis/batch/v1/namespaces/" + cmp.Or(o.Namespace, m.namespace) + "/jobs/"
	for nth := range maxGenerations {
		var there Job
		if name := m.agentName(o, nth); c.get(ctx, path+name, nil, &there) == nil && there.over() {
			_ = c.remove(ctx, path+name)
		}
	}
}

const removeWithin = 5 * time.Second

func (j *Job) over() bool {
	return j.Meta.DeletionTimestamp != nil || has(j.Status.Conditions, "Complete") != nil ||
		has(j.Status.Conditions, "Failed") != nil || has(j.Status.Conditions, "FailureTarget") != nil || has(j.Status.Conditions, "SuccessCriteriaMet") != nil
}

var errAgentOver = errors.New("the agent has ended")

// Pauses while an agent starts.
const (
	knockAgain     = 20 * time.Millisecond
	knockAgainMost = 300 * time.Millisecond
	eventsAfter    = 500 * time.Millisecond
	nodeEvery      = 5               // times eventsAfter
	tellAfter      = 5 * time.Second // what an agent that does not yet answer waits for
	tellEvery      = 10 * time.Second
)

// start is an agent that is about to be: which pods to look at, and how.
type start struct {
	namespace string
	pods      url.Values                 // the query that finds its pod
	read      func(*Pod) (*Agent, error) // the agent in the pod, nil if it is not this one; why it will not start
	name, job string                     // of its Job: name and UID, "" for none
	describe  string                     // what kubectl describe wants to hear
}

func ofJob(j *Job) *start {
	selector := labelAgent + "=" + j.Meta.Name
	return &start{
		namespace: j.Meta.Namespace, name: j.Meta.Name, job: j.Meta.UID, describe: "job,pod -l " + selector,
		pods: url.Values{"labelSelector": {selector}},
		read: func(p *Pod) (*Agent, error) {
			a := agentOf(p)
			if a == nil || !p.ownedBy(j.Meta.UID) { // one of an earlier Job of that name
				return nil, nil
			}
			return a, startFailure(p, agentContainer, p.Status.ContainerStatuses)
		},
	}
}

// await follows an agent until it answers, or it is known why it will not. It does not
// wait for the status Running, which comes up to a second late.
func (c *Client) await(ctx context.Context, m mark, o *Options, st *start) (*Agent, net.Conn, error) {
	tctx, cancel := context.WithTimeoutCause(ctx, o.StartupTimeout, fmt.Errorf("it did not answer within %v", o.StartupTimeout))
	defer cancel()
	pods := make(chan watchEvent[Pod])
	var work sync.WaitGroup
	defer func() { cancel(); work.Wait() }()
	work.Go(func() { c.follow(tctx, st.namespace, st.pods, pods) })
	if st.job != "" { // one that takes its time is not to end meanwhile
		work.Go(func() { c.renew(tctx, o, st.namespace, st.name, renewEvery) })
	}

	type attempt struct {
		conn net.Conn
		err  error
	}
	answers := make(chan attempt, 1)
	var a *Agent
	var last error
	wait, busy := knockAgain, false
	again := time.NewTimer(time.Hour)
	defer again.Stop()
	defer func() { // one that is under way ends with tctx
		cancel()
		if busy {
			if r := <-answers; r.conn != nil {
				r.conn.Close()
			}
		}
	}()
	try := func() {
		if busy || a == nil {
			return
		}
		busy = true
		go func(a Agent) { // ends with tctx
			conn, err := c.reach(tctx, &a)
			answers <- attempt{conn, err}
		}(*a)
	}
	events := time.NewTimer(eventsAfter)
	defer events.Stop()
	began, told := time.Now(), tellAfter
	for looked := 1; ; {
		select {
		case e := <-pods:
			now, err := st.read(&e.Object)
			if err != nil {
				return nil, nil, fmt.Errorf("agent beside %s: %w", m, err)
			}
			if now == nil {
				continue
			}
			if now.over || e.Type == "DELETED" {
				return nil, nil, fmt.Errorf("agent beside %s: %w (%s)", m, errAgentOver, now.State)
			}
			a = now
			try()
		case <-again.C:
			try()
		case r := <-answers:
			busy = false
			if r.err == nil {
				return a, r.conn, nil
			}
			if errors.Is(r.err, knock.ErrProtocol) {
				return nil, nil, fault.With(fmt.Errorf("image %s: %w", o.Image, r.err), "stead agent image --push REF makes one that fits this stead; then --agent-image REF")
			}
			var s *StatusError
			if errors.As(r.err, &s) && (s.Code == http.StatusForbidden || s.Code == http.StatusUnauthorized) || errors.Is(r.err, knock.ErrSecret) {
				return nil, nil, r.err
			}
			last = r.err
			again.Reset(wait)
			wait = min(wait*5/4, knockAgainMost)
		case <-events.C:
			if a == nil && st.job != "" {
				if err := c.noPod(tctx, st.namespace, st.job); err != nil {
					return nil, nil, fmt.Errorf("agent beside %s: %w", m, err)
				}
			}
			if looked++; a != nil && looked%nodeEvery == 0 {
				if err := c.nodeLost(tctx, m, a.Node); err != nil {
					return nil, nil, fmt.Errorf("agent beside %s: %w", m, err)
				}
			}
			if waited := time.Since(began); a != nil && waited >= told {
				told = waited + tellEvery
				o.Notice(fmt.Sprintf("%s (%d s)", c.progress(tctx, a), int(waited.Seconds())))
			}
			events.Reset(eventsAfter)
		case <-tctx.Done():
			if ctx.Err() != nil {
				return nil, nil, context.Cause(ctx)
			}
			return nil, nil, c.tooLate(st, m, a, last, context.Cause(tctx))
		}
	}
}

// follow sends what happens to the pods of a query until ctx ends.
func (c *Client) follow(ctx context.Context, ns string, query url.Values, out chan<- watchEvent[Pod]) {
	for ctx.Err() == nil {
		_ = watch(ctx, c, lookupKind("pod").path(ns), query, func(kind string, p Pod) {
			select {
			case out <- watchEvent[Pod]{kind, p}:
			case <-ctx.Done():
			}
		})
		select { // the API server ends a watch now and then
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// progress asks what an agent is waiting for that does not yet answer.
func (c *Client) progress(ctx context.Context, a *Agent) string {
	events, _ := list[Event](ctx, c, "/api/v1/namespaces/"+a.Namespace+"/events", url.Values{"fieldSelector": {"involvedObject.name=" + a.Pod}})
	return waitsFor(a, events)
}

// waitsFor says it from the events of the agent's pod. The kubelet tells that it pulls an image when it
// begins, and nothing more until it has it or gives up, after minutes where a registry is silent.
func waitsFor(a *Agent, events []Event) string {
	pulling := false
	for _, e := range events { // those of one image, in whatever order they are listed
		if !strings.Contains(e.Message, `"`+a.Image+`"`) {
			continue
		}
		switch e.Reason {
		case "Pulling":
			pulling = true
		case "Pulled", "Failed", "BackOff":
			return "still waiting for the agent on node " + a.Node + ": " + a.State
		}
	}
	if pulling {
		return "still pulling image " + a.Image + " on node " + a.Node
	}
	return "still waiting for the agent on node " + a.Node + ": " + a.State
}

func (c *Client) tooLate(st *start, m mark, a *Agent, last, cause error) error {
	hint := fmt.Sprintf("kubectl -n %s describe %s; --agent-startup-timeout gives it more time", st.namespace, st.describe)
	err := fmt.Errorf("agent beside %s: %w", m, cause)
	switch {
	case a == nil:
		err = fmt.Errorf("agent beside %s: its pod was not made: %w", m, cause)
	case a.State != "Running":
		err = fmt.Errorf("agent beside %s: %w (%s on node %s)", m, cause, a.State, a.Node)
		if a.State == "Pending" {
			hint = "kubectl get node " + a.Node + " (is it Ready?); " + hint
		}
	case last != nil:
		err = fmt.Errorf("agent beside %s: %w: %w", m, cause, last)
	}
	return fault.With(err, hint)
}

// startTroubles is the table of what keeps a container from starting for good, by the reason that
// the kubelet gives. The hint's %s is the image.
var startTroubles = []struct{ reason, cause, hint string }{
	{"ErrImagePull", "its image cannot be pulled", imageHint},
	{"ImagePullBackOff", "its image cannot be pulled", imageHint},
	{"ErrImageNeverPull", "its image is not on the node, and --agent-pull-policy says Never", imageHint},
	{"InvalidImageName", "its image has no valid name", "--agent-image REGISTRY/NAME:TAG"},
	{"ImageInspectError", "its image cannot be read", imageHint},
	{"CreateContainerConfigError", "its container cannot be made", "kubectl describe pod says more"},
	{"CreateContainerError", "its container cannot be made", "kubectl describe pod says more"},
	{"RunContainerError", "its container cannot be started", "kubectl describe pod says more"},
}

const imageHint = "does the image %s exist where the nodes look for it, and may they read it? stead agent image --push REF makes it; --agent-pull-secret NAME, --agent-image REF"

// startFailure says why the agent's container will not start, nil while it may.
func startFailure(p *Pod, name string, statuses []ContainerStatus) error {
	image := ""
	for _, c := range slices.Concat(p.Spec.Containers, p.Spec.EphemeralContainers) {
		if c.Name == name {
			image = c.Image
		}
	}
	for _, s := range statuses {
		if s.Name != name {
			continue
		}
		if t := s.State.Terminated; t != nil && t.ExitCode != 0 {
			return lastWords(t, p.Spec.NodeName)
		}
		if w := s.State.Waiting; w != nil {
			if otherArchitecture(w.Message) {
				return wrongArchitecture(p.Spec.NodeName, w.Message)
			}
			for _, r := range startTroubles {
				if r.reason == w.Reason {
					return fault.With(fmt.Errorf("%s: %s", r.cause, reasonText(w)), strings.ReplaceAll(r.hint, "%s", image))
				}
			}
		}
	}
	if p.Status.Phase == "Failed" {
		err := fmt.Errorf("node %s refused it: %s: %s", p.Spec.NodeName, p.Status.Reason, p.Status.Message)
		if strings.HasPrefix(p.Status.Reason, "OutOf") {
			return fault.With(err, "the node is full: kubectl describe node "+p.Spec.NodeName+" (Allocated resources); choose a replica on another node with --replica POD")
		}
		return fault.With(err, "kubectl describe node "+p.Spec.NodeName)
	}
	return nil
}

// otherArchitecture says whether a runtime's words mean that an image has nothing for this machine:
// the kernel's, containerd's, CRI-O's.
func otherArchitecture(message string) bool {
	return strings.Contains(message, "exec format error") || strings.Contains(message, "no match for platform") || strings.Contains(message, "no image found in")
}

func wrongArchitecture(node, message string) error {
	return fault.With(fmt.Errorf("its image has no agent for the architecture of node %s: %s", node, message),
		"stead agent image makes one for amd64 and arm64 (kubectl get node "+node+" -o jsonpath='{.status.nodeInfo.architecture}')")
}

// nodeLost says whether the cluster hears nothing of a node, nil where it does or nobody can tell.
func (c *Client) nodeLost(ctx context.Context, m mark, node string) error {
	lost := func(why string) error {
		return fault.With(fmt.Errorf("node %s is lost: %s", node, why), "kubectl describe node "+node+"; choose a replica on another node with --replica POD")
	}
	var n Node
	err := c.get(ctx, "/api/v1/nodes/"+node, nil, &n)
	switch {
	case isStatus(err, http.StatusNotFound):
		return lost("the cluster has it no more")
	case err == nil && has(n.Status.Conditions, "Ready") == nil:
		for _, r := range n.Status.Conditions {
			if r.Type == "Ready" {
				return lost(r.Message)
			}
		}
	case isStatus(err, http.StatusForbidden): // a developer need not have that right
		var p Pod
		if c.get(ctx, lookupKind("pod").path(m.namespace)+"/"+m.pod, nil, &p) == nil && onLostNode(&p) {
			return lost("the cluster calls pod " + m.pod + " there not ready, though its containers are")
		}
	}
	return nil
}

// lastWords makes an error of how the agent's container ended.
func lastWords(t *ContainerReason, node string) error {
	if otherArchitecture(t.Message) {
		return wrongArchitecture(node, t.Message)
	}
	var cause, hint string
	for line := range strings.Lines(t.Message) {
		line = strings.TrimSpace(line)
		if s, ok := strings.CutPrefix(line, "error: "); ok {
			cause = s
		}
		if s, ok := strings.CutPrefix(line, "hint: "); ok {
			hint = s
		}
	}
	if cause == "" {
		cause = strings.TrimSpace(fmt.Sprintf("exit code %d: %s %s", t.ExitCode, t.Reason, t.Message))
	}
	return fault.With(fmt.Errorf("it ended at once: %s", cause), hint)
}

// noPod says why a Job has no pod: the controller tells it in events alone.
func (c *Client) noPod(ctx context.Context, ns, uid string) error {
	events, err := list[Event](ctx, c, "/api/v1/namespaces/"+ns+"/events", url.Values{"fieldSelector": {"involvedObject.uid=" + uid}})
	if err != nil {
		return nil // not allowed, or for the moment: the time-out tells
	}
	for _, e := range events {
		if e.Reason == "FailedCreate" {
			return refused(&StatusError{Code: http.StatusForbidden, Reason: e.Reason, Message: e.Message})
		}
	}
	return nil
}
