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
	t := &Target{Dial: st.dial, Pod: m.namespace + "/" + m.pod, Container: m.container, Close: st.close}
	if n := len(f.Pods); n > 1 && o.Replica == "" {
		o.Notice(fmt.Sprintf("%s has %d pods: incoming traffic is that of all, all else that of %s (--replica one, --replica POD)", s, n, m.pod))
	}
	if f.query != nil && o.Replica == "" {
		r := &others{c: c, o: o, namespace: m.namespace, container: s.Container, first: m.uid, query: f.query, known: known}
		t.Replicas = func(ctx context.Context, join Join, ready func()) {
			r.join = join
			r.run(ctx, f.Pods, ready)
		}
	}
	return t, nil
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
	return &Target{Dial: s.dial, Pod: m.namespace + "/" + s.agent.Pod, Container: agentContainer, Close: s.close}, nil
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
		s.work.Go(func() { s.renew(a) })
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

// renew moves the deadline of the agent's Job on for as long as the session lasts. It needs the
// cluster's clock, which every answer tells.
func (s *stance) renew(a *Agent) {
	path := "/apis/batch/v1/namespaces/" + a.Namespace + "/jobs/" + a.Job
	var began time.Time
	for {
		var j Job
		err := error(nil)
		if began.IsZero() {
			err = s.c.get(s.ctx, path, nil, &j)
			if err == nil && j.Status.StartTime != nil {
				began = *j.Status.StartTime
			}
		}
		if !began.IsZero() {
			until := s.c.now().Sub(began) + lease + s.o.Linger
			patch := map[string]any{"spec": map[string]any{"activeDeadlineSeconds": *seconds(until)}}
			err = s.c.request(s.ctx, http.MethodPatch, path, nil, mergePatch, patch, nil)
		}
		switch {
		case isStatus(err, http.StatusNotFound):
			return // with the agent: the tunnel tells
		case isStatus(err, http.StatusForbidden):
			s.o.Notice(fmt.Sprintf("the agent ends %v after its start, for its lease cannot be renewed: %v", lease, err))
			return
		}
		pause := renewEvery
		if err != nil || began.IsZero() {
			pause = renewEvery / 4
		}
		select {
		case <-s.ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

const mergePatch = "application/merge-patch+json"
