package spdy

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/moby/spdystream"
)

// kubelet is the library's own server on the other end of a connection: it gives the two streams of a
// forward to serve.
func kubelet(t *testing.T, serve func(conn *spdystream.Connection, data, trouble *spdystream.Stream)) net.Conn {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ours, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := spdystream.NewConnection(theirs, true)
	if err != nil {
		t.Fatal(err)
	}
	streams := make(chan *spdystream.Stream, 2)
	ended := make(chan struct{})
	go conn.Serve(func(s *spdystream.Stream) {
		if err := s.SendReply(http.Header{}, false); err != nil {
			t.Error(err)
		}
		streams <- s
	})
	go func() {
		defer close(ended)
		var data, trouble *spdystream.Stream
		for range 2 {
			select {
			case s := <-streams:
				if s.Headers().Get("port") != "7117" || s.Headers().Get("requestID") != "0" {
					t.Errorf("stream with headers %v", s.Headers())
				}
				switch s.Headers().Get("streamType") {
				case "data":
					data = s
				case "error":
					trouble = s
				}
			case <-conn.CloseChan():
				return
			}
		}
		serve(conn, data, trouble)
	}()
	t.Cleanup(func() {
		ours.Close()
		conn.Close()
		<-ended
	})
	return ours
}

func TestBytesOfEverySizeGoBothWays(t *testing.T) {
	conn := kubelet(t, func(_ *spdystream.Connection, data, _ *spdystream.Stream) {
		_, _ = io.Copy(data, data)
		_ = data.Close()
	})
	c, err := Open(conn, 7117)
	if err != nil {
		t.Fatal(err)
	}
	whole := make([]byte, 3<<20)
	random := rand.NewChaCha8([32]byte{1})
	random.Read(whole)
	go func() {
		sizes := rand.New(random)
		for rest := whole; len(rest) > 0; {
			var b net.Buffers
			for range 1 + sizes.IntN(5) {
				n := min(len(rest), []int{0, 1, 13, 1 << 10, frameSize - headSize, frameSize, frameSize + 1, batchSize}[sizes.IntN(8)])
				b, rest = append(b, rest[:n]), rest[n:]
			}
			if _, err := c.WriteBuffers(b); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	got := make([]byte, len(whole))
	if _, err := io.ReadFull(c, got); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, whole) {
		t.Error("other bytes came back")
	}
}

func TestFramesAreFilled(t *testing.T) {
	b := net.Buffers{make([]byte, 13), make([]byte, 3*batchSize), nil, make([]byte, 1)}
	want, total, writes := 0, 0, 0
	for _, p := range b {
		want += len(p)
	}
	for len(b) > 0 {
		out, n := frames(nil, &b)
		if len(out) > batchSize || len(b) > 0 && len(out) != batchSize {
			t.Errorf("a batch of %d bytes, want %d", len(out), batchSize)
		}
		total += n
		writes++
	}
	if total != want || writes != 4 {
		t.Errorf("%d bytes in %d writes, want %d in 4", total, writes, want)
	}
}

func TestTheKubeletsComplaintIsTheErrorOfRead(t *testing.T) {
	conn := kubelet(t, func(_ *spdystream.Connection, data, trouble *spdystream.Stream) {
		_, _ = io.WriteString(trouble, "connect: connection refused\n")
		_ = trouble.Close()
		_ = data.Close()
	})
	c, err := Open(conn, 7117)
	if err != nil {
		t.Fatal(err)
	}
	var said *Complaint
	if _, err := c.Read(make([]byte, 1)); !errors.As(err, &said) || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("read: %v", err)
	}
}

func TestTheEndOfAStreamIsTheEndOfTheConnection(t *testing.T) {
	for name, c := range map[string]struct {
		end  func(conn *spdystream.Connection, data *spdystream.Stream)
		want error
	}{
		"closed": {func(_ *spdystream.Connection, s *spdystream.Stream) { s.Close() }, io.EOF},
		"reset":  {func(_ *spdystream.Connection, s *spdystream.Stream) { s.Reset() }, io.ErrUnexpectedEOF},
		"gone":   {func(c *spdystream.Connection, _ *spdystream.Stream) { c.Close() }, io.EOF},
	} {
		t.Run(name, func(t *testing.T) {
			conn := kubelet(t, func(conn *spdystream.Connection, data, _ *spdystream.Stream) {
				_, _ = data.Write([]byte("last"))
				c.end(conn, data)
			})
			f, err := Open(conn, 7117)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(eofIs(f, c.want))
			if string(b) != "last" || err != nil {
				t.Errorf("read %q, %v; want the last word, then %v", b, err, c.want)
			}
		})
	}
}

// eofIs reads r; want is turned into io.EOF, io.EOF into another error unless it is wanted.
func eofIs(r io.Reader, want error) io.Reader { return &ending{r, want} }

type ending struct {
	r    io.Reader
	want error
}

func (e *ending) Read(p []byte) (int, error) {
	n, err := e.r.Read(p)
	switch {
	case err == nil:
	case errors.Is(err, e.want):
		err = io.EOF
	default:
		err = errors.Join(errors.New("another end"), err)
	}
	return n, err
}

func TestPingsAreAnswered(t *testing.T) {
	answered := make(chan error, 1)
	conn := kubelet(t, func(conn *spdystream.Connection, data, _ *spdystream.Stream) {
		_, err := conn.Ping()
		answered <- err
		_ = data.Close()
	})
	c, err := Open(conn, 7117)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Fatal(err)
	}
	if err := <-answered; err != nil {
		t.Error(err)
	}
}

// A peer may say anything: it must not make us wait for other than its bytes, nor take memory.
func FuzzRead(f *testing.F) {
	reply := []byte{0x80, 3, 0, 2, 0, 0, 0, 4, 0, 0, 0, dataStream}
	f.Add(append(reply, 0, 0, 0, dataStream, 1, 0, 0, 2, 'h', 'i'))
	f.Add(append(reply, 0, 0, 0, errorStream, 1, 0, 0, 2, 'n', 'o'))
	f.Add(append(reply, 0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 2))
	f.Add(append(reply, 0x80, 3, 0, 7, 0, 0, 0, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := Open(&script{Reader: bytes.NewReader(b)}, 7117)
		if err != nil {
			return
		}
		n, err := io.Copy(io.Discard, io.LimitReader(c, int64(len(b))))
		if n > int64(len(b)) {
			t.Errorf("%d bytes of %d, %v", n, len(b), err)
		}
		if len(c.said) > maxText {
			t.Errorf("%d bytes of complaint kept", len(c.said))
		}
	})
}

// script is a connection whose peer has said all that it will say.
type script struct{ *bytes.Reader }

func (*script) Write(p []byte) (int, error)        { return len(p), nil }
func (*script) Close() error                       { return nil }
func (*script) LocalAddr() net.Addr                { return nil }
func (*script) RemoteAddr() net.Addr               { return nil }
func (*script) SetDeadline(t time.Time) error      { return nil }
func (*script) SetReadDeadline(t time.Time) error  { return nil }
func (*script) SetWriteDeadline(t time.Time) error { return nil }
