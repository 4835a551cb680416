package agent

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// claim keeps others from stealing a port that somebody steals already, in another agent beside the
// same pod too: it is an abstract unix socket of the pod's network namespace, named by the port,
// which tells who connects the holder's name. It ends with its descriptor, so with the agent.
type claim struct {
	ln   net.Listener
	done chan struct{}
}

// heldError says who steals the port already.
type heldError struct{ holder string }

func (e *heldError) Error() string { return e.holder + " is stealing it already" }
func (e *heldError) Unwrap() error { return unix.EADDRINUSE }

const claimTimeout = 2 * time.Second

// unknownHolder is who does not answer: mostly a claim that has just begun or ended.
const unknownHolder = "somebody else"

// claim takes the port for holder, or returns a *heldError.
func (t *target) claim(port uint16, holder string) (*claim, error) {
	at := &unix.SockaddrUnix{Name: fmt.Sprintf("@stead-steal-%d", port)}
	f, err := t.unixSocket("claim of a port")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fd := int(f.Fd())
	if err = unix.Bind(fd, at); err == unix.EADDRINUSE {
		return nil, &heldError{holder: t.holderAt(at)}
	}
	if err == nil {
		err = unix.Listen(fd, 16)
	}
	if err != nil {
		return nil, fmt.Errorf("claim port %d: %w", port, err)
	}
	ln, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("claim port %d: %w", port, err)
	}
	c := &claim{ln: ln, done: make(chan struct{})}
	go c.serve(holder)
	return c, nil
}

func (t *target) unixSocket(name string) (*os.File, error) {
	var fd int
	err := t.net.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// serve tells the holder's name until close. Names are short: no write waits for a reader.
func (c *claim) serve(holder string) {
	defer close(c.done)
	for {
		conn, err := c.ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(acceptPause)
			continue
		}
		_ = conn.SetDeadline(time.Now().Add(claimTimeout))
		_, _ = io.WriteString(conn, holder)
		conn.Close()
	}
}

func (c *claim) close() {
	c.ln.Close()
	<-c.done
}

// holderAt asks a claim whose it is.
func (t *target) holderAt(at unix.Sockaddr) string {
	f, err := t.unixSocket("question to a claim")
	if err != nil {
		return unknownHolder
	}
	defer f.Close()
	_ = unix.SetsockoptTimeval(int(f.Fd()), unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: 2}) // of connect
	if unix.Connect(int(f.Fd()), at) != nil {
		return unknownHolder
	}
	c, err := net.FileConn(f)
	if err != nil {
		return unknownHolder
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(claimTimeout))
	b, err := io.ReadAll(io.LimitReader(c, longestName))
	if err != nil || len(b) == 0 {
		return unknownHolder
	}
	return string(b)
}
