package kube

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/stead-dev/stead/internal/tunnel"
)

// Open finds the target, stands an agent beside it, and connects. The Target's Dial gives that
// connection first, and then new ones to the same agent for as long as it lives.
func (c *Client) Open(ctx context.Context, s Spec, o Options) (*Target, error) {
	o = o.withDefaults()
	// Which agents there are does not depend on the target: ask for both at once.
	var known []Agent
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		ns := o.Namespace
		if ns == "" {
			ns = c.Namespace
		}
		known, _ = c.jobAgents(ctx, ns) // whoever may not list pods hears it from Resolve
	}()
	f, err := c.Resolve(ctx, s, "")
	<-asked
	if err != nil {
		return nil, err
	}
	p, err := f.choose(o.Replica)
	if err != nil {
		return nil, err
	}
	m := markOf(p, f.Container)
	if m.id == "" {
		return nil, fmt.Errorf("pod %s/%s does not tell the id of its container %s", m.namespace, m.pod, m.container)
	}
	known = append(known, agentsIn(p)...)
	st := newStance(ctx, c, m, o)
	if err := st.begin(ctx, known); err != nil {
		st.close()
		return nil, err
	}
	t := &Target{Dial: st.dial, Pod: m.pod, Container: m.container, Probes: httpProbes(p), Close: st.close}
	if p.Spec.HostNetwork {
		t.Node = m.node
	}
	if n := living(f.Pods); n > 1 && o.Replica == "" {
		o.Notice(fmt.Sprintf("%s has %d pods: in the stead of %s (--replica POD)", s, n, m.pod))
	}
	r := &follower{c: c, o: o, namespace: m.namespace, container: s.Container, query: f.query, comes: comesAgain(s, p)}
	pods := f.Pods
	if o.Replica != "" && o.Replica != OneReplica { // that one, and no other
		pods = []Pod{*p}
		r.query, r.comes = onePod(m.pod), comesAgain(Spec{Kind: "pod"}, p)
	}
	t.Follow = func(ctx context.Context, all bool, first Seat, join Join, ready func()) error {
		r.all, r.join = all && o.Replica == "", join
		if r.all && living(pods) > 1 {
			o.Notice("incoming traffic is that of all of them (--replica one)")
		}
		return r.run(ctx, first, m, pods, known, ready)
	}
	return t, nil
}

// living counts pods without those that have ended and are still listed: evicted ones, say.
func living(pods []Pod) (n int) {
	for i := range pods {
		if !pods[i].over() {
			n++
		}
	}
	return n
}

// OpenTargetless stands an agent in the namespace that is beside nobody: for names and outgoing
// connections alone.
func (c *Client) OpenTargetless(ctx context.Context, o Options) (*Target, error) {
	o = o.withDefaults()
	if o.Namespace == "" {
		o.Namespace = c.Namespace
	}
	m := targetless(o.Namespace)
	known, err := c.jobAgents(ctx, o.Namespace)
	if err != nil {
		return nil, err
	}
	s := newStance(ctx, c, m, o)
	if err := s.begin(ctx, known); err != nil {
		s.close()
		return nil, err
	}
	return &Target{Dial: s.dial, Pod: s.agent.Pod, Container: agentContainer, Close: s.close}, nil
}

func newStance(ctx context.Context, c *Client, m mark, o Options) *stance {
	s := &stance{c: c, m: m, o: o}
	s.ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	return s
}

// stance is one session's hold on an agent beside m.
type stance struct {
	c      *Client
	m      mark
	o      Options
	ctx    context.Context // of what goes on in the background
	cancel context.CancelFunc
	work   sync.WaitGroup

	mu    sync.Mutex
	agent *Agent
	first net.Conn    // connected already, for the next dial
	heard atomic.Bool // the agent has answered on the tunnel: it knows it, no other does
}

