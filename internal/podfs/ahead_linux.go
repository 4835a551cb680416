package podfs

import (
	"context"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/stead-dev/stead/internal/wire"
)

// Reading ahead. The kernel asks for a megabyte, at most two at a time, and each takes the way to the
// pod and back. Who reads a file from one end to the other gets more of it on its way: pieces of a
// fixed grid, asked for before the kernel does.

const (
	pieceSize   = wire.MaxFileRead
	piecesAhead = 4
	aheadAfter  = 2 * pieceSize // read in sequence before anything is read ahead
	aheadBudget = 64 << 20      // bytes of pieces, of all files together
	pieceAge    = time.Second   // as long as the kernel believes a file's size and time
)

// piece is one part of a file, on its way or there.
type piece struct {
	at    time.Time
	data  []byte
	errno syscall.Errno
	done  chan struct{} // closed when data and errno are final
}

// ahead is what is known of a file's reader.
type ahead struct {
	mu     sync.Mutex
	next   int64 // where a reader in sequence goes on
	run    int64 // how much it has read so
	end    int64 // first piece that is known not to be there, 0 when none is
	pieces map[int64]*piece
}

// take notes a read and returns the pieces that hold it, nil when it is to be asked for by itself.
func (h *file) take(off int64, size int) []*piece {
	a := &h.ahead
	a.mu.Lock()
	defer a.mu.Unlock()
	first, last := off/pieceSize, (off+int64(size)-1)/pieceSize
	// The kernel's own reading ahead may send two requests in the wrong order: near is in sequence.
	if d := off - a.next; d < -pieceSize || d > pieceSize {
		a.run = 0
	}
	a.run += int64(size)
	a.next = off + int64(size)
	for i := range a.pieces {
		if i < first-1 || i > last+piecesAhead || time.Since(a.pieces[i].at) > pieceAge {
			h.dropLocked(i)
		}
	}
	if a.run < aheadAfter && a.pieces[first] == nil {
		return nil
	}
	var out []*piece
	for i := first; i <= last+piecesAhead; i++ {
		p := a.pieces[i]
		if p == nil {
			if a.run < aheadAfter || a.end != 0 && i >= a.end && i > last || !h.f.reserve(pieceSize) {
				if i <= last {
					return nil
				}
				break
			}
			p = h.fetchLocked(i)
		}
		if i <= last {
			out = append(out, p)
		}
	}
	return out
}

// fetchLocked asks for piece i.
func (h *file) fetchLocked(i int64) *piece {
	a := &h.ahead
	p := &piece{at: time.Now(), done: make(chan struct{})}
	if a.pieces == nil {
		a.pieces = make(map[int64]*piece)
	}
	a.pieces[i] = p
	go func() { // ends with the client's answer, or with the client
		defer close(p.done)
		b := make([]byte, pieceSize)
		n, errno := h.f.c.Read(context.Background(), h.handle, b, i*pieceSize)
		p.data, p.errno = b[:n], errno
		if n < pieceSize && errno == 0 {
			a.mu.Lock()
			if a.end == 0 || i+1 < a.end {
				a.end = i + 1
			}
			a.mu.Unlock()
		}
	}()
	return p
}

func (h *file) dropLocked(i int64) {
	delete(h.ahead.pieces, i)
	h.f.reserve(-pieceSize)
}

// dropAll forgets every piece.
func (h *file) dropAll() {
	h.ahead.mu.Lock()
	defer h.ahead.mu.Unlock()
	for i := range h.ahead.pieces {
		h.dropLocked(i)
	}
}

// reserve takes n bytes of the budget, or gives them back.
func (f *FS) reserve(n int64) bool {
	if f.aheadBytes.Add(n) > aheadBudget && n > 0 {
		f.aheadBytes.Add(-n)
		return false
	}
	return true
}

// readPieces copies what pieces hold of the read at off into dest.
func readPieces(ctx context.Context, pieces []*piece, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	n := 0
	for _, p := range pieces {
		if !patient(ctx, p.done) {
			return nil, syscall.EINTR
		}
		if p.errno != 0 {
			return nil, p.errno
		}
		from := int(off+int64(n)) % pieceSize
		if from >= len(p.data) {
			break
		}
		if len(pieces) == 1 {
			return fuse.ReadResultData(p.data[from:min(from+len(dest), len(p.data))]), 0
		}
		n += copy(dest[n:], p.data[from:])
		if len(p.data) < pieceSize {
			break
		}
	}
	return fuse.ReadResultData(dest[:n]), 0
}
