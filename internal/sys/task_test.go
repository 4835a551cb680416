//go:build linux

package sys

import (
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The kernel's structs of include/uapi/linux/userfaultfd.h, x86-64 and arm64 alike.
const (
	uffdioAPI      = 0xc018aa3f
	uffdioRegister = 0xc020aa00
	uffdioCopy     = 0xc028aa03
	uffdAPI        = 0xaa
	uffdMissing    = 1
)

// A program's memory may be of a file that we serve: whoever reads it must not keep the others from
// running, least of all the collector, which waits for all.
func TestWhoReadsMemoryThatWeMustBringStopsNobody(t *testing.T) {
	if os.Getenv("STEAD_TEST_FAULT") == "" {
		c := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$")
		c.Env = append(os.Environ(), "STEAD_TEST_FAULT=1")
		var out strings.Builder
		c.Stdout, c.Stderr = &out, &out
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		late := time.AfterFunc(20*time.Second, func() { c.Process.Kill() })
		defer late.Stop()
		if err := c.Wait(); err != nil {
			t.Errorf("%v: %s", err, out.String())
		}
		return
	}
	fd, _, e := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK, 0, 0)
	if e != 0 {
		t.Fatalf("userfaultfd: %v (run it as root)", e)
	}
	page := uint64(os.Getpagesize())
	mem, err := unix.Mmap(-1, 0, int(page), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	at := uint64(uintptr(unsafe.Pointer(&mem[0])))
	content := make([]byte, page)
	copy(content, "hello")
	for _, call := range []struct {
		request uintptr
		arg     []uint64
	}{
		{uffdioAPI, []uint64{uffdAPI, 0, 0}},
		{uffdioRegister, []uint64{at, page, uffdMissing, 0}},
	} {
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, fd, call.request, uintptr(unsafe.Pointer(&call.arg[0]))); e != 0 {
			t.Fatal(e)
		}
	}
	got := make(chan string)
	go func() {
		b := make([]byte, 5)
		_, _ = ReadTask(os.Getpid(), at, b)
		got <- string(b)
	}()
	fault := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for n := 0; n == 0; {
		n, _ = unix.Poll(fault, -1)
		n = max(n, 0)
	}
	runtime.GC()
	bring := []uint64{at, uint64(uintptr(unsafe.Pointer(&content[0]))), page, 0, 0}
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, fd, uffdioCopy, uintptr(unsafe.Pointer(&bring[0]))); e != 0 {
		t.Fatal(e)
	}
	if s := <-got; s != "hello" {
		t.Errorf("read %q", s)
	}
}
