package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

// Where session and agent are on one machine, which a unix socket as transport shows, a connection
// that has carried a good deal is handed to the agent: the session passes the descriptor of the
// program's connection, and the agent joins it to the pod's with splice(2). The bytes then pass one
// process instead of two and are not copied there. The steps, on a transport of its own that begins
// with a greeting for laneHandoff (received: the stream's number) and is called the side:
//
//  1. The session sends a byte with the descriptor. The agent's relay stops reading and ends its
//     direction of the stream after what it has read; it answers with a byte, or closes the side,
//     and then all stays as it was.
//  2. The session's relay stops reading and ends its direction.
//  3. When either has written all that came on the stream, the session says so with a byte. It
//     waits on the connection no more. The stream is over; the agent carries the bytes.
//
// The side lives as long as the connection, so that either notices the other's end. As long the session
// keeps a descriptor: an agent that is killed ends the connection with a reset, and not with an end of
// its bytes.
const (
	laneHandoff    = 255
	handAfter      = 512 << 10 // bytes that a relay has carried
	handUnit       = 8 << 10   // as which a message counts at least: many small ones wait for each other
	handoffTimeout = 5 * time.Second
)

// movedLocked counts bytes that a relay has carried.
func (s *stream) movedLocked(n int) {
	if s.offer == nil {
		return
	}
	if s.moved += max(n, handUnit); s.moved >= handAfter {
		offer := s.offer
		s.offer = nil
		offer()
	}
}

// canHand says whether the peer can be passed a descriptor.
func (c *conn) canHandLocked() bool {
	if !c.dialer {
		return false
	}
	_, ok := c.links[0].transport.(*net.UnixConn)
	return ok
}

// hand passes p to the agent for stream id and waits for the answer. unsure: the agent may have
// taken it all the same.
func (c *conn) hand(ctx context.Context, id uint32, p syscall.Conn) (side *net.UnixConn, unsure bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, handoffTimeout)
	defer cancel()
	t, err := c.dial(ctx)
	if err != nil {
		return nil, false, err
	}
	defer func() {
		if err != nil {
			t.Close()
		}
	}()
	side, ok := t.(*net.UnixConn)
	if !ok {
		return nil, false, errors.New("hand over: not a unix socket")
	}
	_ = side.SetDeadline(time.Now().Add(handoffTimeout))
	stop := context.AfterFunc(ctx, func() { _ = side.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	g := greeting{known: true, lane: laneHandoff, id: c.id, token: c.token, received: uint64(id)}
	if _, err := side.Write(g.encode()); err != nil {
		return nil, false, fmt.Errorf("hand over: %w", err)
	}
	raw, err := p.SyscallConn()
	if err != nil {
		return nil, false, err
	}
	var serr error
	if err := raw.Control(func(fd uintptr) {
		_, _, serr = side.WriteMsgUnix([]byte{0}, syscall.UnixRights(int(fd)), nil)
	}); err != nil {
		return nil, false, err
	}
	if serr != nil {
		return nil, false, fmt.Errorf("hand over: %w", serr)
	}
	var answer [answerSize]byte
	if _, err := io.ReadFull(side, answer[:]); err != nil {
		return nil, true, fmt.Errorf("hand over: %w", err)
	}
	if answer[0] != statusOK {
		return nil, false, errors.New("hand over: refused")
	}
	if !stop() {
		return nil, true, context.Cause(ctx)
	}
	_ = side.SetDeadline(time.Time{})
	return side, false, nil
}

// takeHanded is the agent's side of hand. It owns t from now on.
func (c *conn) takeHanded(t net.Conn, g greeting) {
	var answer [answerSize]byte
	side, p := receiveHanded(t)
	var take func(net.Conn, *net.UnixConn) bool
	c.mu.Lock()
	if s := c.streams[uint32(g.received)]; s != nil && p != nil {
		take = s.take
	}
	c.mu.Unlock()
	_ = t.SetDeadline(time.Time{})
	if take != nil && take(p, side) {
		_, _ = side.Write(answer[:]) // the relay notices when the session is gone
		return
	}
	if p != nil {
		p.Close()
	}
	answer[0] = statusUnknown
	_ = t.SetWriteDeadline(time.Now().Add(handoffTimeout))
	_, _ = t.Write(answer[:])
	t.Close()
}

// receiveHanded takes the byte after the greeting and the connection that came with it; nil where
// none did, as over a forwarded socket.
func receiveHanded(t net.Conn) (*net.UnixConn, net.Conn) {
	b := make([]byte, 1)
	side, ok := t.(*net.UnixConn)
	if !ok {
		_, _ = io.ReadFull(t, b)
		return nil, nil
	}
	oob := make([]byte, syscall.CmsgSpace(4))
	_, n, _, _, err := side.ReadMsgUnix(b, oob)
	if err != nil {
		return side, nil
	}
	p, err := passed(oob[:n])
	if err != nil {
		return side, nil
	}
	return side, p
}

// passed makes a connection of the descriptor in a control message.
func passed(oob []byte) (net.Conn, error) {
	messages, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for _, m := range messages {
		fds, err := syscall.ParseUnixRights(&m)
		if err != nil || len(fds) == 0 {
			continue
		}
		f := os.NewFile(uintptr(fds[0]), "handed connection")
		defer f.Close()
		for _, fd := range fds[1:] {
			_ = syscall.Close(fd)
		}
		return net.FileConn(f)
	}
	return nil, errors.New("no descriptor came")
}

// splice carries bytes between a and b, which it owns, until both directions have ended, ctx is
// done, or the side is closed. The kernel moves them; nothing is copied here.
func splice(ctx context.Context, a, b net.Conn, side *net.UnixConn) {
	over := func() { _ = side.SetDeadline(time.Unix(1, 0)) }
	stop := context.AfterFunc(ctx, over)
	defer stop()
	var first [1]byte
	if _, err := io.ReadFull(side, first[:]); err != nil { // step 3 did not come
		abort(a)
		abort(b)
		side.Close()
		return
	}
	_ = a.SetDeadline(time.Time{})
	ends := make(chan bool, 2)
	one := func(to, from net.Conn) {
		_, err := io.Copy(to, from)
		if err == nil {
			err = closeWrite(to)
		}
		ends <- err == nil
	}
	go one(a, b)
	go one(b, a)
	gone := make(chan struct{})
	go func() { // ends when the side does, or over is called
		defer close(gone)
		_, _ = io.Copy(io.Discard, side)
	}()
	whole := true
	for n := 0; n < 2; {
		select {
		case ok := <-ends:
			n++
			whole = whole && ok
		case <-gone:
			gone = nil
			whole = false
		}
		if !whole {
			_ = a.SetDeadline(time.Unix(1, 0))
			_ = b.SetDeadline(time.Unix(1, 0))
		}
	}
	over()
	if gone != nil {
		<-gone
	}
	if !whole {
		abort(a)
		abort(b)
	}
	a.Close()
	b.Close()
	side.Close()
}

func closeWrite(c net.Conn) error {
	h, ok := c.(interface{ CloseWrite() error })
	if !ok {
		return nil
	}
	if err := h.CloseWrite(); err != nil && !errors.Is(err, syscall.ENOTCONN) {
		return err
	}
	return nil
}
