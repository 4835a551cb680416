package tunnel

import (
	"encoding/binary"
	"fmt"
	"io"
	"sync"
)

// A frame is a head of 9 bytes, kind (1), stream (4) and size or value (4), all big endian, and
// for data that many bytes. Every frame but ack and ping is numbered, by counting, from the
// tunnel's beginning; what the peer has not acknowledged is kept and sent again on the next
// transport.
const (
	frameOpen   = 1 // a new stream
	frameData   = 2 // value: size of what follows
	frameFin    = 3 // no more data
	frameReset  = 4 // value: code
	frameCredit = 5 // value: bytes that may be sent further
	frameAck    = 6 // stream and value: the number of frames received (64 bit); not numbered
	framePing   = 7 // not numbered, answered by an ack
	frameGone   = 8 // the tunnel is over

	headSize  = 9
	chunkSize = 64 << 10 // largest data of one frame
)

func putHead(b []byte, kind byte, stream, value uint32) {
	b[0] = kind
	binary.BigEndian.PutUint32(b[1:], stream)
	binary.BigEndian.PutUint32(b[5:], value)
}

// chunk is a pooled buffer with the data of one frame. It has room for the head in front, so that a
// frame is one piece of memory, and comes in two sizes, so that a few bytes do not occupy 64 KiB
// while they wait to be read or acknowledged.
type chunk struct {
	mem  []byte // headSize + smallSize or headSize + chunkSize
	data []byte // within space()
}

const smallSize = 2<<10 - headSize

var (
	smallChunks = sync.Pool{New: func() any { return &chunk{mem: make([]byte, headSize+smallSize)} }}
	largeChunks = sync.Pool{New: func() any { return &chunk{mem: make([]byte, headSize+chunkSize)} }}
)

// newChunk returns a chunk with room for n bytes, at most chunkSize.
func newChunk(n int) *chunk {
	if n <= smallSize {
		return smallChunks.Get().(*chunk)
	}
	return largeChunks.Get().(*chunk)
}

func (c *chunk) free() {
	c.data = nil
	if len(c.mem) == headSize+smallSize {
		smallChunks.Put(c)
	} else {
		largeChunks.Put(c)
	}
}

// space is where a chunk's data is read into.
func (c *chunk) space() []byte { return c.mem[headSize:] }

// fit moves what c holds to a small chunk where it fits one.
func (c *chunk) fit() *chunk {
	if len(c.data) > smallSize || len(c.mem) == headSize+smallSize {
		return c
	}
	small := newChunk(len(c.data))
	small.data = small.space()[:copy(small.space(), c.data)]
	c.free()
	return small
}

// sent is a frame on its way: a small one has only a head.
type sent struct {
	head [headSize]byte
	c    *chunk
}

func (f *sent) bytes() []byte {
	if f.c == nil {
		return f.head[:]
	}
	copy(f.c.mem[:headSize], f.head[:])
	return f.c.mem[:headSize+len(f.c.data)]
}

func (f *sent) size() int {
	if f.c == nil {
		return headSize
	}
	return headSize + len(f.c.data)
}

// received is a frame as read.
type received struct {
	kind   byte
	stream uint32
	value  uint32
	c      *chunk // frameData: owned by the receiver of the frame
}

// readFrame reads one frame. What a peer can make us allocate is one chunk.
func readFrame(r io.Reader) (f received, err error) {
	var head [headSize]byte
	if _, err = io.ReadFull(r, head[:]); err != nil {
		return f, err
	}
	f.kind = head[0]
	f.stream = binary.BigEndian.Uint32(head[1:])
	f.value = binary.BigEndian.Uint32(head[5:])
	if f.kind < frameOpen || f.kind > frameGone {
		return f, fmt.Errorf("frame of unknown kind %d", f.kind)
	}
	if f.kind != frameData {
		return f, nil
	}
	if f.value == 0 || f.value > chunkSize {
		return f, fmt.Errorf("data frame of %d bytes, want 1 to %d", f.value, chunkSize)
	}
	f.c = newChunk(int(f.value))
	f.c.data = f.c.space()[:f.value]
	if _, err = io.ReadFull(r, f.c.data); err != nil {
		f.c.free()
		f.c = nil
	}
	return f, err
}
