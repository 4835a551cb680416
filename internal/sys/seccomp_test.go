//go:build linux

package sys

import (
	"os"
	"os/exec"
	"runtime"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The first thread does not end with a goroutine that was locked to it, so no test has it.
func init() { runtime.LockOSThread() }

func TestTheKernelsStructsAreAsLargeAsOurs(t *testing.T) {
	var sizes struct{ notif, resp, data uint16 } // struct seccomp_notif_sizes
	const getNotifSizes = 3
	if _, _, e := unix.Syscall(unix.SYS_SECCOMP, getNotifSizes, 0, uintptr(unsafe.Pointer(&sizes))); e != 0 {
		t.Fatal(e)
	}
	if unsafe.Sizeof(Notif{}) != uintptr(sizes.notif) || unsafe.Sizeof(notifResp{}) != uintptr(sizes.resp) || unsafe.Sizeof(SeccompData{}) != uintptr(sizes.data) {
		t.Errorf("ours have %d, %d, %d bytes; the kernel says %+v", unsafe.Sizeof(Notif{}), unsafe.Sizeof(notifResp{}), unsafe.Sizeof(SeccompData{}), sizes)
	}
	// _IOC(direction, '!', number, size) of include/uapi/asm-generic/ioctl.h.
	ioc := func(direction, number, size uintptr) uintptr { return direction<<30 | size<<16 | '!'<<8 | number }
	const write, readWrite = 1, 3
	for name, x := range map[string][2]uintptr{
		"RECV":      {ioctlNotifRecv, ioc(readWrite, 0, unsafe.Sizeof(Notif{}))},
		"SEND":      {ioctlNotifSend, ioc(readWrite, 1, unsafe.Sizeof(notifResp{}))},
		"ID_VALID":  {ioctlNotifIDValid, ioc(write, 2, 8)},
		"ADDFD":     {ioctlNotifAddFD, ioc(write, 3, unsafe.Sizeof(notifAddFD{}))},
		"SET_FLAGS": {ioctlNotifSetFlags, ioc(write, 4, 8)},
	} {
		if x[0] != x[1] {
			t.Errorf("SECCOMP_IOCTL_NOTIF_%s is %#x, want %#x", name, x[0], x[1])
		}
	}
}

// trapping is a filter that traps one call and lets all others pass.
func trapping(nr uint32) []unix.SockFilter {
	const trap = 0x7fc00000 // SECCOMP_RET_USER_NOTIF
	return []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: nr, Jt: 0, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: trap},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
}

// A filter cannot be taken off: the test runs in a process of its own.
func TestAFilterTrapsACallAndTheListenerAnswersIt(t *testing.T) {
	if os.Getenv("STEAD_TEST_FILTER") == "" {
		c := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$")
		c.Env = append(os.Environ(), "STEAD_TEST_FILTER=1")
		if out, err := c.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
		return
	}
	type result struct {
		r uintptr
		e unix.Errno
	}
	listener, tid, results, goOn := make(chan Listener), make(chan int, 1), make(chan result), make(chan bool)
	go func() { // the filter is this thread's, which ends with the goroutine
		runtime.LockOSThread()
		unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
		l, err := InstallFilter(trapping(unix.SYS_GETPPID))
		if err != nil {
			t.Errorf("install: %v", err)
		}
		if _, err := InstallFilter(trapping(unix.SYS_GETPPID)); err != unix.EBUSY {
			t.Errorf("a second listener: %v", err)
		}
		tid <- unix.Gettid()
		listener <- l
		for <-goOn {
			r, _, e := unix.Syscall6(unix.SYS_GETPPID, 1, 2, 3, 4, 5, 1<<40)
			results <- result{r, e}
		}
	}()
	l := <-listener
	if l < 0 {
		t.FailNow()
	}
	thread := uint32(<-tid)
	_ = l.SetSyncWakeUp() // Linux 6.6
	next := func() (n Notif) {
		goOn <- true
		if e := l.Recv(&n); e != 0 {
			t.Fatalf("receive: %v", e)
		}
		return n
	}
	n := next()
	if n.PID != thread || n.Data.NR != unix.SYS_GETPPID || n.Data.Args != [6]uint64{1, 2, 3, 4, 5, 1 << 40} || !l.Valid(n.ID) {
		t.Errorf("%+v of thread %d", n, thread)
	}
	l.Answer(n.ID, 12345, 0)
	if r := <-results; r != (result{12345, 0}) {
		t.Errorf("a value: %+v", r)
	}
	if l.Valid(n.ID) {
		t.Error("a call that was answered waits still")
	}
	l.Answer(n.ID, 1, 0) // and is not answered again

	n = next()
	l.Answer(n.ID, 7, unix.EXDEV)
	if r := <-results; r.e != unix.EXDEV {
		t.Errorf("an errno: %+v", r)
	}

	n = next()
	l.Continue(n.ID)
	if r := <-results; r != (result{uintptr(os.Getppid()), 0}) {
		t.Errorf("as if it had not been trapped: %+v, want %d", r, os.Getppid())
	}

	for _, cloexec := range []bool{false, true} {
		n = next()
		done := make(chan error)
		go func() { // the answering thread: locked, without signals
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			defer SetSignals(BlockAllSignals())
			done <- l.AddFDSend(n.ID, 1, cloexec)
		}()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		r := <-results
		flags, err := unix.FcntlInt(r.r, unix.F_GETFD, 0)
		if err != nil || r.e != 0 || (flags&unix.FD_CLOEXEC != 0) != cloexec {
			t.Errorf("a descriptor, close-on-exec %v: %+v, flags %#x, %v", cloexec, r, flags, err)
		}
		unix.Close(int(r.r))
	}

	n = next()
	fd, err := l.AddFD(n.ID, 1, true)
	if err != nil || !l.Valid(n.ID) {
		t.Errorf("a descriptor while the call waits: %d, %v", fd, err)
	}
	l.Answer(n.ID, int64(fd), 0)
	if r := <-results; r.r != uintptr(fd) {
		t.Errorf("%+v, want %d", r, fd)
	}
	if err := l.AddFDSend(n.ID, 1, false); err != unix.ENOENT && err != unix.EINPROGRESS {
		t.Errorf("for a call that is over: %v", err)
	}
	if l.Over() {
		t.Error("over while the thread lives")
	}
	close(goOn)
	for !l.Over() { // the test's own limit ends it
		runtime.Gosched()
	}
}
