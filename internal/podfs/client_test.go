package podfs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/stead-dev/stead/internal/tunnel"
	"github.com/stead-dev/stead/internal/wire"
)

const (
	regular   = syscall.S_IFREG | 0o644
	directory = syscall.S_IFDIR | 0o755
	symlink   = syscall.S_IFLNK | 0o777
)

var ctx = context.Background()

func TestAFileIsSeenAsThePodHasIt(t *testing.T) {
	p := newPod()
	e := p.add("/etc/app.conf", regular, "name: app\n")
	p.add("/etc/link", symlink, "app.conf")
	c, w := newClient(t, p)
	a, errno := c.Stat(ctx, "/etc/app.conf")
	if errno != 0 || a != e.attr {
		t.Errorf("stat: %+v, %v; want %+v", a, errno, e.attr)
	}
	to, errno := c.Readlink(ctx, "/etc/link")
	if string(to) != "app.conf" || errno != 0 {
		t.Errorf("readlink: %q, %v", to, errno)
	}
	list, errno := c.List(ctx, "/etc")
	slices.SortFunc(list, func(a, b wire.Entry) int { return slices.Compare([]byte(a.Name), []byte(b.Name)) })
	if errno != 0 || len(list) != 2 || list[0].Name != "app.conf" || list[0].Attr != e.attr || list[1].Name != "link" {
		t.Errorf("list: %+v, %v", list, errno)
	}
	h, errno := c.Open(ctx, "/etc/app.conf")
	if errno != 0 {
		t.Fatal(errno)
	}
	b := make([]byte, 100)
	for _, x := range []struct {
		off  int64
		want string
	}{{0, "name: app\n"}, {6, "app\n"}, {10, ""}, {1 << 40, ""}} {
		if n, errno := c.Read(ctx, h, b, x.off); errno != 0 || string(b[:n]) != x.want {
			t.Errorf("read at %d: %q, %v", x.off, b[:n], errno)
		}
	}
	c.Release(h)
	if _, errno := c.Read(ctx, h, b, 0); errno != syscall.EBADF || p.open() != 0 {
		t.Errorf("read of a closed handle: %v, %d handles open in the pod", errno, p.open())
	}
	if got, errno := c.ReadFile(ctx, "/etc/link", 100); string(got) != "name: app\n" || errno != 0 {
		t.Errorf("by the link: %q, %v", got, errno)
	}
	if w.opened() != 1 {
		t.Errorf("%d streams", w.opened())
	}
}

func TestAnErrnoIsThePodsOwn(t *testing.T) {
	p := newPod()
	p.add("/loop", symlink, "loop")
	p.add("/dir/file", regular, "x")
	c, _ := newClient(t, p)
	_, stat := c.Stat(ctx, "/nothing")
	_, link := c.Readlink(ctx, "/dir/file")
	_, list := c.List(ctx, "/dir/file")
	_, open := c.Open(ctx, "/dir")
	_, loop := c.ReadFile(ctx, "/loop", 10)
	got := []syscall.Errno{stat, link, list, open, loop}
	if want := []syscall.Errno{syscall.ENOENT, syscall.EINVAL, syscall.ENOTDIR, syscall.ENXIO, syscall.ELOOP}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	p.before = func(wire.FileRequest) syscall.Errno { return syscall.EACCES }
	if _, errno := c.Stat(ctx, "/dir"); errno != syscall.EACCES {
		t.Error(errno)
	}
}

// Answers come in any order.
func TestEachOfManyCallersGetsItsOwnAnswer(t *testing.T) {
	p := newPod()
	for i := range 50 {
		p.add(fmt.Sprintf("/many/%d", i), regular, fmt.Sprintf("file %d", i))
	}
	c, w := newClient(t, p)
	var work sync.WaitGroup
	for g := range 32 {
		work.Add(1)
		go func() {
			defer work.Done()
			for i := range 50 {
				n := (i*7 + g) % 50
				name := fmt.Sprintf("/many/%d", n)
				if b, errno := c.ReadFile(ctx, name, 100); errno != 0 || string(b) != fmt.Sprintf("file %d", n) {
					t.Errorf("%s: %q, %v", name, b, errno)
				}
			}
		}()
	}
	work.Wait()
	if w.opened() != 1 || p.open() != 0 {
		t.Errorf("%d streams, %d handles left open", w.opened(), p.open())
	}
}

