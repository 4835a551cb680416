package agent

import (
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/inet"
)

// witness asks the kernel about single connections, of which a packet socket sees more than are the
// target's: those that a mesh's proxy redirects to itself and repeats to the app in connections of its
// own, and, in a node's own network namespace, those that pass through to other pods.
//
// It belongs to the tap's goroutine. A nil one knows nothing and takes each connection for the target's.
type witness struct {
	t    *target
	diag *inet.Diag // nil where the kernel has none
	nat  *tracking  // nil where the kernel tracks nothing or cannot be asked

	local map[netip.Addr]bool // whether an address is the namespace's own
	since time.Time           // of local
}

const (
	localAge = 10 * time.Second
	maxLocal = 1024
)

func newWitness(t *target) *witness {
	w := &witness{t: t, nat: t.newTracking(), local: make(map[netip.Addr]bool)}
	_ = t.net.Do(func() error {
		w.diag, _ = inet.OpenDiag()
		return nil
	})
	return w
}

func (w *witness) close() {
	if w == nil {
		return
	}
	if w.diag != nil {
		w.diag.Close()
	}
	w.nat.close()
}

// sees says whether it can tell that a connection stands.
func (w *witness) sees() bool { return w != nil && w.diag != nil }

// answer is what the witness says of a flow.
type answer int

const (
	unknown    answer = iota // the kernel has no such connection, or cannot be asked at all
	halfOpen                 // its handshake goes on
	stands                   // its handshake is over
	notOurs                  // it goes to somebody else
	unanswered               // ask later
)

// ask says how far a connection is.
func (w *witness) ask(f *flow) answer {
	switch {
	case !w.ours(f):
		return notOurs
	case !w.sees():
		return unknown
	}
	switch state, err := w.diag.Connection(f.here, f.there, f.device); {
	case err != nil:
		return unanswered
	case state == inet.Standing:
		return stands
	case state == inet.HalfOpen:
		return halfOpen
	}
	return unknown
}

// ours says whether a connection goes to an address of this namespace's and to the port that the client has
// called, and sets the addresses that it has for the one who accepts it.
func (w *witness) ours(f *flow) bool {
	if f.here.IsValid() {
		return f.ours
	}
	f.here, f.there, f.ours = f.key.to, f.key.from, true
	if w == nil {
		return true
	}
	if here, there, ok := w.nat.translated(f.key); ok {
		f.here, f.there = here, there
	}
	f.ours = f.here.Port() == f.key.to.Port() && w.isLocal(f.here.Addr())
	return f.ours
}

func (w *witness) isLocal(a netip.Addr) bool {
	if a.IsLoopback() || a.IsLinkLocalUnicast() { // neither is passed on
		return true
	}
	if now := time.Now(); now.Sub(w.since) > localAge || len(w.local) >= maxLocal {
		clear(w.local)
		w.since = now
	}
	is, known := w.local[a]
	if !known {
		is = w.t.has(a)
		w.local[a] = is
	}
	return is
}

// has says whether an address is the target's network namespace's own: one that can be bound.
func (t *target) has(a netip.Addr) bool {
	fd, err := t.socket(a.Is6(), unix.SOCK_DGRAM)
	if err != nil {
		return true
	}
	defer unix.Close(fd)
	at := netip.AddrPortFrom(a, 0)
	return unix.Bind(fd, inet.ToUnix(familyOf(at), at)) != unix.EADDRNOTAVAIL
}
