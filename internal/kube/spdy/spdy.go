// Package spdy is the client of a port-forward over SPDY/3.1, as far as one forwarded connection on a
// transport of its own needs it: two streams are opened, one for the bytes and one for the kubelet's
// complaint, then data frames are written and read where they are. The library that client-go has
// hands every frame through two goroutines and fresh memory, which took half of the time that a session
// spent on bulk. The frames that open streams, with their compressed headers, are still the library's.
package spdy

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/moby/spdystream/spdy"
)

// What an HTTP request says to be answered by this protocol.
const (
	Upgrade  = "SPDY/3.1"
	Protocol = "portforward.k8s.io"
)

const (
	errorStream = 1
	dataStream  = 3

	headSize  = 8
	frameSize = 128 << 10     // of one that we send, with its head: a whole number of TLS records
	batchSize = 2 * frameSize // of one write to the transport
	maxOther  = 64 << 10      // of a frame that is neither data nor complaint
	maxText   = 4 << 10       // of a complaint
)

// Kinds of control frames, as the first 32 bits of a frame have them: control bit, version 3, type.
const (
	controlBit = 0x80000000
	synReply   = 0x80030002
	reset      = 0x80030003
	ping       = 0x80030006
	goAway     = 0x80030007
)

// Complaint is what the kubelet says when nobody takes the connection.
type Complaint struct{ Text string }

func (e *Complaint) Error() string { return "port-forward: " + strings.TrimSpace(e.Text) }

// Open begins a connection to a port of the pod on t, which has been upgraded and is then owned by the
// Conn. It waits for the peer's answer: what is sent earlier the peer throws away.
func Open(t net.Conn, port int) (*Conn, error) {
	b, err := opening(port)
	if err == nil {
		_, err = t.Write(b)
	}
	c := &Conn{Conn: t}
	for err == nil && !c.open {
		err = c.next()
	}
	if err != nil {
		return nil, fmt.Errorf("open a stream to port %d: %w", port, err)
	}
	return c, nil
}

// opening is the two frames that open the streams.
func opening(port int) ([]byte, error) {
	var b bytes.Buffer
	framer, err := spdy.NewFramer(&b, nil)
	if err != nil {
		return nil, err
	}
	for _, s := range []struct {
		id   spdy.StreamId
		name string
		flag spdy.ControlFlags
	}{
		{errorStream, "error", spdy.ControlFlagFin}, // we say nothing on it
		{dataStream, "data", 0},
	} {
		h := http.Header{}
		h.Set("streamType", s.name)
		h.Set("port", strconv.Itoa(port))
		h.Set("requestID", "0")
		if err := framer.WriteFrame(&spdy.SynStreamFrame{CFHeader: spdy.ControlFrameHeader{Flags: s.flag}, StreamId: s.id, Headers: h}); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), nil
}

// Conn is the forwarded connection. One goroutine may read beside one that writes. A deadline that has
// passed ends it.
type Conn struct {
	net.Conn

	// reading
	open bool // the peer has answered the data stream
	left int  // of the data frame that is being read
	last bool // it is the stream's last
	said []byte

	mu    sync.Mutex // writing
	batch []byte
}

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	for c.left == 0 {
		if c.last {
			return 0, c.why(io.EOF)
		}
		if err := c.next(); err != nil {
			return 0, c.why(err)
		}
	}
	n, err := c.Conn.Read(p[:min(len(p), c.left)])
	c.left -= n
	return n, err
}

// next reads the head of a frame, and all of it unless it has data for us.
func (c *Conn) next() error {
	var h [headSize]byte
	if _, err := io.ReadFull(c.Conn, h[:]); err != nil {
		return err
	}
	kind, end, size := binary.BigEndian.Uint32(h[:]), h[4]&byte(spdy.DataFlagFin) != 0, int(binary.BigEndian.Uint32(h[4:])&0xffffff)
	switch kind {
	case dataStream:
		c.left, c.last = size, end
		return nil
	case errorStream:
		return c.complaint(size, end)
	}
	if size > maxOther {
		return fmt.Errorf("port-forward: frame %#x of %d bytes", kind, size)
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(c.Conn, b); err != nil {
		return err
	}
	if kind&controlBit == 0 || size < 4 {
		return nil
	}
	switch stream := binary.BigEndian.Uint32(b) & 0x7fffffff; kind {
	case synReply:
		c.open = c.open || stream == dataStream
	case reset:
		if stream == dataStream || stream == errorStream {
			return c.why(io.ErrUnexpectedEOF)
		}
	case goAway:
		return c.why(io.EOF)
	case ping:
		c.mu.Lock()
		defer c.mu.Unlock()
		_, err := c.Conn.Write(append(h[:], b...))
		return err
	}
	return nil
}

// complaint takes size bytes of the error stream.
func (c *Conn) complaint(size int, end bool) error {
	b := make([]byte, min(size, maxText-len(c.said)))
	if _, err := io.ReadFull(c.Conn, b); err != nil {
		return err
	}
	if _, err := io.CopyN(io.Discard, c.Conn, int64(size-len(b))); err != nil {
		return err
	}
	if c.said = append(c.said, b...); end {
		return c.why(nil)
	}
	return nil
}

// why is the kubelet's own word for an error, where it said one.
func (c *Conn) why(err error) error {
	if len(c.said) > 0 {
		return &Complaint{string(c.said)}
	}
	return err
}

// Write implements net.Conn.
func (c *Conn) Write(p []byte) (int, error) {
	n, err := c.WriteBuffers(net.Buffers{p})
	return int(n), err
}

// WriteBuffers writes b, which it consumes, in few frames and few writes.
func (c *Conn) WriteBuffers(b net.Buffers) (n int64, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(b) > 0 && err == nil {
		var k int
		c.batch, k = frames(c.batch[:0], &b)
		if _, err = c.Conn.Write(c.batch); err == nil {
			n += int64(k)
		}
	}
	return n, err
}

// frames appends what fits one batch of b to dst, as data frames, and says how many bytes of b that are.
func frames(dst []byte, b *net.Buffers) (_ []byte, n int) {
	for len(*b) > 0 && len(dst) < batchSize {
		begin := len(dst)
		dst = append(dst, 0, 0, 0, dataStream, 0, 0, 0, 0)
		for len(*b) > 0 && len(dst)-begin < frameSize {
			p := (*b)[0]
			k := min(len(p), frameSize-(len(dst)-begin))
			dst = append(dst, p[:k]...)
			n += k
			if (*b)[0] = p[k:]; k == len(p) {
				(*b)[0] = nil
				*b = (*b)[1:]
			}
		}
		binary.BigEndian.PutUint32(dst[begin+4:], uint32(len(dst)-begin-headSize))
	}
	return dst, n
}
