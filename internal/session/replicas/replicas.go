// Package replicas makes the incoming traffic of several pods that of one: what the program listens
// on is asked for at the agent of each, and what any of them catches is told as if the first had. Its
// Room stands where otherwise the one pod stands. Which pods there are is not its business.
package replicas

import (
	"context"
	"fmt"
	"sync"
	"syscall"

	"github.com/stead-dev/stead/internal/session/pod"
	"github.com/stead-dev/stead/internal/tunnel"
	"github.com/stead-dev/stead/internal/wire"
)

// Source finds the other pods until ctx ends: it calls join for each that is there or comes, waits
// until done is closed or the pod is gone, and calls leave. It calls ready once, when all that were
// there at the begin have joined or cannot.
type Source func(ctx context.Context, join Join, ready func())

// Join attaches the session to the agent beside a further pod.
type Join func(ctx context.Context, name string, dial tunnel.Dialer) (done <-chan struct{}, leave func(), err error)

// Config is what a Room is made of.
type Config struct {
	First    *pod.Conn
	Hello    wire.Hello
	Incoming func(tunnel.Stream, wire.Incoming)
	Event    func(wire.Event)
	Trouble  func(error)
}

// Room keeps the agents beside the further pods. Its methods may be called from any goroutine.
type Room struct {
	c    Config
	ctx  context.Context
	stop context.CancelFunc
	work sync.WaitGroup

	mu      sync.Mutex
	wanted  map[uint64]wire.Subscribe // by the first pod's number
	members map[*member]bool
}

// member is one further pod.
type member struct {
	name string
	conn *pod.Conn

	mu   sync.Mutex                   // held while a subscription is made: its first connection may come before its number
	subs map[uint64]*pod.Subscription // by the first pod's number
	told map[uint64]uint64            // the first pod's number, by that of this pod's agent
}

// New makes a room of the first pod alone.
func New(c Config) *Room {
	r := &Room{c: c, wanted: make(map[uint64]wire.Subscribe), members: make(map[*member]bool)}
	r.ctx, r.stop = context.WithCancel(context.Background())
	return r
}

// Start follows the pods of a source, and returns when the first of them are there.
func (r *Room) Start(ctx context.Context, s Source) {
	ready := make(chan struct{})
	var once sync.Once
	r.work.Go(func() { s(r.ctx, r.join, func() { once.Do(func() { close(ready) }) }) })
	select {
	case <-ready:
	case <-ctx.Done():
	}
}

// Close ends all but the first.
func (r *Room) Close() {
	r.stop()
	r.work.Wait()
}

func (r *Room) join(ctx context.Context, name string, dial tunnel.Dialer) (<-chan struct{}, func(), error) {
	m := &member{name: name, subs: make(map[uint64]*pod.Subscription), told: make(map[uint64]uint64)}
	conn, err := pod.Join(ctx, "pod "+name, dial, r.c.Hello, pod.Handlers{
		Incoming: func(s tunnel.Stream, in wire.Incoming) {
			m.mu.Lock()
			in.Subscription = m.told[in.Subscription]
			m.mu.Unlock()
			r.c.Incoming(s, in)
		},
		Event: r.c.Event,
	})
	if err != nil {
		return nil, nil, err
	}
	m.conn = conn
	r.mu.Lock()
	r.members[m] = true
	wanted := make(map[uint64]wire.Subscribe, len(r.wanted))
	for id, s := range r.wanted {
		wanted[id] = s
	}
	r.mu.Unlock()
	for id, s := range wanted {
		r.subscribe(ctx, m, id, s)
	}
	leave := func() {
		r.mu.Lock()
		delete(r.members, m)
		r.mu.Unlock()
		conn.Close()
	}
	return conn.Done(), leave, nil
}

// Subscribe asks all pods for the connections of a port. The first's answer counts; another's
// refusal is told.
func (r *Room) Subscribe(ctx context.Context, s wire.Subscribe) (*pod.Subscription, wire.Reply, error) {
	sub, reply, err := r.c.First.Subscribe(ctx, s)
	if err != nil || sub == nil {
		return sub, reply, err
	}
	r.mu.Lock()
	r.wanted[sub.ID] = s
	var members []*member
	for m := range r.members {
		members = append(members, m)
	}
	r.mu.Unlock()
	sub.OnClose(func() { r.unsubscribe(sub.ID) })
	var asked sync.WaitGroup
	for _, m := range members {
		asked.Go(func() { r.subscribe(ctx, m, sub.ID, s) })
	}
	asked.Wait()
	return sub, reply, nil
}

// subscribe asks one further pod for what the first pod's subscription id is for.
func (r *Room) subscribe(ctx context.Context, m *member, id uint64, s wire.Subscribe) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.subs[id] != nil {
		return
	}
	sub, reply, err := m.conn.Subscribe(ctx, s)
	switch {
	case err != nil:
		r.c.Trouble(fmt.Errorf("port %d of pod %s: %w", s.Port, m.name, err))
		return
	case sub == nil && reply.Error != "":
		r.c.Trouble(fmt.Errorf("port %d of pod %s: %s", s.Port, m.name, reply.Error))
		return
	case sub == nil:
		r.c.Trouble(fmt.Errorf("port %d of pod %s: %w", s.Port, m.name, syscall.Errno(reply.Errno)))
		return
	}
	m.subs[id], m.told[sub.ID] = sub, id
	r.mu.Lock()
	_, still := r.wanted[id]
	r.mu.Unlock()
	if !still { // given back meanwhile
		sub.Close()
		delete(m.subs, id)
	}
}

// unsubscribe gives a port back everywhere. Connections that were caught before go on.
func (r *Room) unsubscribe(id uint64) {
	r.mu.Lock()
	delete(r.wanted, id)
	var members []*member
	for m := range r.members {
		members = append(members, m)
	}
	r.mu.Unlock()
	for _, m := range members {
		// Not here: the caller may hold what an incoming connection waits for.
		r.work.Go(func() {
			m.mu.Lock()
			defer m.mu.Unlock()
			if s := m.subs[id]; s != nil {
				s.Close()
				delete(m.subs, id)
			}
		})
	}
}
