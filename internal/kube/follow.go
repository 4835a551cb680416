package kube

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/stead-dev/stead/internal/fault"
)

// A session's pods are followed: one of its target's that comes gets an agent, the agent of one that
// is gone is let go, and a container that was started anew gets one for its new process. What is to be
// done is decided from the pods as they are (decide), whenever one of them has changed.

// follower keeps agents beside a target's pods for one session. Its fields belong to the goroutine of
// run, but for what never changes.
type follower struct {
	c         *Client
	o         Options
	namespace string
	container string // as the user named it
	query     url.Values
	comes     bool // more pods may come than those that are there
	all       bool // an agent beside each pod, not only beside one
	join      Join

	stands map[string]*stand    // by the pod's UID
	dead   map[string]bool      // ids of containers that have ended
	rest   map[string]time.Time // ids of containers that are let alone until then
	said   map[string]bool      // ids of containers whose trouble has been told
	since  time.Time            // since when there is no stand that lasts, zero while there is one
	news   chan news
	work   sync.WaitGroup
}

// stand is an agent of ours beside one pod, or one that is about to be.
type stand struct {
	m       mark
	initial bool      // of a pod that was there at the begin
	seat    Seat      // nil while it is about to be
	began   time.Time // with seat
	ending  bool      // the pod is about to end, and the seat knows
	ctx     context.Context
	cancel  context.CancelFunc
}

// news is what the keeper of a stand tells: a seat, or, without one, that it is over.
type news struct {
	st   *stand
	seat Seat
	err  error // why it could not begin
	gone bool  // the container has ended
}

// Pauses.
const (
	againAfter   = 2 * time.Second  // before a pod is tried again whose agent did not last
	lasted       = 10 * time.Second // how long an agent does that has
	unreadyAfter = 10 * time.Second // without any, before a pod is taken that runs but is not ready
	surveyMost   = 2 * time.Second  // before pods are listed anew
)

// run follows the pods until ctx ends, or until none will come any more. initial are those that are
// there, first is the seat beside the pod with the mark m.
func (r *follower) run(ctx context.Context, first Seat, m mark, initial []Pod, known []Agent, ready func()) error {
	ctx, cancel := context.WithCancel(ctx)
	r.stands, r.dead = make(map[string]*stand), make(map[string]bool)
	r.rest, r.said = make(map[string]time.Time), make(map[string]bool)
	r.news = make(chan news)
	pods, blind := make(chan []Pod), make(chan error, 1)
	defer r.work.Wait()
	defer cancel()
	r.work.Go(func() { blind <- r.c.survey(ctx, r.namespace, r.query, pods) })
	st := r.newStand(ctx, m)
	st.seat, st.began = first, time.Now()
	r.work.Go(func() { r.watch(ctx, st, first) })
	r.settle(ctx, initial, known, true)
	begun := false
	var unseen error // why nobody tells of the pods
	for now := initial; ; r.settle(ctx, now, nil, false) {
		if !begun && !slices.ContainsFunc(slices.Collect(maps.Values(r.stands)), func(st *stand) bool { return st.initial }) {
			begun = true
			ready()
		}
		if len(r.stands) == 0 && unseen != nil {
			return fmt.Errorf("its pods cannot be followed: %w", unseen)
		}
		if len(r.stands) == 0 && !r.comes && !r.hopeful(now) {
			return fault.With(errors.New("it has no pod any more"), "kubectl -n "+r.namespace+" get pods")
		}
		var again <-chan time.Time
		if wait := r.wait(); wait > 0 {
			again = time.After(wait)
		}
		select {
		case <-ctx.Done():
			return nil
		case now = <-pods:
		case unseen = <-blind:
		case n := <-r.news:
			r.take(n)
		case <-again:
		}
	}
}

func (r *follower) newStand(ctx context.Context, m mark) *stand {
	st := &stand{m: m}
	st.ctx, st.cancel = context.WithCancel(ctx)
	r.stands[m.uid] = st
	return st
}

