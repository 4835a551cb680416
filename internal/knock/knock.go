// Package knock is what a session and an agent that listens on an address say to each other before
// the tunnel: each proves that it knows the agent's secret, and neither tells it. So a stranger who
// can reach the address gets nothing, and one who took the address gets no session.
//
// The agent speaks first; what it says tells the session, too, that the agent itself has answered
// and not only something on the way to it:
//
//	agent    magic, a random number A
//	session  a random number S, HMAC-SHA256(secret, "session", A, S)
//	agent    HMAC-SHA256(secret, "agent", A, S)
//
// It keeps neither secrecy nor order of what follows: that is the business of the way between
// them, which for Kubernetes is the API server's TLS and the loopback of a pod.
package knock

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

// Protocol is told by the magic. It changes with this package and with what is not negotiated
// after it, the frames of the tunnel.
const Protocol = 2

var magic = [8]byte{'s', 't', 'e', 'a', 'd', '-', 'a', Protocol}

const (
	nonceSize = 16
	macSize   = sha256.Size

	// timeout bounds the agent's wait for a stranger.
	timeout = 10 * time.Second
	// maxWaiting bounds how many may stand at the door at once.
	maxWaiting = 64
)

var (
	// ErrSecret says that the other side does not know the secret.
	ErrSecret = errors.New("it does not know the secret")
	// ErrProtocol says that the other side is no agent, or one of another version.
	ErrProtocol = errors.New("it speaks another protocol")
)

func prove(secret []byte, who string, a, s []byte) []byte {
	h := hmac.New(sha256.New, secret)
	h.Write([]byte(who))
	h.Write(a)
	h.Write(s)
	return h.Sum(nil)
}

// Knock is the session's side. ctx bounds it.
func Knock(ctx context.Context, c net.Conn, secret []byte) error {
	stop := context.AfterFunc(ctx, func() { c.Close() })
	err := knock(c, secret)
	if !stop() && err != nil {
		err = context.Cause(ctx)
	}
	return err
}

func knock(c net.Conn, secret []byte) error {
	var hello [len(magic) + nonceSize]byte
	if _, err := io.ReadFull(c, hello[:]); err != nil {
		return err
	}
	if [8]byte(hello[:8]) != magic {
		if [7]byte(hello[:7]) == [7]byte(magic[:7]) {
			return fmt.Errorf("%w: the agent %d, this stead %d", ErrProtocol, hello[7], Protocol)
		}
		return ErrProtocol
	}
	a := hello[8:]
	answer := make([]byte, nonceSize, nonceSize+macSize)
	rand.Read(answer)
	answer = append(answer, prove(secret, "session", a, answer[:nonceSize])...)
	if _, err := c.Write(answer); err != nil {
		return err
	}
	var proof [macSize]byte
	if _, err := io.ReadFull(c, proof[:]); err != nil {
		if errors.Is(err, io.EOF) {
			return ErrSecret // ours, then
		}
		return err
	}
	if !hmac.Equal(proof[:], prove(secret, "agent", a, answer[:nonceSize])) {
		return ErrSecret
	}
	return nil
}

// answer is the agent's side.
func answer(c net.Conn, secret []byte) error {
	_ = c.SetDeadline(time.Now().Add(timeout))
	hello := append(make([]byte, 0, len(magic)+nonceSize), magic[:]...)
	hello = hello[:cap(hello)]
	rand.Read(hello[len(magic):])
	if _, err := c.Write(hello); err != nil {
		return err
	}
	var b [nonceSize + macSize]byte
	if _, err := io.ReadFull(c, b[:]); err != nil {
		return err
	}
	a, s := hello[len(magic):], b[:nonceSize]
	if !hmac.Equal(b[nonceSize:], prove(secret, "session", a, s)) {
		return ErrSecret
	}
	if _, err := c.Write(prove(secret, "agent", a, s)); err != nil {
		return err
	}
	return c.SetDeadline(time.Time{})
}

// listener lets those in who know the secret.
type listener struct {
	net.Listener
	secret []byte
	refuse func(error)
	in     chan net.Conn
	ctx    context.Context // ends with Close
	stop   context.CancelFunc
	over   chan struct{} // closed when the inner listener has ended
	err    error         // of the inner listener; read after over
	work   sync.WaitGroup

	mu    sync.Mutex
	begun bool // the door is served, from the first Accept on, or is not to be any more
}

// Listen gives the connections of l that know the secret. refused is told why another one was not let
// in; it is called from several goroutines.
func Listen(l net.Listener, secret []byte, refused func(error)) net.Listener {
	k := &listener{Listener: l, secret: secret, refuse: refused, in: make(chan net.Conn), over: make(chan struct{})}
	k.ctx, k.stop = context.WithCancel(context.Background())
	return k
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	l.mu.Lock()
	if !l.begun {
		l.begun = true
		l.work.Go(l.door)
	}
	l.mu.Unlock()
	select {
	case c := <-l.in:
		return c, nil
	case <-l.over:
		return nil, l.err
	case <-l.ctx.Done():
		return nil, net.ErrClosed
	}
}

// acceptPause is how long accepting rests when the process is out of descriptors or memory.
const acceptPause = 10 * time.Millisecond

// door serves until the inner listener ends.
func (l *listener) door() {
	defer close(l.over)
	waiting := make(chan struct{}, maxWaiting)
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			if l.ctx.Err() == nil && (errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) ||
				errors.Is(err, syscall.ENOBUFS) || errors.Is(err, syscall.ENOMEM)) {
				time.Sleep(acceptPause)
				continue
			}
			l.err = err
			return
		}
		select {
		case waiting <- struct{}{}:
		default:
			c.Close()
			continue
		}
		l.work.Go(func() {
			defer func() { <-waiting }()
			stop := context.AfterFunc(l.ctx, func() { c.Close() })
			err := answer(c, l.secret)
			if !stop() {
				return
			}
			if err != nil {
				l.refuse(fmt.Errorf("connection from %s: %w", c.RemoteAddr(), err))
				c.Close()
				return
			}
			select {
			case l.in <- c:
			case <-l.ctx.Done():
				c.Close()
			}
		})
	}
}

// Close implements net.Listener. Nobody is left at the door when it returns.
func (l *listener) Close() error {
	l.stop()
	err := l.Listener.Close()
	l.mu.Lock()
	l.begun = true
	l.mu.Unlock()
	l.work.Wait()
	return err
}
