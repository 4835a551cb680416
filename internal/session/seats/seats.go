// Package seats keeps a session's places beside the pods of its target, one agent each. The incoming
// traffic of all is that of one: what the program listens on is asked for at every agent. One of them
// is stood for: its are the files and the outgoing connections. When that pod ends, another takes its
// place: calls that come meanwhile wait for it, and what went through the old one ends with it.
//
// Which pods there are is not its business: a Source tells.
package seats

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/stead-dev/stead/internal/fault"
	"github.com/stead-dev/stead/internal/session/pod"
	"github.com/stead-dev/stead/internal/tunnel"
	"github.com/stead-dev/stead/internal/wire"
)

// Source follows the target's pods until ctx ends: it calls join for those that are there or come,
// for all of them or only for one in the place of one that ends, and waits for the end of each seat.
// first is the seat that there is already. It calls ready once, when those that were there at the begin
// have joined or cannot. It returns earlier where no pod will come any more, with the reason.
type Source func(ctx context.Context, all bool, first *Seat, join Join, ready func()) error

// Join attaches the session to the agent beside a further pod.
type Join func(ctx context.Context, name string, dial tunnel.Dialer) (*Seat, error)

// Config is what a Room is made of.
type Config struct {
	Target   string // as the user named it, for messages
	Hello    wire.Hello
	Incoming func(tunnel.Stream, wire.Incoming)
	Event    func(wire.Event)
	Notice   func(string)
	Trouble  func(error)
	Moved    func()        // another pod is stood for, or the same one by another agent; must not wait
	Wait     time.Duration // how long none may be stood for; 0 ends the session with its pod
}

// Room keeps the seats. Its methods may be called from any goroutine.
type Room struct {
	c    Config
	ctx  context.Context
	stop context.CancelFunc
	work sync.WaitGroup

	mu     sync.Mutex
	seats  []*Seat
	at     *Seat // the one that is stood for, nil while there is none
	last   *Seat // the one that was stood for last
	moved  chan struct{}
	wanted map[uint64]wire.Subscribe // by the number that we give it
	next   uint64
	over   error // why no pod will come any more
	lost   chan struct{}
	err    error // read after lost
}

// Seat is the session's place beside one pod.
type Seat struct {
	room *Room
	name string
	conn *pod.Conn

	ending bool // its pod is about to end; guarded by Room.mu

	mu   sync.Mutex                   // held while a subscription is made: its first connection may come before its number
	subs map[uint64]*pod.Subscription // by the room's number
	told map[uint64]uint64            // the room's number, by that of this pod's agent
}

// errUnfollowed is why no pod comes where nobody follows them.
var errUnfollowed = errors.New("its target is not followed")

// New makes an empty room; Begin must be called before anything else.
func New(c Config) *Room {
	r := &Room{c: c, moved: make(chan struct{}), wanted: make(map[uint64]wire.Subscribe), lost: make(chan struct{}),
		over: errUnfollowed}
	r.ctx, r.stop = context.WithCancel(context.Background())
	return r
}

// Begin takes the first seat.
func (r *Room) Begin(ctx context.Context, name string, dial tunnel.Dialer) error {
	_, err := r.join(ctx, cmp.Or(name, r.c.Target), r.c.Target, dial)
	return err
}

// Follow follows the pods of a source, all or one, and returns when the first of them are there.
func (r *Room) Follow(ctx context.Context, s Source, all bool) {
	r.mu.Lock()
	first := r.at
	r.over = nil
	r.mu.Unlock()
	if first == nil { // lost already
		r.settle(nil)
		return
	}
	ready := make(chan struct{})
	var once sync.Once
	begun := func() { once.Do(func() { close(ready) }) }
	r.work.Go(func() {
		defer begun()
		err := s(r.ctx, all, first, func(ctx context.Context, name string, dial tunnel.Dialer) (*Seat, error) {
			return r.join(ctx, name, "pod "+name, dial)
		}, begun)
		if r.ctx.Err() != nil {
			return
		}
		r.mu.Lock()
		r.over = cmp.Or(err, errors.New("no other pod will come"))
		r.mu.Unlock()
		r.settle(nil)
	})
	select {
	case <-ready:
	case <-ctx.Done():
	}
}

