package podfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/intercept/mountns"
	"github.com/stead-dev/stead/internal/wire"
)

// mounted is a file system that the kernel has, on no place in any namespace: whatever ends this
// process, nothing is left of it.
type mounted struct {
	*FS
	*Client
	*where
	at string // path of its root
}

func mount(t *testing.T, p *pod, o Options) *mounted {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("mounting needs root: run it as root")
	}
	dev, root, err := mountns.Detached(0, 0, true)
	if err != nil {
		t.Fatal(err)
	}
	m := &mounted{at: fmt.Sprintf("/proc/self/fd/%d", root)}
	m.Client, m.where = newClient(t, p)
	m.FS = New(m.Client, o)
	if err := m.Serve(dev); err != nil {
		unix.Close(root)
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(root); m.Wait() })
	// Go asks of each file that it opens whether it can be polled, without giving up the thread that would
	// have to answer. Once told that nothing can, the kernel asks no more.
	p.add("/.polled", regular, "")
	fd, err := unix.Open(m.at+"/.polled", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0); err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *mounted) read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(m.at + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestTheKernelShowsThePodsTree(t *testing.T) {
	p := newPod()
	e := p.add("/etc/app.conf", syscall.S_IFREG|0o640, "name: app\n")
	p.add("/etc/link", symlink, "app.conf")
	p.add("/pipe", syscall.S_IFIFO|0o600, "")
	m := mount(t, p, Options{})
	if got := m.read(t, "/etc/app.conf"); got != "name: app\n" {
		t.Errorf("%q", got)
	}
	if got := m.read(t, "/etc/link"); got != "name: app\n" {
		t.Errorf("by the link: %q", got)
	}
	var st unix.Stat_t
	if err := unix.Lstat(m.at+"/etc/app.conf", &st); err != nil {
		t.Fatal(err)
	}
	if st.Mode != e.attr.Mode || st.Uid != 7 || st.Gid != 8 || st.Size != 10 || st.Mtim.Nano() != e.attr.Mtime {
		t.Errorf("%+v, want %+v", st, e.attr)
	}
	for name, want := range map[string]syscall.Errno{"/nothing": syscall.ENOENT, "/etc/app.conf/x": syscall.ENOTDIR} {
		if _, err := os.Stat(m.at + name); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
}

func TestADirectoryOfManyEntriesIsWholeAndItsAttributesComeWithIt(t *testing.T) {
	const many = 2000
	p := newPod()
	for i := range many {
		p.add(fmt.Sprintf("/many/entry-%04d", i), regular, fmt.Sprint(i))
	}
	m := mount(t, p, Options{})
	entries, err := os.ReadDir(m.at + "/many")
	if err != nil || len(entries) != many {
		t.Fatalf("%d entries, %v", len(entries), err)
	}
	for i, e := range entries { // sorted
		info, err := e.Info()
		if err != nil || e.Name() != fmt.Sprintf("entry-%04d", i) || info.Size() != int64(len(fmt.Sprint(i))) {
			t.Fatalf("entry %d: %v, %v", i, info, err)
		}
	}
	if n := p.count(wire.FileStat); n >= many {
		t.Errorf("the pod was asked for the attributes of %d names that it had told with the list", n)
	}
}

func TestWhatTheKernelHasInItsCacheIsNotAskedFor(t *testing.T) {
	p := newPod()
	p.add("/dir/file", regular, "x")
	m := mount(t, p, Options{})
	const times = 500
	for range times {
		if _, err := os.Stat(m.at + "/dir/file"); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(m.at + "/dir/nothing"); !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	if n := p.count(wire.FileStat); n >= times {
		t.Errorf("%d questions for %d calls", n, 2*times)
	}
}

func TestAFileThatChangesInThePodIsSeenAnew(t *testing.T) {
	p := newPod()
	p.add("/file", regular, "one")
	m := mount(t, p, Options{})
	if got := m.read(t, "/file"); got != "one" {
		t.Fatalf("%q", got)
	}
	p.add("/file", regular, "another")
	within(t, "the new contents are read", func() bool { return m.read(t, "/file") == "another" })
	p.add("/later", regular, "x")
	within(t, "a new name is there", func() bool { _, err := os.Stat(m.at + "/later"); return err == nil })
	p.remove("/file")
	within(t, "a removed name is gone", func() bool { _, err := os.Stat(m.at + "/file"); return errors.Is(err, fs.ErrNotExist) })
}

func TestNothingCanBeChanged(t *testing.T) {
	p := newPod()
	p.add("/dir/file", regular, "x")
	m := mount(t, p, Options{})
	file, dir := m.at+"/dir/file", m.at+"/dir"
	for name, err := range map[string]error{
		"write":    func() error { _, err := os.OpenFile(file, os.O_RDWR, 0); return err }(),
		"truncate": os.Truncate(file, 0),
		"create":   os.WriteFile(dir+"/new", nil, 0o600),
		"mkdir":    os.Mkdir(dir+"/new", 0o700),
		"mknod":    unix.Mknod(dir+"/new", unix.S_IFIFO|0o600, 0),
		"symlink":  os.Symlink("x", dir+"/new"),
		"link":     os.Link(file, dir+"/new"),
		"unlink":   unix.Unlink(file),
		"rmdir":    unix.Rmdir(dir),
		"rename":   os.Rename(file, dir+"/new"),
		"chmod":    os.Chmod(file, 0o600),
		"chown":    os.Chown(file, 1, 1),
		"utimes":   os.Chtimes(file, time.Now(), time.Now()),
		"setxattr": unix.Setxattr(file, "user.x", []byte("x"), 0),
	} {
		if !errors.Is(err, syscall.EROFS) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestMadeUpNamesStandAboveThePods(t *testing.T) {
	p := newPod()
	p.add("/etc/nsswitch.conf", regular, "of the pod")
	p.add("/etc/secret", regular, "of the pod")
	p.add("/etc/other", regular, "of the pod")
	m := mount(t, p, Options{Overlay: Overlay{
		"/etc/nsswitch.conf": {Data: []byte("made up")},
		"/etc/secret":        {Absent: true},
		"/etc/mtab":          {Link: "/proc/mounts"},
		"/home/ann/src":      {Dir: true},
	}})
	if got := m.read(t, "/etc/nsswitch.conf") + ", " + m.read(t, "/etc/other"); got != "made up, of the pod" {
		t.Error(got)
	}
	if to, err := os.Readlink(m.at + "/etc/mtab"); to != "/proc/mounts" {
		t.Error(to, err)
	}
	if _, err := os.Stat(m.at + "/etc/secret"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	for dir, want := range map[string][]string{"/etc": {"mtab", "nsswitch.conf", "other"}, "/home": {"ann"}, "/home/ann": {"src"}} {
		entries, err := os.ReadDir(m.at + dir)
		var got []string
		for _, e := range entries {
			got = append(got, e.Name())
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %q, %v; want %q", dir, got, err, want)
		}
	}
}

func TestWhenThePodMovesNamesAreTheNextOnesAndDirectoriesStay(t *testing.T) {
	old, next := newPod(), newPod()
	old.add("/dir/file", regular, "of the old pod")
	old.add("/dir/only", regular, "x")
	next.add("/dir/file", regular, "of the next pod, which says more")
	m := mount(t, old, Options{})
	// Each read of it is a question: none is answered by the kernel's pages.
	f, err := os.OpenFile(m.at+"/dir/file", os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cwd, err := os.Open(m.at + "/dir")
	if err != nil {
		t.Fatal(err)
	}
	defer cwd.Close()
	before, err := cwd.Stat()
	if err != nil {
		t.Fatal(err)
	}
	m.move(next)
	m.Move()
	m.Moved()
	if got := m.read(t, "/dir/file"); got != "of the next pod, which says more" {
		t.Errorf("by name: %q", got)
	}
	if _, err := os.Stat(m.at + "/dir/only"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what the next pod has not: %v", err)
	}
	if got, err := io.ReadAll(f); string(got) != "of the old pod" {
		t.Errorf("an open file: %q, %v", got, err)
	}
	after, err := os.Stat(m.at + "/dir")
	if err != nil || !os.SameFile(before, after) {
		t.Errorf("the directory became another one: %v, %v", after, err)
	}
	if got, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d/file", cwd.Fd())); string(got) != "of the next pod, which says more" {
		t.Errorf("below an open directory: %q, %v", got, err)
	}
	old.kill()
	within(t, "the open file is stale", func() bool {
		_, err := f.ReadAt(make([]byte, 10), 0)
		return errors.Is(err, syscall.ESTALE)
	})
}

// Large enough that it is read ahead.
func TestALargeFileIsReadRightInSequenceAndAnyhow(t *testing.T) {
	p := newPod()
	data := make([]byte, 12<<20+12345)
	rand.NewChaCha8([32]byte{1}).Read(data)
	p.add("/big", regular, string(data))
	m := mount(t, p, Options{})
	if got := m.read(t, "/big"); got != string(data) {
		t.Fatalf("%d bytes in sequence differ", len(got))
	}
	if p.open() != 0 {
		within(t, "the handle is given back", func() bool { return p.open() == 0 })
	}
	var work sync.WaitGroup
	for g := range 4 {
		work.Add(1)
		go func() {
			defer work.Done()
			// Without the kernel's pages: each read is a question.
			f, err := os.OpenFile(filepath.Join(m.at, "big"), os.O_RDONLY|unix.O_DIRECT, 0)
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			r := rand.New(rand.NewPCG(1, uint64(g)))
			b := make([]byte, 300_000)
			for range 50 {
				off := r.Int64N(int64(len(data)))
				n, err := f.ReadAt(b, off)
				if err != nil && err != io.EOF || !bytes.Equal(b[:n], data[off:min(off+int64(len(b)), int64(len(data)))]) {
					t.Errorf("%d bytes at %d: %v", n, off, err)
				}
			}
		}()
	}
	work.Wait()
	within(t, "no byte of the budget is kept", func() bool { return m.aheadBytes.Load() == 0 })
}
