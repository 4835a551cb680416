package tunnel

import (
	"encoding/binary"
	"fmt"
	"io"
	"sync"
)

// A frame is a head of 13 bytes, big endian: kind (1), stream (4), value (4), sequence (4); data
// frames have value bytes after it. Every frame but ack and ping is counted on its lane from the
// tunnel's beginning; what the peer has not acknowledged is kept and sent again on the next
// transport. The sequence orders data and fin frames within their stream, as they may take
// different lanes; it is 0 in all others.
const (
	frameOpen   = 1 // a new stream
	frameData   = 2 // value: size of what follows
	frameFin    = 3 // no more data
	frameReset  = 4 // value: code
	frameCredit = 5 // value: bytes that may be sent further
	frameAck    = 6 // stream and value: the number of frames received (64 bit); not counted
	framePing   = 7 // not counted, answered by an ack
	frameGone   = 8 // the tunnel is over; not counted
	frameLane   = 9 // the agent's side has use for lane value

	headSize  = 13
	chunkSize = 128 << 10 // largest data of one frame
)

type head [headSize]byte

func newHead(kind byte, stream, value, seq uint32) (h head) {
	h[0] = kind
	binary.BigEndian.PutUint32(h[1:], stream)
	binary.BigEndian.PutUint32(h[5:], value)
	binary.BigEndian.PutUint32(h[9:], seq)
	return h
}

// chunk is a pooled buffer with the data of one frame. It has room for the head in front, so that
// a frame is one piece of memory.
type chunk struct {
	mem  []byte // headSize + a size of chunkPools
	data []byte // within space
	pool *chunkPool
}

type chunkPool struct {
	size int
	sync.Pool
}

// chunkPools has the sizes of chunks in rising order, so that a few bytes do not occupy a large
// chunk while they wait to be read or acknowledged.
var chunkPools = [...]*chunkPool{newChunkPool(2<<10 - headSize), newChunkPool(16 << 10), newChunkPool(chunkSize)}

const smallSize = 2<<10 - headSize

func newChunkPool(size int) *chunkPool {
	p := &chunkPool{size: size}
	p.New = func() any { return &chunk{mem: make([]byte, headSize+size), pool: p} }
	return p
}

// newChunk returns a chunk with room for n bytes, at most chunkSize.
func newChunk(n int) *chunk {
	for _, p := range chunkPools {
		if n <= p.size {
			return p.Get().(*chunk)
		}
	}
	panic("chunk too large")
}

func (c *chunk) free() {
	c.data = nil
	c.pool.Put(c)
}

// space is where a chunk's data is read into.
func (c *chunk) space() []byte { return c.mem[headSize:] }

// room is how many bytes can be appended.
func (c *chunk) room() int { return cap(c.data) - len(c.data) }

// fit moves what c holds to a smaller chunk where it fits one.
func (c *chunk) fit() *chunk {
	n := len(c.data)
	if n > chunkPools[1].size || c.pool != chunkPools[2] {
		return c
	}
	small := newChunk(n)
	small.data = small.space()[:copy(small.space(), c.data)]
	c.free()
	return small
}

// frame writes h in front of the data and returns both as one.
func (c *chunk) frame(h head) []byte {
	// A chunk that was sent in part has its data further back.
	if n := len(c.data); &c.data[0] != &c.mem[headSize] {
		copy(c.mem[headSize:], c.data)
		c.data = c.mem[headSize : headSize+n]
	}
	copy(c.mem, h[:])
	return c.mem[:headSize+len(c.data)]
}

// sent is a frame on its way; bytes is c's memory, or the head alone.
type sent struct {
	bytes []byte
	c     *chunk
	s     *stream // the stream whose data took a lane for bulk, else nil
}

// received is a frame as read.
type received struct {
	kind               byte
	stream, value, seq uint32
	c                  *chunk // frameData: owned by whoever has the frame
}

// readFrame reads one frame. What a peer can make us allocate is one chunk.
func readFrame(r io.Reader, head *head) (f received, err error) {
	if _, err = io.ReadFull(r, head[:]); err != nil {
		return f, err
	}
	f.kind = head[0]
	f.stream = binary.BigEndian.Uint32(head[1:])
	f.value = binary.BigEndian.Uint32(head[5:])
	f.seq = binary.BigEndian.Uint32(head[9:])
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