// take notes what a keeper tells.
func (r *follower) take(n news) {
	n.st.initial = false
	id, now := n.st.m.id, time.Now()
	switch {
	case n.seat != nil:
		n.st.seat, n.st.began = n.seat, now
		return
	case n.gone:
		r.dead[id] = true
	case n.st.ctx.Err() != nil: // we gave it up
	case n.err != nil || now.Sub(n.st.began) < lasted:
		r.rest[id] = now.Add(againAfter)
	}
	if n.err != nil && n.st.ctx.Err() == nil && !r.said[id] {
		r.said[id] = true
		r.o.Notice(fmt.Sprintf("pod %s is not part of this session: %v", n.st.m.pod, n.err))
	}
	n.st.cancel()
	if r.stands[n.st.m.uid] == n.st {
		delete(r.stands, n.st.m.uid)
	}
}

// settle does what is to be done.
func (r *follower) settle(ctx context.Context, pods []Pod, known []Agent, initial bool) {
	views := r.views(pods)
	p := r.decide(views, time.Now())
	for _, uid := range p.leave {
		r.stands[uid].cancel()
		delete(r.stands, uid)
	}
	for _, uid := range p.ending {
		r.stands[uid].ending = true
		r.stands[uid].seat.Ending()
	}
	for _, m := range p.join {
		st := r.newStand(ctx, m)
		st.initial = initial
		agents := slices.Clone(known)
		for i := range pods {
			if pods[i].Meta.UID == m.uid {
				agents = append(agents, agentsIn(&pods[i])...)
			}
		}
		r.work.Go(func() { r.keep(ctx, st, agents) })
	}
}

// view is what is to be known of a pod.
type view struct {
	m      mark
	usable bool // an agent can stand there
	ready  bool
	ending bool // it is being deleted, or its node is lost
}

func (r *follower) views(pods []Pod) []view {
	var out []view
	for i := range pods {
		p := &pods[i]
		p.Meta.Namespace = r.namespace
		name, _, err := ChooseContainer(p, r.container)
		v := view{m: markOf(p, name), ending: p.Meta.DeletionTimestamp != nil || onLostNode(p)}
		v.usable = err == nil && v.m.id != "" && usable(p, name) == nil
		v.ready = v.usable && has(p.Status.Conditions, "Ready") != nil
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b view) int {
		if a.ready != b.ready {
			if a.ready {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.m.pod, b.m.pod)
	})
	return out
}

// plan is what is to be done: beside which pods an agent is wanted, which stands, by the pod's UID, are
// to be left, and which are to know that their pod is about to end.
type plan struct {
	join          []mark
	leave, ending []string
}

// decide says what is to be done about the pods, the best first. It changes nothing but since.
func (r *follower) decide(views []view, now time.Time) (p plan) {
	there := make(map[string]view, len(views))
	for _, v := range views {
		there[v.m.uid] = v
	}
	held := make(map[string]bool)
	lasts := false
	for _, uid := range slices.Sorted(maps.Keys(r.stands)) {
		st := r.stands[uid]
		v, ok := there[uid]
		if !ok || v.usable && v.m.id != st.m.id { // gone, or started anew
			p.leave = append(p.leave, uid)
			continue
		}
		held[uid] = true
		lasts = lasts || !v.ending
		if v.ending && st.seat != nil && !st.ending {
			p.ending = append(p.ending, uid)
		}
	}
	switch {
	case lasts:
		r.since = time.Time{}
	case r.since.IsZero():
		r.since = now
	}
	for _, v := range views {
		patient := !lasts && now.Sub(r.since) >= unreadyAfter
		free := v.usable && !v.ending && !held[v.m.uid] && !r.dead[v.m.id] && !now.Before(r.rest[v.m.id])
		if free && (v.ready || patient) && (r.all || !lasts) {
			p.join = append(p.join, v.m)
			lasts = true
		}
	}
	return p
}

