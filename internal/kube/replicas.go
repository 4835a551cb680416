package kube

import (
	"context"
	"fmt"
	"net/url"
	"sync"
	"time"
)

// others are the pods of a target beside the one that the session stands for. They are followed: a
// new one gets an agent, the agent of one that is gone is let go.
type others struct {
	c         *Client
	o         Options
	namespace string
	container string // as chosen for the first; a pod without it has its own default
	first     string // its UID
	query     url.Values
	known     []Agent
	join      Join

	work  sync.WaitGroup
	begin sync.WaitGroup // those that were there at the begin
}

// againAfter is the pause before a replica whose agent was lost gets another.
const againAfter = 2 * time.Second

// run follows the pods until ctx ends. initial are those that are there.
func (r *others) run(ctx context.Context, initial []Pod, ready func()) {
	defer r.work.Wait()
	current := make(map[string]*replica) // by the pod's UID
	look := func(p *Pod, gone, first bool) {
		if p.Meta.UID == r.first {
			return
		}
		p.Meta.Namespace = r.namespace
		name, _, err := ChooseContainer(p, r.container)
		m := mark{}
		if err == nil && !gone && usable(p, name) == nil && has(p.Status.Conditions, "Ready") != nil {
			m = markOf(p, name)
		}
		now := current[p.Meta.UID]
		if now != nil && (gone || m.id != "" && m.id != now.m.id || p.Meta.DeletionTimestamp != nil) {
			now.cancel()
			delete(current, p.Meta.UID)
			now = nil
		}
		if now != nil || m.id == "" {
			return
		}
		next := &replica{m: m}
		next.ctx, next.cancel = context.WithCancel(ctx)
		current[p.Meta.UID] = next
		if first {
			r.begin.Add(1)
		}
		known := append(agentsIn(p), r.known...)
		r.work.Go(func() { r.keep(next, known, first) })
	}
	for i := range initial {
		look(&initial[i], false, true)
	}
	r.work.Go(func() { r.begin.Wait(); ready() })
	events := make(chan watchEvent[Pod])
	r.work.Go(func() { defer close(events); r.c.follow(ctx, r.namespace, r.query, events) })
	for e := range events {
		look(&e.Object, e.Type == "DELETED", false)
	}
	for _, p := range current {
		p.cancel()
	}
}

// replica is one of the others while it runs.
type replica struct {
	m      mark
	ctx    context.Context
	cancel context.CancelFunc
}

// keep holds an agent beside a replica for as long as that lasts.
func (r *others) keep(p *replica, known []Agent, first bool) {
	joined := func() {
		if first {
			r.begin.Done()
			first = false
		}
	}
	defer joined()
	defer p.cancel()
	said := false
	for p.ctx.Err() == nil {
		err := r.once(p, known, joined)
		if err != nil && !said && p.ctx.Err() == nil {
			r.o.Notice(fmt.Sprintf("the traffic of pod %s is not part of this session: %v", p.m.pod, err))
			said = true
		}
		known = nil
		joined()
		select {
		case <-p.ctx.Done():
		case <-time.After(againAfter):
		}
	}
}

// once lasts until the agent is lost or the replica is gone.
func (r *others) once(p *replica, known []Agent, joined func()) error {
	s := newStance(p.ctx, r.c, p.m, r.o)
	defer s.close()
	if err := s.begin(p.ctx, known); err != nil {
		return err
	}
	done, leave, err := r.join(p.ctx, p.m.pod, s.dial)
	if err != nil {
		return err
	}
	defer leave()
	joined()
	select {
	case <-done:
	case <-p.ctx.Done():
	}
	return nil
}