func TestAnInterruptedCallHurtsNoLaterOne(t *testing.T) {
	p := newPod()
	p.add("/file", regular, "contents")
	c, _ := newClient(t, p)
	held, begun := make(chan struct{}), make(chan struct{}, 10)
	p.before = func(q wire.FileRequest) syscall.Errno {
		if q.Path == "/file" {
			begun <- struct{}{}
			<-held
		}
		return 0
	}
	const times = 5
	for _, f := range []func(context.Context) syscall.Errno{
		func(ctx context.Context) syscall.Errno { _, errno := c.Stat(ctx, "/file"); return errno },
		func(ctx context.Context) syscall.Errno { _, errno := c.Open(ctx, "/file"); return errno },
	} {
		for range times {
			ctx, cancel := context.WithCancel(ctx)
			go func() { <-begun; cancel() }()
			if errno := f(ctx); errno != syscall.EINTR {
				t.Errorf("interrupted: %v", errno)
			}
		}
	}
	close(held)
	if b, errno := c.ReadFile(ctx, "/file", 100); string(b) != "contents" || errno != 0 {
		t.Errorf("afterwards: %q, %v", b, errno)
	}
	// The pod has opened what nobody wants any more: a handle that is not given back is lost for as long
	// as the session lasts.
	within(t, "handles of interrupted opens are closed", func() bool { return p.count(wire.FileOpen) == times+1 && p.open() == 0 })
}

func TestAnOpenFileStaysWithItsPodAndIsStaleWhenThatEnds(t *testing.T) {
	old, next := newPod(), newPod()
	old.add("/file", regular, "of the old pod")
	next.add("/file", regular, "of the next pod")
	c, w := newClient(t, old)
	h, errno := c.Open(ctx, "/file")
	if errno != 0 {
		t.Fatal(errno)
	}
	before, _ := c.Stat(ctx, "/file")
	w.move(next)
	b := make([]byte, 100)
	if got, _ := c.ReadFile(ctx, "/file", 100); string(got) != "of the old pod" {
		t.Errorf("before the move is told: %q", got)
	}
	c.Move()
	if got, errno := c.ReadFile(ctx, "/file", 100); string(got) != "of the next pod" || errno != 0 {
		t.Errorf("a name after the move: %q, %v", got, errno)
	}
	if n, errno := c.Read(ctx, h, b, 0); string(b[:n]) != "of the old pod" || errno != 0 {
		t.Errorf("an open file after the move: %q, %v", b[:n], errno)
	}
	if after, errno := c.Stat(ctx, "/file"); errno != 0 || after.Ino == before.Ino {
		t.Errorf("the kernel would take the next pod's file for the old one's: inode %d of both", after.Ino)
	}
	old.kill()
	within(t, "the open file is stale", func() bool { _, errno := c.Read(ctx, h, b, 0); return errno == syscall.ESTALE })
	c.Release(h)
	if got, errno := c.ReadFile(ctx, "/file", 100); string(got) != "of the next pod" || errno != 0 {
		t.Errorf("at the end: %q, %v", got, errno)
	}
}

func TestACallWhoseStreamEndsIsMadeAnew(t *testing.T) {
	p := newPod()
	p.add("/file", regular, "x")
	c, w := newClient(t, p)
	var cuts atomic.Int32
	p.before = func(q wire.FileRequest) syscall.Errno {
		if cuts.Add(1) < attempts {
			p.kill()
		}
		return 0
	}
	if _, errno := c.Stat(ctx, "/file"); errno != 0 || w.opened() != attempts {
		t.Errorf("%v after %d streams", errno, w.opened())
	}
	cuts.Store(-1000)
	if _, errno := c.Stat(ctx, "/file"); errno != syscall.EIO {
		t.Errorf("where each stream ends: %v", errno)
	}
}

