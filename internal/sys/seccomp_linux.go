// Package sys makes the raw system calls, and is the only one that does: those that x/sys lacks, those
// of which it hides what we need (an errno, a signal), and those on hot paths for which it allocates.
// Each says whether it may wait: one that may is a Syscall, for which the runtime gives up the P; the
// others are RawSyscalls. It decides nothing.
package sys

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Seccomp user notification (seccomp_unotify(2)). x/sys lacks these; the layouts are those of
// include/uapi/linux/seccomp.h and equal on amd64 and arm64.

// Notif is struct seccomp_notif: one call of the program that waits for an answer.
type Notif struct {
	ID    uint64
	PID   uint32 // thread id, in our pid namespace
	Flags uint32
	Data  SeccompData
}

// SeccompData is struct seccomp_data.
type SeccompData struct {
	NR   int32
	Arch uint32
	IP   uint64
	Args [6]uint64
}

// notifResp is struct seccomp_notif_resp.
type notifResp struct {
	id    uint64
	val   int64
	err   int32
	flags uint32
}

// notifAddFD is struct seccomp_notif_addfd.
type notifAddFD struct {
	id       uint64
	flags    uint32
	srcfd    uint32
	newfd    uint32
	newflags uint32
}

const (
	ioctlNotifRecv     = 0xc0502100
	ioctlNotifSend     = 0xc0182101
	ioctlNotifIDValid  = 0x40082102
	ioctlNotifAddFD    = 0x40182103 // Linux 5.9
	ioctlNotifSetFlags = 0x40082104 // Linux 6.6

	notifFlagContinue = 1 // Linux 5.5
	addFDFlagSend     = 2 // Linux 5.14
	notifSyncWakeUp   = 1

	filterFlagSpecAllow    = 1 << 2
	filterFlagNewListener  = 1 << 3
	filterFlagWaitKillable = 1 << 5 // Linux 5.19
)

// Listener is the descriptor that receives the notifications of one filter.
type Listener int

// InstallFilter puts the calling thread, and all that it starts or executes, under the filter and
// returns the listener. The caller has locked its OS thread and has no_new_privs set or
// CAP_SYS_ADMIN. EBUSY: another filter with a listener is installed already (the kernel allows one
// in a tree). From the return to the exec only calls that the filter lets pass are safe.
func InstallFilter(filter []unix.SockFilter) (Listener, error) {
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	// Without WAIT_KILLABLE a signal restarts a call that was received already: Go programs, which
	// signal themselves for preemption, would storm us. Kernels before 5.19 do not know it.
	for _, flags := range []uintptr{
		filterFlagNewListener | filterFlagSpecAllow | filterFlagWaitKillable,
		filterFlagNewListener | filterFlagSpecAllow,
	} {
		fd, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&prog)))
		if e == 0 {
			return Listener(fd), nil
		}
		if e != unix.EINVAL {
			return -1, e
		}
	}
	runtime.KeepAlive(filter)
	return -1, unix.EINVAL
}

// TryFilter says with nil that a filter with a listener could be installed here: it installs one that
// lets everything pass, on a thread that ends with it. The errors are InstallFilter's.
func TryFilter() error {
	end := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread, and with it the filter, ends with the goroutine
		if _, permitted, err := Capabilities(); err != nil || permitted&(1<<unix.CAP_SYS_ADMIN) == 0 {
			if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
				end <- err
				return
			}
		}
		l, err := InstallFilter([]unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0x7fff0000}}) // SECCOMP_RET_ALLOW
		if err == nil {
			unix.Close(int(l))
		}
		end <- err
	}()
	return <-end
}

// BlockSignals blocks every signal but Interrupt's on the calling thread, which must be locked: a
// signal during AddFDSend would make the program's call return 0 with no descriptor.
func BlockSignals() {
	SetSignals(^uint64(0) &^ (1 << (Interrupting - 1)))
}

// BlockAllSignals blocks every signal on the calling thread, which must be locked, and returns the mask
// that it had, for SetSignals. x/sys has PthreadSigmask only by a pointer to 128 bytes; it is called for
// each descriptor that is handed over.
func BlockAllSignals() (old uint64) {
	all := ^uint64(0)
	unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&all)), uintptr(unsafe.Pointer(&old)), 8, 0, 0)
	return old
}

// SetSignals gives the calling thread, which is locked, a mask of blocked signals. It cannot fail.
func SetSignals(mask uint64) {
	unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&mask)), 0, 8, 0, 0)
}