// Close leaves every seat and waits for what goes on.
func (r *Room) Close() {
	r.stop()
	r.mu.Lock()
	all := slices.Clone(r.seats)
	r.mu.Unlock()
	for _, s := range all {
		s.Leave()
	}
	r.work.Wait()
}

// Lost is closed when nobody is stood for any more, for good; Err says why.
func (r *Room) Lost() <-chan struct{} { return r.lost }

// Err says why nobody is stood for any more.
func (r *Room) Err() error {
	<-r.lost
	return r.err
}

// Target is what the agent said of the pod that is stood for, or was last.
func (r *Room) Target() *wire.Target {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last.conn.Target()
}

// join takes a seat. whom is for errors.
func (r *Room) join(ctx context.Context, name, whom string, dial tunnel.Dialer) (*Seat, error) {
	s := &Seat{room: r, name: name, subs: make(map[uint64]*pod.Subscription), told: make(map[uint64]uint64)}
	conn, err := pod.Join(ctx, whom, dial, r.c.Hello, pod.Handlers{Incoming: s.incoming, Event: func(e wire.Event) {
		if e.Kind != wire.EventTargetGone { // what follows of it is told
			r.c.Event(e)
		}
	}})
	if err != nil {
		return nil, err
	}
	s.conn = conn
	r.mu.Lock()
	if r.ctx.Err() != nil {
		r.mu.Unlock()
		conn.Close()
		return nil, context.Cause(r.ctx)
	}
	r.seats = append(r.seats, s)
	r.work.Go(s.keep)
	r.mu.Unlock()
	s.catchUp(ctx) // before it is stood for
	r.settle(nil)
	return s, nil
}

// keep watches over a seat to its end.
func (s *Seat) keep() {
	again := time.NewTicker(catchUpEvery)
	defer again.Stop()
	for {
		select {
		case <-s.conn.Done():
			s.room.settle(s)
			s.conn.Close()
			return
		case <-again.C:
			s.catchUp(s.room.ctx)
		}
	}
}

// Done is closed when the agent is lost.
func (s *Seat) Done() <-chan struct{} { return s.conn.Done() }

// TargetGone says of a seat that is done whether its target has ended.
func (s *Seat) TargetGone() bool { return s.conn.TargetGone() }

// Ending tells that the pod is about to end: another is to be stood for, if there is one. What goes
// through it goes on to its end.
func (s *Seat) Ending() {
	s.room.mu.Lock()
	s.ending = true
	s.room.mu.Unlock()
	s.room.settle(nil)
}

// Leave gives the seat up.
func (s *Seat) Leave() {
	s.room.settle(s)
	s.conn.Close()
}

// choose says which seat is stood for: the one that is, for as long as it lasts, else the first by its
// pod's name; one whose pod is about to end only where there is no other.
func choose(now *Seat, all []*Seat) *Seat {
	if now != nil && !now.ending && slices.Contains(all, now) {
		return now
	}
	var best *Seat
	for _, s := range all {
		switch {
		case best == nil, best.ending && !s.ending:
			best = s
		case best.ending == s.ending && (s == now || best != now && s.name < best.name):
			best = s
		}
	}
	return best
}

// lateNotice is how long nobody may be stood for before that is told.
const lateNotice = 2 * time.Second

// settle chooses anew, without the seat that is given up.
func (r *Room) settle(without *Seat) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if i := slices.Index(r.seats, without); i >= 0 {
		r.seats = slices.Delete(r.seats, i, i+1)
	}
	if r.ctx.Err() != nil {
		return
	}
	next := choose(r.at, r.seats)
	if r.c.Wait <= 0 && r.last != nil && next != r.last { // not wanted
		next = nil
		if slices.Contains(r.seats, r.last) {
			next = r.last
		}
	}
	if next == nil && r.last != nil && r.err == nil && (r.over != nil || r.c.Wait <= 0) {
		r.failLocked(r.over)
	}
	if next == r.at {
		return
	}
	old := r.last
	r.at = next
	close(r.moved)
	r.moved = make(chan struct{})
	if next == nil {
		if r.err == nil {
			moved := r.moved
			r.work.Go(func() { r.vacant(old, moved) })
		}
		return
	}
	r.last = next
	if old != nil {
		r.c.Notice(moved(old, next))
		r.c.Moved()
	}
}

