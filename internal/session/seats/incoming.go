package seats

import (
	"context"
	"fmt"
	"sync"
	"syscall"
	"time"

	"github.com/stead-dev/stead/internal/session/pod"
	"github.com/stead-dev/stead/internal/tunnel"
	"github.com/stead-dev/stead/internal/wire"
)

// catchUpEvery is how often a port is asked for again at a pod where somebody else had it.
const catchUpEvery = 2 * time.Second

// incoming takes a caught connection, as if the one pod had caught it.
func (s *Seat) incoming(st tunnel.Stream, in wire.Incoming) {
	s.mu.Lock()
	id, asked := s.told[in.Subscription]
	s.mu.Unlock()
	if !asked { // there may be nobody to take it
		_ = st.Reset(uint32(syscall.ECONNREFUSED))
		return
	}
	in.Subscription = id
	s.room.c.Incoming(st, in)
}

// Subscribe asks all pods for the connections of a port. The answer of the one that is stood for
// counts; another's refusal is told.
func (r *Room) Subscribe(ctx context.Context, sub wire.Subscribe) (*pod.Subscription, wire.Reply, error) {
	r.mu.Lock()
	r.next++
	id := r.next
	r.mu.Unlock()
	var reply wire.Reply
	var first *Seat
	err := r.through(ctx, func(s *Seat) (err error) {
		first = s
		reply, err = s.subscribe(ctx, id, sub)
		return err
	})
	if err != nil || reply.Errno != 0 {
		return nil, reply, err
	}
	r.mu.Lock()
	r.wanted[id] = sub
	others := make([]*Seat, 0, len(r.seats))
	for _, s := range r.seats {
		if s != first {
			others = append(others, s)
		}
	}
	r.mu.Unlock()
	var asked sync.WaitGroup
	for _, s := range others {
		asked.Go(func() { s.catchUp(ctx) })
	}
	asked.Wait()
	reply.ID = id
	return pod.NewSubscription(id, func() { r.unsubscribe(id) }), reply, nil
}

// unsubscribe gives a port back everywhere. Connections that were caught before go on.
func (r *Room) unsubscribe(id uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.wanted, id)
	for _, s := range r.seats {
		// Not here: the caller may hold what an incoming connection waits for.
		r.work.Go(func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.dropLocked(id)
		})
	}
}

func (s *Seat) dropLocked(id uint64) {
	if sub := s.subs[id]; sub != nil {
		sub.Close()
		delete(s.subs, id) // told stays: what was caught before may still come
	}
}

// catchUp asks this pod for the ports that are wanted and that it has not given. Its refusal is told;
// so is that of a later time, if it is another.
func (s *Seat) catchUp(ctx context.Context) {
	r := s.room
	r.mu.Lock()
	wanted := make(map[uint64]wire.Subscribe, len(r.wanted))
	for id, sub := range r.wanted {
		wanted[id] = sub
	}
	r.mu.Unlock()
	for id, sub := range wanted {
		reply, err := s.subscribe(ctx, id, sub)
		switch {
		case ctx.Err() != nil || s.conn.Err() != nil:
			return
		case err == nil && reply.Errno == 0:
			s.mu.Lock()
			r.mu.Lock()
			_, still := r.wanted[id]
			r.mu.Unlock()
			if !still { // given back meanwhile
				s.dropLocked(id)
			}
			s.mu.Unlock()
			continue
		case err == nil && reply.Error != "":
			err = fmt.Errorf("%s", reply.Error)
		case err == nil:
			err = syscall.Errno(reply.Errno)
		}
		r.c.Trouble(fmt.Errorf("%s port %d of pod %s: %w", sub.Mode, sub.Port, s.name, err))
	}
}

// subscribe asks this pod for one port, unless it has given it already.
func (s *Seat) subscribe(ctx context.Context, id uint64, want wire.Subscribe) (wire.Reply, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.subs[id] != nil {
		return wire.Reply{}, nil
	}
	sub, reply, err := s.conn.Subscribe(ctx, want)
	if err != nil || sub == nil {
		return reply, err
	}
	s.subs[id], s.told[sub.ID] = sub, id
	return reply, nil
}