func TestWhoCannotOpenAStreamIsToldSo(t *testing.T) {
	c := NewClient(func(ctx context.Context) (tunnel.Stream, error) {
		<-ctx.Done() // no pod is there, and none comes
		return nil, context.Cause(ctx)
	})
	soon, cancel := context.WithCancel(ctx)
	cancel()
	if _, errno := c.Stat(soon, "/"); errno != syscall.EINTR {
		t.Errorf("interrupted: %v", errno)
	}
	ended := make(chan syscall.Errno)
	for range 5 {
		go func() { _, errno := c.Stat(ctx, "/"); ended <- errno }()
	}
	c.Close()
	for range 5 {
		if errno := <-ended; errno != syscall.EIO {
			t.Errorf("after Close: %v", errno)
		}
	}
	if err := c.Connect(ctx); err == nil {
		t.Error("a closed client connects")
	}
	none := NewClient(func(context.Context) (tunnel.Stream, error) { return nil, errors.New("no") })
	defer none.Close()
	if _, errno := none.Stat(ctx, "/"); errno != syscall.EIO {
		t.Error(errno)
	}
}

func TestCallsUnderWayEndWithTheClient(t *testing.T) {
	p := newPod()
	held := make(chan struct{})
	defer close(held)
	begun := make(chan struct{}, 10)
	p.before = func(wire.FileRequest) syscall.Errno { begun <- struct{}{}; <-held; return 0 }
	c, _ := newClient(t, p)
	ended := make(chan syscall.Errno)
	for range 5 {
		go func() { _, errno := c.Stat(ctx, "/"); ended <- errno }()
	}
	for range 5 {
		<-begun
	}
	c.Close()
	for range 5 {
		if errno := <-ended; errno != syscall.EIO {
			t.Error(errno)
		}
	}
}

func TestAnAgentThatAnswersWronglyGivesErrorsAndNoWrongBytes(t *testing.T) {
	stat := func(c *Client) syscall.Errno { _, errno := c.Stat(ctx, "/x"); return errno }
	list := func(c *Client) syscall.Errno { _, errno := c.List(ctx, "/x"); return errno }
	read := func(c *Client) syscall.Errno {
		l, err := c.link(ctx)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 10)
		n, errno := c.Read(ctx, Handle{link: l, id: 1}, b, 0)
		if errno == 0 {
			t.Logf("%d bytes", n)
		}
		return errno
	}
	entry := string(wire.AppendEntry(nil, &wire.Entry{Name: "name"}))
	for _, x := range []struct {
		name   string
		call   func(*Client) syscall.Errno
		answer func(q wire.FileRequest) []byte
		want   syscall.Errno
	}{
		{"attributes that end early", stat, func(q wire.FileRequest) []byte { return reply(q, 0, repeat(wire.AttrSize-1)) }, syscall.EIO},
		{"a handle that ends early", func(c *Client) syscall.Errno { _, errno := c.Open(ctx, "/x"); return errno }, func(q wire.FileRequest) []byte { return reply(q, 0, repeat(7)) }, syscall.EIO},
		{"an entry that ends early", list, func(q wire.FileRequest) []byte { return reply(q, 0, entry[:len(entry)-1]) }, syscall.EIO},
		{"an entry without a name", list, func(q wire.FileRequest) []byte {
			return reply(q, 0, string(wire.AppendEntry(nil, &wire.Entry{})))
		}, syscall.EIO},
		{"an entry that is a path", list, func(q wire.FileRequest) []byte {
			return reply(q, 0, string(wire.AppendEntry(nil, &wire.Entry{Name: "../x"})))
		}, syscall.EIO},
		{"more bytes than were asked for", read, func(q wire.FileRequest) []byte { return reply(q, 0, repeat(11)) }, syscall.EIO},
		{"the end instead of an answer", stat, func(wire.FileRequest) []byte { return nil }, syscall.EIO},
		{"an answer of impossible size", stat, func(wire.FileRequest) []byte { return []byte("\xff\xff\xff\xff\x00\x00\x00\x00\x00\x00\x00\x00") }, syscall.EIO},
		{"an answer that nobody waits for, then the right one", func(c *Client) syscall.Errno { _, errno := c.Readlink(ctx, "/x"); return errno }, func(q wire.FileRequest) []byte {
			other := q
			other.ID += 1000
			return append(reply(other, 0, "no"), reply(q, syscall.EPERM, "")...)
		}, syscall.EPERM},
	} {
		t.Run(x.name, func(t *testing.T) {
			c := NewClient(canned(x.answer))
			defer c.Close()
			if errno := x.call(c); errno != x.want {
				t.Errorf("%v, want %v", errno, x.want)
			}
		})
	}
}