// failLocked ends the session. why is why no other pod is there.
func (r *Room) failLocked(why error) {
	r.err = fmt.Errorf("pod %s ended", r.last.name)
	if !r.last.targetGone() {
		r.err = fmt.Errorf("lost the agent beside %s: %w", r.c.Target, r.last.conn.Err())
	}
	if why != nil && why != errUnfollowed {
		r.err = fmt.Errorf("%w: %w", r.err, why)
	}
	r.err = fault.With(r.err, cmp.Or(fault.Hint(why), "run the same command again"))
	close(r.lost)
}

// vacant waits until somebody is stood for again, in vain at last.
func (r *Room) vacant(old *Seat, moved <-chan struct{}) {
	late := time.NewTimer(lateNotice)
	defer late.Stop()
	end := time.NewTimer(r.c.Wait)
	defer end.Stop()
	for {
		select {
		case <-moved:
			return
		case <-r.ctx.Done():
			return
		case <-r.lost:
			return
		case <-late.C:
			r.mu.Lock()
			text := ended(old)
			r.mu.Unlock()
			r.c.Notice(fmt.Sprintf("%s; waiting for another one, for at most %v", text, r.c.Wait))
		case <-end.C:
			r.mu.Lock()
			if r.at == nil && r.err == nil {
				r.failLocked(fmt.Errorf("none was there to stand for within %v", r.c.Wait))
			}
			r.mu.Unlock()
			return
		}
	}
}

// targetGone says of a seat that is lost, or left, whether its pod has ended. Called with Room.mu held,
// as are the next two.
func (s *Seat) targetGone() bool {
	return s.ending || s.conn.Err() == nil || s.conn.TargetGone()
}

// ended says how a seat was lost.
func ended(s *Seat) string {
	if s.targetGone() {
		return "pod " + s.name + " ended"
	}
	return fmt.Sprintf("lost the agent beside pod %s (%v)", s.name, s.conn.Err())
}

// moved says who is stood for now.
func moved(old, next *Seat) string {
	switch {
	case old.name != next.name:
		return fmt.Sprintf("%s; now in the stead of pod %s", ended(old), next.name)
	case old.targetGone():
		return fmt.Sprintf("the app of pod %s was started anew; now in the stead of that", next.name)
	}
	return fmt.Sprintf("%s; another one stands there now", ended(old))
}

// seated gives the seat that is stood for, and waits while there is none.
func (r *Room) seated(ctx context.Context) (*Seat, error) {
	for {
		r.mu.Lock()
		at, moved := r.at, r.moved
		r.mu.Unlock()
		if at != nil {
			return at, nil
		}
		select {
		case <-moved:
		case <-r.lost:
			return nil, r.err
		case <-r.ctx.Done():
			return nil, tunnel.ErrClosed
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// through calls f with the seat that is stood for, again where that was lost under it.
func (r *Room) through(ctx context.Context, f func(*Seat) error) error {
	for {
		s, err := r.seated(ctx)
		if err != nil {
			return err
		}
		err = f(s)
		if err == nil || ctx.Err() != nil || s.conn.Err() == nil {
			return err
		}
		r.settle(s)
	}
}

// Dial connects from the pod; see pod.Conn.
func (r *Room) Dial(ctx context.Context, d wire.Dial) (st tunnel.Stream, reply wire.Reply, err error) {
	err = r.through(ctx, func(s *Seat) error { st, reply, err = s.conn.Dial(ctx, d); return err })
	return st, reply, err
}

// Packet opens an unconnected UDP socket in the pod; see pod.Conn.
func (r *Room) Packet(ctx context.Context, p wire.Packet) (st tunnel.Stream, reply wire.Reply, err error) {
	err = r.through(ctx, func(s *Seat) error { st, reply, err = s.conn.Packet(ctx, p); return err })
	return st, reply, err
}

// Files opens a stream for file requests.
func (r *Room) Files(ctx context.Context) (st tunnel.Stream, err error) {
	err = r.through(ctx, func(s *Seat) error { st, err = s.conn.Files(ctx); return err })
	return st, err
}
