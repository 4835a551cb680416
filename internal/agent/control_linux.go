package agent

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// controlListener is a net.Listener whose connections are passed to it: over a unix socket of the
// agent's starter come messages of one byte with one descriptor, a connected stream socket. The
// agent says once, by a byte, that it stands beside its target; an end without it is a failure that
// its standard error tells of. The end of that socket is the end of the starter, and so of the
// agent, whatever sessions there are: they are the starter's.
type controlListener struct {
	c     *net.UnixConn
	ready sync.Once
}

// ControlListener takes the inherited descriptor fd, a connected unix socket (SOCK_SEQPACKET or
// SOCK_STREAM).
func ControlListener(fd int) (net.Listener, error) {
	unix.CloseOnExec(fd)
	f := os.NewFile(uintptr(fd), "control socket")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d: %w", fd, err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("descriptor %d: not a unix socket", fd)
	}
	return &controlListener{c: u}, nil
}

// Accept implements net.Listener.
func (l *controlListener) Accept() (net.Conn, error) {
	l.ready.Do(func() { _, _ = l.c.Write([]byte{1}) })
	b, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	for {
		n, on, _, _, err := l.c.ReadMsgUnix(b, oob) // the descriptor comes with close-on-exec
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return nil, io.EOF // the starter is gone
		}
		// One without a descriptor lost it: we had no number for it.
		if c, err := received(oob[:on]); err == nil {
			return c, nil
		}
	}
}

// received makes a connection of the descriptor that came with a message.
func received(oob []byte) (net.Conn, error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(msgs) != 1 {
		return nil, errors.New("message without a descriptor")
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return nil, errors.New("message without a descriptor")
	}
	f := os.NewFile(uintptr(fds[0]), "transport")
	defer f.Close()
	return net.FileConn(f)
}

// Close implements net.Listener.
func (l *controlListener) Close() error { return l.c.Close() }

// Addr implements net.Listener.
func (l *controlListener) Addr() net.Addr { return l.c.LocalAddr() }

// oneListener brings one connection, and ends with it.
type oneListener struct {
	first chan net.Conn
	ended chan struct{}
	once  sync.Once
	addr  net.Addr
}

// ConnListener takes the inherited descriptor fd, a connected stream socket, as the one transport.
func ConnListener(fd int) (net.Listener, error) {
	f := os.NewFile(uintptr(fd), "transport")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d: %w", fd, err)
	}
	l := &oneListener{first: make(chan net.Conn, 1), ended: make(chan struct{}), addr: c.LocalAddr()}
	l.first <- &oneConn{Conn: c, l: l}
	return l, nil
}

// oneConn ends its listener when it is closed.
type oneConn struct {
	net.Conn
	l *oneListener
}

func (c *oneConn) Close() error {
	defer c.l.Close()
	return c.Conn.Close()
}

// Accept implements net.Listener.
func (l *oneListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.first:
		return c, nil
	case <-l.ended:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *oneListener) Close() error {
	l.once.Do(func() { close(l.ended) })
	return nil
}

// Addr implements net.Listener.
func (l *oneListener) Addr() net.Addr { return l.addr }

// SendTransport passes a connected stream socket to the agent at the other end of control.
func SendTransport(control *os.File, transport *os.File) error {
	raw, err := control.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = raw.Write(func(fd uintptr) bool {
		serr = unix.Sendmsg(int(fd), []byte{0}, unix.UnixRights(int(transport.Fd())), nil, unix.MSG_NOSIGNAL)
		return serr != unix.EAGAIN
	})
	return errors.Join(err, serr)
}