// wait is how long nothing is to be done if no pod changes, 0 for ever.
func (r *follower) wait() (d time.Duration) {
	now := time.Now()
	later := func(t time.Time) {
		if until := max(t.Sub(now), time.Millisecond); d == 0 || until < d {
			d = until
		}
	}
	for id, t := range r.rest {
		if now.Before(t) {
			later(t)
		} else {
			delete(r.rest, id)
			later(now)
		}
	}
	if t := r.since.Add(unreadyAfter); !r.since.IsZero() && now.Before(t) {
		later(t)
	}
	return d
}

// hopeful says whether one of the pods that are there may still be stood for.
func (r *follower) hopeful(pods []Pod) bool {
	for i := range pods {
		p := &pods[i]
		name, _, _ := ChooseContainer(p, r.container)
		if !p.over() && p.Meta.DeletionTimestamp == nil && (p.Spec.RestartPolicy != "Never" || !r.dead[markOf(p, name).id]) {
			return true
		}
	}
	return false
}

// comesAgain says whether a target may have pods that are not there yet. A pod named by itself has none
// but that which a StatefulSet makes under the same name; what a job starts anew is not waited for.
func comesAgain(s Spec, p *Pod) bool {
	k := lookupKind(s.Kind)
	switch {
	case k == nil:
		return true
	case k.how == itself:
		return slices.ContainsFunc(p.Meta.OwnerReferences, func(o OwnerReference) bool { return o.Kind == "StatefulSet" })
	}
	return k.how == bySelector && k.resource != "jobs"
}

// keep holds an agent beside a pod for as long as that lasts.
func (r *follower) keep(ctx context.Context, st *stand, known []Agent) {
	s := newStance(st.ctx, r.c, st.m, r.o)
	defer s.close()
	var seat Seat
	err := s.begin(st.ctx, known)
	if err == nil {
		seat, err = r.join(st.ctx, st.m.pod, s.dial)
	}
	if err != nil {
		r.tell(ctx, news{st: st, err: err})
		return
	}
	r.tell(ctx, news{st: st, seat: seat})
	r.watch(ctx, st, seat)
}

// watch waits for the end of a seat, or of the stand.
func (r *follower) watch(ctx context.Context, st *stand, seat Seat) {
	gone := false
	select {
	case <-seat.Done():
		gone = seat.TargetGone()
	case <-st.ctx.Done():
	}
	seat.Leave()
	r.tell(ctx, news{st: st, gone: gone})
}

func (r *follower) tell(ctx context.Context, n news) {
	select {
	case r.news <- n:
	case <-ctx.Done():
	}
}

// survey sends the pods of a query, now and whenever one of them has changed, until ctx ends or the
// user may not see them.
func (c *Client) survey(ctx context.Context, ns string, query url.Values, out chan<- []Pod) error {
	path := lookupKind("pod").path(ns)
	now := make(map[string]Pod)
	send := func() {
		select {
		case out <- slices.SortedFunc(maps.Values(now), func(a, b Pod) int { return strings.Compare(a.Meta.Name, b.Meta.Name) }):
		case <-ctx.Done():
		}
	}
	for pause := time.Duration(0); ctx.Err() == nil; {
		pods, version, err := listAt[Pod](ctx, c, path, query)
		pause = min(max(2*pause, 100*time.Millisecond), surveyMost)
		if isStatus(err, http.StatusForbidden) {
			return err
		}
		if err == nil {
			pause = 0
			clear(now)
			for _, p := range pods {
				now[p.Meta.UID] = p
			}
			send()
			q := maps.Clone(query)
			q.Set("resourceVersion", version)
			_ = watch(ctx, c, path, q, func(kind string, p Pod) {
				now[p.Meta.UID] = p
				if kind == "DELETED" {
					delete(now, p.Meta.UID)
				}
				send()
			})
		}
		select { // the API server ends a watch now and then
		case <-ctx.Done():
		case <-time.After(max(pause, 100*time.Millisecond)):
		}
	}
	return nil
}
