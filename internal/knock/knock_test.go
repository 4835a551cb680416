package knock

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

// house is a listener that knows the secret "right".
func house(t *testing.T) net.Listener {
	t.Helper()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := Listen(inner, []byte("right"), func(error) {})
	t.Cleanup(func() { l.Close() })
	return l
}

func dial(t *testing.T, l net.Listener) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestWhoKnowsTheSecretComesIn(t *testing.T) {
	l := house(t)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); io.Copy(c, c) }()
		}
	}()
	stranger := dial(t, l) // says nothing, and holds up nobody
	_ = stranger
	for range 3 {
		c := dial(t, l)
		if err := Knock(t.Context(), c, []byte("right")); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		var b [5]byte
		if _, err := io.ReadFull(c, b[:]); err != nil || string(b[:]) != "hello" {
			t.Fatalf("%q %v", b, err)
		}
	}
}

func TestWhoDoesNotKnowTheSecretIsSentAway(t *testing.T) {
	l := house(t)
	in := make(chan net.Conn)
	go func() {
		defer close(in)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			in <- c
		}
	}()
	if err := Knock(t.Context(), dial(t, l), []byte("wrong")); !errors.Is(err, ErrSecret) {
		t.Errorf("a wrong secret: %v", err)
	}
	c := dial(t, l)
	c.Write(make([]byte, nonceSize+macSize))
	if rest, _ := io.ReadAll(c); len(rest) > len(magic)+nonceSize {
		t.Errorf("a stranger heard %d bytes", len(rest))
	}
	l.Close()
	for c := range in {
		t.Errorf("%v came in", c.RemoteAddr())
	}
}

func TestTheDoorIsOpenAgainAfterAMomentWithoutMemory(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.ENOMEM, syscall.ENOBUFS, syscall.EMFILE, syscall.ENFILE} {
		inner, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		l := Listen(&poor{inner, errno}, []byte("right"), func(error) {})
		go func() {
			if c, err := l.Accept(); err == nil {
				t.Cleanup(func() { c.Close() })
			} else {
				inner.Close()
			}
		}()
		if err := Knock(t.Context(), dial(t, l), []byte("right")); err != nil {
			t.Errorf("%v: %v", errno, err)
		}
		l.Close()
	}
}

// poor is a listener that once could not accept.
type poor struct {
	net.Listener
	errno syscall.Errno
}

func (p *poor) Accept() (net.Conn, error) {
	if e := p.errno; e != 0 {
		p.errno = 0
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: os.NewSyscallError("accept4", e)}
	}
	return p.Listener.Accept()
}

func TestNobodyIsLeftAtADoorThatIsClosed(t *testing.T) {
	l := house(t)
	ended := make(chan error, 1)
	go func() { _, err := l.Accept(); ended <- err }()
	stranger := dial(t, l)
	if _, err := io.ReadFull(stranger, make([]byte, len(magic)+nonceSize)); err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := <-ended; err == nil {
		t.Error("somebody came in")
	}
	stranger.SetReadDeadline(time.Now().Add(timeout / 2))
	if _, err := stranger.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("a stranger is left standing")
	}
	if _, err := l.Accept(); err == nil {
		t.Error("somebody came in")
	}
}

func TestAnImpostorLearnsNothingAndIsFoundOut(t *testing.T) {
	for _, c := range []struct {
		name string
		says []byte
		want error
	}{
		{"another protocol", []byte("HTTP/1.1 400 Bad Request\r\n\r\n"), ErrProtocol},
		{"an agent of another version", append([]byte{'s', 't', 'e', 'a', 'd', '-', 'a', Protocol + 1}, make([]byte, nonceSize)...), ErrProtocol},
		{"an agent without the secret", append(append(magic[:], make([]byte, nonceSize)...), make([]byte, macSize)...), ErrSecret},
	} {
		t.Run(c.name, func(t *testing.T) {
			us, them := net.Pipe()
			defer us.Close()
			go func() {
				defer them.Close()
				them.SetDeadline(time.Now().Add(10 * time.Second))
				go io.Copy(io.Discard, them)
				them.Write(c.says)
			}()
			if err := Knock(t.Context(), us, []byte("right")); !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
		})
	}
}

func TestKnockingEndsWithItsContext(t *testing.T) {
	us, them := net.Pipe()
	defer them.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Knock(ctx, us, []byte("right")); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// said is a connection whose other side has said all that it will.
type said struct {
	net.Conn
	io.Reader
}

func (s said) Read(p []byte) (int, error) { return s.Reader.Read(p) }
func (said) Write(p []byte) (int, error)  { return len(p), nil }
func (said) SetDeadline(time.Time) error  { return nil }

// FuzzStranger is on either side of the door, and has never heard the secret.
func FuzzStranger(f *testing.F) {
	f.Add(magic[:])
	f.Add(append(magic[:], make([]byte, nonceSize+macSize)...))
	f.Add(append(append(magic[:], make([]byte, nonceSize)...), prove([]byte("wrong"), "agent", make([]byte, nonceSize), make([]byte, nonceSize))...))
	f.Add(make([]byte, nonceSize+macSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		if knock(said{Reader: bytes.NewReader(b)}, []byte("right")) == nil {
			t.Errorf("%q is an agent", b)
		}
		if answer(said{Reader: bytes.NewReader(b)}, []byte("right")) == nil {
			t.Errorf("%q came in", b)
		}
	})
}
