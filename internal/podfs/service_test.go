package podfs

import (
	"bufio"
	"context"
	"encoding/binary"
	"net"
	"os"
	"path"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stead-dev/stead/internal/leak"
	"github.com/stead-dev/stead/internal/tunnel"
	"github.com/stead-dev/stead/internal/wire"
)

// The FUSE library keeps the pipes through which it splices.
func TestMain(m *testing.M) { os.Exit(leak.Main(m.Run, "pipe:", os.DevNull)) }

// pod is a file service over a tree in memory. It answers each request on a goroutine of its own.
type pod struct {
	mu      sync.Mutex
	files   map[string]*entry // by absolute path
	next    uint64
	handles map[uint64]*entry
	asked   map[byte]int // requests by operation
	links   []net.Conn

	// before, when set, is called with each request before it is served; an errno is the answer.
	before func(q wire.FileRequest) syscall.Errno
}

type entry struct {
	attr wire.Attr
	data []byte
	link string
}

func newPod() *pod {
	p := &pod{files: map[string]*entry{}, handles: map[uint64]*entry{}, asked: map[byte]int{}}
	p.add("/", syscall.S_IFDIR|0o755, "")
	return p
}

// add makes a file, a link (data is its target) or a directory, and what leads to it.
func (p *pod) add(name string, mode uint32, data string) *entry {
	p.mu.Lock()
	defer p.mu.Unlock()
	for dir := path.Dir(name); p.files[dir] == nil && dir != name; dir = path.Dir(dir) {
		p.addLocked(dir, syscall.S_IFDIR|0o755, "")
	}
	return p.addLocked(name, mode, data)
}

func (p *pod) addLocked(name string, mode uint32, data string) *entry {
	e := &entry{attr: wire.Attr{Ino: uint64(len(p.files) + 100), Mode: mode, Nlink: 1, UID: 7, GID: 8, Mtime: time.Now().UnixNano()}}
	switch mode & syscall.S_IFMT {
	case syscall.S_IFLNK:
		e.link = data
	case syscall.S_IFREG:
		e.data, e.attr.Size = []byte(data), uint64(len(data))
	}
	p.files[name] = e
	return e
}

func (p *pod) remove(name string) {
	p.mu.Lock()
	delete(p.files, name)
	p.mu.Unlock()
}

func (p *pod) count(op byte) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked[op]
}

func (p *pod) open() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.handles)
}

// kill ends all streams to it.
func (p *pod) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.links {
		c.Close()
	}
	p.links = nil
}

// stream is one end of a pipe as a tunnel's.
type stream struct{ net.Conn }

func (s stream) CloseWrite() error  { return nil }
func (s stream) Reset(uint32) error { return s.Close() }

// dial gives a stream to the pod's service.
func (p *pod) dial() (tunnel.Stream, error) {
	ours, theirs := net.Pipe()
	p.mu.Lock()
	p.links = append(p.links, theirs)
	p.mu.Unlock()
	go p.serve(theirs)
	return stream{ours}, nil
}

func (p *pod) serve(c net.Conn) {
	var work sync.WaitGroup
	defer work.Wait()
	defer c.Close()
	var write sync.Mutex
	for r := bufio.NewReader(c); ; {
		q, err := wire.ReadFileRequest(r)
		if err != nil {
			return
		}
		work.Add(1)
		go func() {
			defer work.Done()
			var body []byte
			errno := syscall.Errno(0)
			p.mu.Lock()
			p.asked[q.Op]++
			before := p.before
			p.mu.Unlock()
			if before != nil {
				errno = before(q)
			}
			if errno == 0 {
				body, errno = p.answer(q)
			}
			b := wire.EndFileAnswer(append(wire.BeginFileAnswer(nil, q.ID, uint32(errno)), body...))
			write.Lock()
			defer write.Unlock()
			c.Write(b)
		}()
	}
}

func (p *pod) answer(q wire.FileRequest) (b []byte, errno syscall.Errno) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.files[q.Path]
	if q.Path != "" && e == nil {
		return nil, syscall.ENOENT
	}
	switch q.Op {
	case wire.FileStat:
		return wire.AppendAttr(nil, &e.attr), 0
	case wire.FileReadlink:
		if e.attr.Mode&syscall.S_IFMT != syscall.S_IFLNK {
			return nil, syscall.EINVAL
		}
		return []byte(e.link), 0
	case wire.FileList:
		if e.attr.Mode&syscall.S_IFMT != syscall.S_IFDIR {
			return nil, syscall.ENOTDIR
		}
		for name, x := range p.files {
			if dir, base := path.Split(name); base != "" && path.Clean(dir) == q.Path {
				b = wire.AppendEntry(b, &wire.Entry{Name: base, Attr: x.attr})
			}
		}
		return b, 0
	case wire.FileOpen:
		switch e.attr.Mode & syscall.S_IFMT {
		case syscall.S_IFLNK:
			return nil, syscall.ELOOP
		case syscall.S_IFREG:
		default:
			return nil, syscall.ENXIO
		}
		p.next++
		p.handles[p.next] = e
		return wire.AppendAttr(binary.BigEndian.AppendUint64(nil, p.next), &e.attr), 0
	case wire.FileRead, wire.FileClose:
		e := p.handles[q.Handle]
		if e == nil {
			return nil, syscall.EBADF
		}
		if q.Op == wire.FileClose {
			delete(p.handles, q.Handle)
			return nil, 0
		}
		if q.Offset >= int64(len(e.data)) {
			return nil, 0
		}
		return e.data[q.Offset:min(q.Offset+int64(q.Count), int64(len(e.data)))], 0
	}
	return nil, syscall.ENOSYS
}

// where is which pod a client's opener leads to.
type where struct {
	mu  sync.Mutex
	pod *pod
	n   int // streams opened
}

func (w *where) opener(context.Context) (tunnel.Stream, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.n++
	return w.pod.dial()
}

func (w *where) move(p *pod) {
	w.mu.Lock()
	w.pod = p
	w.mu.Unlock()
}

func (w *where) opened() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.n
}

func newClient(t *testing.T, p *pod) (*Client, *where) {
	t.Helper()
	w := &where{pod: p}
	c := NewClient(w.opener)
	t.Cleanup(c.Close)
	return c, w
}

// within waits until what holds.
func within(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if holds() {
			return
		}
	}
	t.Fatalf("never: %s", what)
}

// canned gives streams on which each request is answered by what f makes of it.
func canned(f func(q wire.FileRequest) []byte) Opener {
	return func(context.Context) (tunnel.Stream, error) {
		ours, theirs := net.Pipe()
		go func() {
			defer theirs.Close()
			for {
				q, err := wire.ReadFileRequest(theirs)
				if err != nil {
					return
				}
				b := f(q)
				if b == nil {
					return
				}
				if _, err := theirs.Write(b); err != nil {
					return
				}
			}
		}()
		return stream{ours}, nil
	}
}

func reply(q wire.FileRequest, errno syscall.Errno, body string) []byte {
	return wire.EndFileAnswer(append(wire.BeginFileAnswer(nil, q.ID, uint32(errno)), body...))
}

func repeat(n int) string { return strings.Repeat("x", n) }