// begin gets an agent and a first connection.
func (s *stance) begin(ctx context.Context, known []Agent) error {
	a, conn, err := s.c.stand(ctx, s.m, &s.o, known)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.agent, s.first = a, conn
	s.mu.Unlock()
	if a.Job != "" {
		s.work.Go(func() { s.c.renew(s.ctx, &s.o, a.Namespace, a.Job, 0) })
	}
	return nil
}

func (s *stance) close() {
	s.cancel()
	s.mu.Lock()
	if s.first != nil {
		s.first.Close()
		s.first = nil
	}
	s.mu.Unlock()
	s.work.Wait()
}

// dial is the session's tunnel.Dialer.
func (s *stance) dial(ctx context.Context) (net.Conn, error) {
	s.mu.Lock()
	conn, a := s.first, s.agent
	s.first = nil
	s.mu.Unlock()
	if conn == nil {
		var err error
		if conn, err = s.c.reach(ctx, a); err != nil {
			gone := s.gone(ctx, a)
			switch {
			case gone == nil:
				return nil, err
			case s.heard.Load():
				return nil, fmt.Errorf("%w: %w", tunnel.ErrUnknownTunnel, gone)
			}
			// It ended before it knew of us: another one.
			if err := s.begin(ctx, nil); err != nil {
				return nil, err
			}
			return s.dial(ctx)
		}
	}
	return &transport{conn, &s.heard}, nil
}

// gone says how the agent has ended, nil if it has not or nobody can tell.
func (s *stance) gone(ctx context.Context, a *Agent) error {
	var p Pod
	err := s.c.get(ctx, lookupKind("pod").path(a.Namespace)+"/"+a.Pod, nil, &p)
	if isStatus(err, http.StatusNotFound) {
		return errors.New("the agent's pod is gone")
	}
	if err != nil {
		return nil
	}
	for _, now := range agentsIn(&p) {
		if now.Container == a.Container && now.over {
			return fmt.Errorf("the agent in pod %s is %s", p.Meta.Name, now.State)
		}
	}
	return nil
}

// transport notes that the agent has said something.
type transport struct {
	net.Conn
	heard *atomic.Bool
}

func (t *transport) Read(p []byte) (int, error) {
	n, err := t.Conn.Read(p)
	if n > 0 && !t.heard.Load() {
		t.heard.Store(true)
	}
	return n, err
}

// WriteBuffers passes a batch on as one, where the forward takes it so.
func (t *transport) WriteBuffers(b net.Buffers) (int64, error) {
	if w, ok := t.Conn.(interface {
		WriteBuffers(net.Buffers) (int64, error)
	}); ok {
		return w.WriteBuffers(b)
	}
	return b.WriteTo(t.Conn)
}

// renewEvery is how often a session moves the lease of its agent on.
const renewEvery = lease / 3

// renew moves the deadline of an agent's Job on until ctx ends, after a first pause. It needs the
// cluster's clock, which every answer tells.
func (c *Client) renew(ctx context.Context, o *Options, namespace, job string, pause time.Duration) {
	path := "/apis/batch/v1/namespaces/" + namespace + "/jobs/" + job
	var began time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		var j Job
		err := error(nil)
		if began.IsZero() {
			err = c.get(ctx, path, nil, &j)
			if err == nil && j.Status.StartTime != nil {
				began = *j.Status.StartTime
			}
		}
		if !began.IsZero() {
			until := c.now().Sub(began) + leaseFor(o)
			patch := map[string]any{"spec": map[string]any{"activeDeadlineSeconds": *seconds(until)}}
			err = c.request(ctx, http.MethodPatch, path, nil, mergePatch, patch, nil)
		}
		switch {
		case isStatus(err, http.StatusNotFound):
			return // with the agent: the tunnel tells
		case isStatus(err, http.StatusForbidden):
			o.Notice(fmt.Sprintf("the agent ends %v after its start, for its lease cannot be renewed: %v", lease, err))
			return
		}
		pause = renewEvery
		if err != nil || began.IsZero() {
			pause = renewEvery / 4
		}
	}
}

const mergePatch = "application/merge-patch+json"
