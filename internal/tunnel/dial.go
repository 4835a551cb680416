package tunnel

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// Dial opens a tunnel over the transport that dial gives, and dials again whenever that is lost,
// for as long as o.Resume. ctx bounds the opening only. A further lane is dialled when there is
// bulk to send for the first time.
func Dial(ctx context.Context, dial Dialer, o Options) (Conn, error) {
	c := newConn(o, true)
	c.dial = dial
	rand.Read(c.id[:])
	rand.Read(c.token[:])
	if err := c.links[0].greet(ctx, dial, false); err != nil {
		c.finish(err)
		c.wg.Wait()
		return nil, err
	}
	for _, l := range c.links {
		c.wg.Add(1)
		go func() { defer c.wg.Done(); l.serveDials(dial) }()
	}
	return c, nil
}

type bulkKey struct{}

// ForBulk tells a Dialer whether the transport is for the lane that takes bulk alone, where there are
// two ways of which one is quicker and one wider.
func ForBulk(ctx context.Context) bool {
	bulk, _ := ctx.Value(bulkKey{}).(bool)
	return bulk
}

// serveDials gives the link transports until the tunnel is over.
func (l *link) serveDials(dial Dialer) {
	c := l.c
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	c.wg.Add(1)
	go func() { // ends with the tunnel, or with ctx
		defer c.wg.Done()
		select {
		case <-c.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	for {
		select {
		case <-c.done:
			return
		case <-l.again:
		}
		c.mu.Lock()
		missing, used, lost := l.transport == nil, l.used, l.lostErr
		c.mu.Unlock()
		if !missing {
			continue
		}
		if !used { // without the lane there is the first one
			tctx, cancel := context.WithTimeout(ctx, greetTimeout)
			_ = l.greet(tctx, dial, true)
			cancel()
			continue
		}
		if err := l.redial(ctx, dial); err != nil {
			c.finish(fmt.Errorf("connection to the agent lost (%w), and not to be had again: %w", lost, err))
			return
		}
	}
}

// redial tries until the peer answers, says that it does not know us, or the time is over.
func (l *link) redial(ctx context.Context, dial Dialer) error {
	ctx, cancel := context.WithTimeout(ctx, l.c.o.Resume)
	defer cancel()
	var last error
	for wait := 10 * time.Millisecond; ; wait = min(wait*2, 2*time.Second) {
		err := l.greet(ctx, dial, true)
		if err == nil || errors.Is(err, ErrUnknownTunnel) {
			return err
		}
		if ctx.Err() == nil || last == nil {
			last = err
		}
		pause := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			pause.Stop()
			return last
		case <-pause.C:
		}
	}
}

// greet dials once and makes the result the transport.
func (l *link) greet(ctx context.Context, dial Dialer, known bool) error {
	dctx := ctx
	if l.lane > 0 {
		dctx = context.WithValue(ctx, bulkKey{}, true)
	}
	t, err := dial(dctx)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { t.Close() })
	c := l.c
	c.mu.Lock()
	l.attempt++
	g := greeting{known: known, lane: byte(l.lane), attempt: l.attempt, id: c.id, token: c.token, received: l.recvSeq}
	c.mu.Unlock()
	_ = t.SetDeadline(time.Now().Add(greetTimeout))
	r := bufio.NewReaderSize(t, readBuffer)
	var b [answerSize]byte
	if _, err = t.Write(g.encode()); err == nil {
		_, err = io.ReadFull(r, b[:])
	}
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		t.Close()
		return fmt.Errorf("greet the agent: %w", err)
	}
	_ = t.SetDeadline(time.Time{})
	switch {
	case b[0] == statusUnknown:
		err = ErrUnknownTunnel
	case b[0] != statusOK:
		err = fmt.Errorf("the agent refused lane %d of the tunnel", l.lane)
	case !l.attach(t, r, binary.BigEndian.Uint64(b[1:]), g.attempt):
		err = ErrUnknownTunnel
	default:
		return nil
	}
	t.Close()
	return err
}

// Pipe returns the two ends of a tunnel over memory, for tests. A lost transport ends it.
func Pipe() (session, agent Conn) {
	o := Options{Resume: -1, Lanes: 1}
	a, b := newConn(o, true), newConn(o, false)
	x, y := net.Pipe()
	a.links[0].attach(x, bufio.NewReaderSize(x, readBuffer), 0, 0)
	b.links[0].attach(y, bufio.NewReaderSize(y, readBuffer), 0, 0)
	return a, b
}
