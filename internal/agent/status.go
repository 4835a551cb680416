package agent

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/stead-dev/stead/internal/tunnel"
	"github.com/stead-dev/stead/internal/wire"
)

// roster is who uses the agent.
type roster struct {
	mu  sync.Mutex
	all map[*session]entry
}

// entry is what is told of a session.
type entry struct {
	holder, build string
	since         time.Time
}

func (r *roster) add(x *session, holder, build string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.all == nil {
		r.all = make(map[*session]entry)
	}
	r.all[x] = entry{holder, build, time.Now()}
}

func (r *roster) remove(x *session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.all, x)
}

// status tells who uses the agent. It needs no greeting: whoever asks is let in already, and is no
// session.
func (x *session) status(_ context.Context, st tunnel.Stream, _ *wire.Open) {
	defer st.Close()
	w := wire.Status{Build: x.s.c.Build}
	held := x.s.ports.held()
	x.s.roster.mu.Lock()
	for s, e := range x.s.roster.all {
		w.Sessions = append(w.Sessions, wire.SessionStatus{
			Holder: e.holder, Build: e.build, Seconds: int64(time.Since(e.since) / time.Second), Incoming: held[s],
		})
	}
	x.s.roster.mu.Unlock()
	slices.SortFunc(w.Sessions, func(a, b wire.SessionStatus) int {
		return cmp.Or(cmp.Compare(a.Holder, b.Holder), cmp.Compare(b.Seconds, a.Seconds))
	})
	_ = wire.Write(st, w)
}

// held is which ports each session has.
func (p *ports) held() map[*session][]wire.Subscribe {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make(map[*session][]wire.Subscribe)
	add := func(s *subscription) {
		out[s.x] = append(out[s.x], wire.Subscribe{Network: "tcp", Port: s.port, Mode: s.mode})
	}
	for _, s := range p.steal {
		add(s)
	}
	for _, all := range p.mirror {
		for _, s := range all {
			add(s)
		}
	}
	for _, l := range out {
		slices.SortFunc(l, func(a, b wire.Subscribe) int {
			return cmp.Or(cmp.Compare(a.Port, b.Port), cmp.Compare(a.Mode, b.Mode))
		})
	}
	return out
}