// Interrupting is a real-time signal that nobody else uses. Go's runtime has a handler for it, which
// does nothing, but like all of Go's one that restarts what it interrupts.
const Interrupting = 42

// Interrupt makes a call in which thread tid of this process waits fail with EINTR. Who is just about
// to wait is not reached: do it again until it has taken notice.
func Interrupt(tid int) error {
	var act struct{ handler, flags, restorer, mask uintptr } // struct kernel_sigaction
	_, _, e := unix.RawSyscall6(unix.SYS_RT_SIGACTION, Interrupting, 0, uintptr(unsafe.Pointer(&act)), 8, 0, 0)
	if e == 0 && act.flags&saRestart != 0 {
		act.flags &^= saRestart
		_, _, e = unix.RawSyscall6(unix.SYS_RT_SIGACTION, Interrupting, uintptr(unsafe.Pointer(&act)), 0, 8, 0, 0)
	}
	if e != 0 {
		return e
	}
	return unix.Tgkill(unix.Getpid(), tid, Interrupting)
}

const saRestart = 0x10000000

// SetSyncWakeUp asks for a wake-up of the waiting side on the same CPU, which halves the latency of
// a trapped call where the kernel knows it (6.6).
func (l Listener) SetSyncWakeUp() error {
	_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(l), ioctlNotifSetFlags, notifSyncWakeUp)
	return errnoErr(e)
}

// Recv waits for the next call. It is not a RawSyscall: a blocked receiver must give up its P.
// EINTR and ENOENT (the task died meanwhile) are returned as they come.
func (l Listener) Recv(n *Notif) unix.Errno {
	*n = Notif{} // the kernel wants it zeroed
	_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(l), ioctlNotifRecv, uintptr(unsafe.Pointer(n)))
	return e
}

// Over says whether no task is left under the filter (since Linux 5.9, by POLLHUP).
func (l Listener) Over() bool {
	fds := []unix.PollFd{{Fd: int32(l)}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0 && fds[0].Revents&(unix.POLLHUP|unix.POLLERR|unix.POLLNVAL) != 0
}

// Continue lets the call run as if it had not been trapped.
func (l Listener) Continue(id uint64) {
	l.send(&notifResp{id: id, flags: notifFlagContinue})
}

// Answer ends the call with val, or with errno where that is not 0. ENOENT (the task died or was
// interrupted) is no error for a supervisor and is dropped.
func (l Listener) Answer(id uint64, val int64, errno unix.Errno) {
	r := notifResp{id: id, val: val, err: -int32(errno)}
	if errno != 0 {
		r.val = 0
	}
	l.send(&r)
}

func (l Listener) send(r *notifResp) {
	for {
		_, _, e := unix.RawSyscall(unix.SYS_IOCTL, uintptr(l), ioctlNotifSend, uintptr(unsafe.Pointer(r)))
		if e != unix.EINTR {
			return
		}
	}
}

// AddFDSend puts a copy of fd into the task, close-on-exec if asked, and ends the call with its
// number. The calling thread must be locked with its signals blocked (see BlockSignals). An error
// means that the call was not answered.
func (l Listener) AddFDSend(id uint64, fd int, cloexec bool) error {
	a := notifAddFD{id: id, flags: addFDFlagSend, srcfd: uint32(fd)}
	if cloexec {
		a.newflags = unix.O_CLOEXEC
	}
	_, _, e := unix.RawSyscall(unix.SYS_IOCTL, uintptr(l), ioctlNotifAddFD, uintptr(unsafe.Pointer(&a)))
	return errnoErr(e)
}

// AddFD puts a copy of fd into the task, close-on-exec if asked, and returns its number there. The call
// goes on waiting.
func (l Listener) AddFD(id uint64, fd int, cloexec bool) (int, error) {
	a := notifAddFD{id: id, srcfd: uint32(fd)}
	if cloexec {
		a.newflags = unix.O_CLOEXEC
	}
	n, _, e := unix.RawSyscall(unix.SYS_IOCTL, uintptr(l), ioctlNotifAddFD, uintptr(unsafe.Pointer(&a)))
	return int(n), errnoErr(e)
}

// Valid says whether the call id still waits. After a true answer everything that was read of the
// task before the question was the task's own.
func (l Listener) Valid(id uint64) bool {
	_, _, e := unix.RawSyscall(unix.SYS_IOCTL, uintptr(l), ioctlNotifIDValid, uintptr(unsafe.Pointer(&id)))
	return e == 0
}

func errnoErr(e unix.Errno) error {
	if e == 0 {
		return nil
	}
	return e
}
