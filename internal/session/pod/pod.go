// Package pod is a session's side of the agent: it introduces the session, asks for connections,
// ports and files of the pod, and hands out what the agent brings. It knows the messages (package
// wire) and the tunnel, and nothing of the program.
package pod

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/stead-dev/stead/internal/fault"
	"github.com/stead-dev/stead/internal/tunnel"
	"github.com/stead-dev/stead/internal/wire"
)

// Conn is a session with an agent. Its methods may be called from any goroutine.
type Conn struct {
	t       tunnel.Conn
	control tunnel.Stream
	welcome wire.Welcome

	incoming func(tunnel.Stream, wire.Incoming)
	event    func(wire.Event)
	cancel   context.CancelFunc
	running  sync.WaitGroup
	heard    chan struct{} // closed when the agent has nothing more to tell of the target
	gone     bool          // it told that the target has ended; read after heard
}

// Handlers are told what the agent does on its own account.
type Handlers struct {
	// Incoming gets the stream of a caught connection, which it owns and must answer with a
	// Reply. It is called on a goroutine of its own that Close waits for.
	Incoming func(tunnel.Stream, wire.Incoming)
	// Event gets news about the target and about subscriptions.
	Event func(wire.Event)
}

// replyTimeout bounds the answers that need no more than the agent's attention.
const replyTimeout = 30 * time.Second

// Attach introduces the session on a fresh tunnel, which it owns from now on.
func Attach(ctx context.Context, t tunnel.Conn, hello wire.Hello, h Handlers) (*Conn, error) {
	c := &Conn{t: t, incoming: h.Incoming, event: h.Event, heard: make(chan struct{})}
	ctx, cancel := context.WithTimeout(ctx, replyTimeout)
	defer cancel()
	hello.Version, hello.MinVersion = wire.Version, wire.MinVersion
	s, err := c.open(ctx, wire.Open{Kind: wire.KindControl, Hello: &hello}, &c.welcome)
	if err != nil {
		t.Close()
		return nil, fmt.Errorf("greet agent: %w", err)
	}
	if c.welcome.Error != "" {
		t.Close()
		return nil, fault.With(fmt.Errorf("agent refused the session: %s", c.welcome.Error), c.welcome.Hint)
	}
	c.control = s
	run, stop := context.WithCancel(context.Background())
	c.cancel = stop
	c.running.Add(2)
	go func() { defer c.running.Done(); defer close(c.heard); c.events(s, &c.gone) }()
	go func() { defer c.running.Done(); c.accept(run) }()
	return c, nil
}

// Close ends the session; the agent gives everything back.
func (c *Conn) Close() {
	c.cancel()
	c.control.Close()
	c.t.Close()
	c.running.Wait()
}

// Done is closed when the agent is lost for good; Err says why.
func (c *Conn) Done() <-chan struct{} { return c.t.Done() }

// Err says why the tunnel ended, nil while it has not.
func (c *Conn) Err() error { return c.t.Err() }

// TargetGone says of a lost agent whether it ended because its target had.
func (c *Conn) TargetGone() bool {
	<-c.heard
	return c.gone
}

// Target is what the agent said of the target.
func (c *Conn) Target() *wire.Target { return &c.welcome.Target }

// open begins a stream with o and reads the first answer into reply. On error the stream is gone;
// the end of ctx resets it, so the agent gives up what it was about.
func (c *Conn) open(ctx context.Context, o wire.Open, reply any) (tunnel.Stream, error) {
	s, err := c.t.Open(ctx)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { s.Reset(0) })
	if err = wire.Write(s, o); err == nil && reply != nil {
		err = wire.Read(s, reply)
	}
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		s.Reset(0)
		return nil, err
	}
	return s, nil
}

// Dial connects from the pod. The error is about the tunnel; what the pod's kernel said is in
// Reply.Errno, and the stream is nil where that is not 0. Dial waits as long as the pod's kernel
// does: end it by ctx.
func (c *Conn) Dial(ctx context.Context, d wire.Dial) (tunnel.Stream, wire.Reply, error) {
	return c.ask(ctx, wire.Open{Kind: wire.KindDial, Dial: &d})
}

// Packet opens an unconnected UDP socket in the pod.
func (c *Conn) Packet(ctx context.Context, p wire.Packet) (tunnel.Stream, wire.Reply, error) {
	ctx, cancel := context.WithTimeout(ctx, replyTimeout)
	defer cancel()
	return c.ask(ctx, wire.Open{Kind: wire.KindPacket, Packet: &p})
}

func (c *Conn) ask(ctx context.Context, o wire.Open) (tunnel.Stream, wire.Reply, error) {
	var r wire.Reply
	s, err := c.open(ctx, o, &r)
	if err != nil {
		return nil, r, err
	}
	if r.Errno != 0 {
		s.Close()
		return nil, r, nil
	}
	return s, r, nil
}

// Subscription is a port of the pod whose connections come to Handlers.Incoming until Close.
type Subscription struct {
	ID    uint64
	close func()
}

// NewSubscription is one that is given back by f.
func NewSubscription(id uint64, f func()) *Subscription { return &Subscription{ID: id, close: f} }

// Close gives the port back.
func (s *Subscription) Close() { s.close() }

// Subscribe asks for the connections of a port. As with Dial, a refusal is in the Reply.
func (c *Conn) Subscribe(ctx context.Context, sub wire.Subscribe) (*Subscription, wire.Reply, error) {
	ctx, cancel := context.WithTimeout(ctx, replyTimeout)
	defer cancel()
	s, r, err := c.ask(ctx, wire.Open{Kind: wire.KindSubscribe, Subscribe: &sub})
	if err != nil || s == nil {
		return nil, r, err
	}
	c.running.Add(1)
	go func() { defer c.running.Done(); c.events(s, nil) }()
	return NewSubscription(r.ID, func() { s.Close() }), r, nil
}

// Files opens a stream for file requests.
func (c *Conn) Files(ctx context.Context) (tunnel.Stream, error) {
	return c.open(ctx, wire.Open{Kind: wire.KindFiles}, nil)
}

// events reads the agent's news until the stream ends. gone is set when the target has ended.
func (c *Conn) events(s tunnel.Stream, gone *bool) {
	for {
		var e wire.Event
		if err := wire.Read(s, &e); err != nil {
			return
		}
		if gone != nil && e.Kind == wire.EventTargetGone {
			*gone = true
		}
		if c.event != nil {
			c.event(e)
		}
	}
}

// accept takes the streams that the agent opens.
func (c *Conn) accept(ctx context.Context) {
	for {
		s, err := c.t.Accept(ctx)
		if err != nil {
			return
		}
		c.running.Add(1)
		go func() {
			defer c.running.Done()
			if err := c.serve(s); err != nil {
				s.Reset(0)
			}
		}()
	}
}

func (c *Conn) serve(s tunnel.Stream) error {
	var o wire.Open
	s.SetReadDeadline(time.Now().Add(replyTimeout))
	if err := wire.Read(s, &o); err != nil {
		return err
	}
	s.SetReadDeadline(time.Time{})
	if o.Kind != wire.KindIncoming || o.Incoming == nil || c.incoming == nil {
		return errors.New("agent opened a stream that no session takes")
	}
	c.incoming(s, *o.Incoming)
	return nil
}
