//go:build linux

package sys

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func path(t *testing.T, name string) int {
	t.Helper()
	fd, err := unix.Open(name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func TestCallsOnADescriptorSayWhatTheKernelDoes(t *testing.T) {
	dir := t.TempDir()
	file, link := filepath.Join(dir, "file"), filepath.Join(dir, "link")
	if err := os.WriteFile(file, []byte("hello"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("to/somewhere", link); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{file, link, dir} {
		var want, got unix.Stat_t
		var gotx unix.Statx_t
		if err := unix.Lstat(name, &want); err != nil {
			t.Fatal(err)
		}
		fd := path(t, name)
		if e := StatFD(fd, 0, &got); e != 0 || got != want {
			t.Errorf("%s: %v, %+v, want %+v", name, e, got, want)
		}
		if e := StatxFD(fd, 0, unix.STATX_BASIC_STATS, &gotx); e != 0 || gotx.Ino != want.Ino || uint32(gotx.Mode) != want.Mode || gotx.Size != uint64(want.Size) {
			t.Errorf("%s: %v, %+v, want %+v", name, e, gotx, want)
		}
	}
	b := make([]byte, 100)
	if n, e := ReadlinkFD(path(t, link), b); e != 0 || string(b[:n]) != "to/somewhere" {
		t.Errorf("%q, %v", b[:n], e)
	}
	if n, e := ReadlinkFD(path(t, link), b[:2]); e != 0 || n != 2 || string(b[:2]) != "to" {
		t.Errorf("a short buffer: %q, %v", b[:n], e)
	}
	if _, e := ReadlinkFD(path(t, file), b); e != unix.ENOENT {
		t.Errorf("no link: %v", e)
	}
	if e := AccessFD(path(t, file), unix.R_OK); e != 0 {
		t.Error(e)
	}
	if e := AccessFD(path(t, file), unix.X_OK); e != unix.EACCES { // root neither: nobody may execute it
		t.Error(e)
	}
	var st unix.Stat_t
	for name, e := range map[string]unix.Errno{"stat": StatFD(-1, 0, &st), "access": AccessFD(-1, 0), "statx": StatxFD(-1, 0, 0, new(unix.Statx_t))} {
		if e != unix.EBADF {
			t.Errorf("%s of no descriptor: %v", name, e)
		}
	}
}

func TestWhatDoesNotWaitFailsInstead(t *testing.T) {
	l, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(l)
	if err := unix.Listen(l, 1); err != nil {
		t.Fatal(err)
	}
	if fd, e := AcceptNow(l, 0); e != unix.EAGAIN || fd != -1 {
		t.Errorf("nobody calls: %d, %v", fd, e)
	}
	at, err := unix.Getsockname(l)
	if err != nil {
		t.Fatal(err)
	}
	c, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(c)
	if err := unix.Connect(c, at); err != nil {
		t.Fatal(err)
	}
	fd, e := AcceptNow(l, unix.SOCK_NONBLOCK)
	if e != 0 {
		t.Fatal(e)
	}
	defer unix.Close(fd)
	flags, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	own, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	if flags&unix.O_NONBLOCK == 0 || own&unix.FD_CLOEXEC == 0 {
		t.Errorf("flags %#x, %#x", flags, own)
	}
	if n, e := WriteNow(c, []byte("hello")); n != 5 || e != 0 {
		t.Error(n, e)
	}
	if n, e := WriteNow(l, []byte("hello")); n != 0 || e != unix.EPIPE && e != unix.ENOTCONN {
		t.Error(n, e)
	}
}

// They are called for each path or each connection of a program's.
func TestHotCallsAllocateNothing(t *testing.T) {
	fd, buf := path(t, "/proc/self/exe"), make([]byte, 4096)
	var st unix.Stat_t
	var stx unix.Statx_t
	for name, f := range map[string]func(){
		"StatFD":     func() { StatFD(fd, 0, &st) },
		"StatxFD":    func() { StatxFD(fd, 0, unix.STATX_BASIC_STATS, &stx) },
		"AccessFD":   func() { AccessFD(fd, unix.R_OK) },
		"ReadlinkFD": func() { ReadlinkFD(fd, buf) },
		"AcceptNow":  func() { AcceptNow(-1, 0) },
		"WriteNow":   func() { WriteNow(-1, buf) },
		"signals":    func() { SetSignals(BlockAllSignals()) },
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
