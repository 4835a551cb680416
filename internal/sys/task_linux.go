package sys

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// PidfdThread is PIDFD_THREAD: a pidfd for one thread (Linux 6.9).
const PidfdThread = unix.O_EXCL

// ReadTask copies from the memory of thread tid at addr. It returns how many bytes were copied
// before the first page that is not there. Neither this nor WriteTask is a RawSyscall: a page may be one
// of the pod's files, which this process has to bring first.
func ReadTask(tid int, addr uint64, b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	local := unix.Iovec{Base: &b[0], Len: uint64(len(b))}
	remote := unix.RemoteIovec{Base: uintptr(addr), Len: len(b)}
	n, _, e := unix.Syscall6(unix.SYS_PROCESS_VM_READV, uintptr(tid),
		uintptr(unsafe.Pointer(&local)), 1, uintptr(unsafe.Pointer(&remote)), 1, 0)
	if e != 0 {
		return 0, e
	}
	return int(n), nil
}

// WriteTask copies b into the memory of thread tid at addr, all or an error. Like a system call's
// copy_to_user it fails with EFAULT on a read-only page.
func WriteTask(tid int, addr uint64, b []byte) error {
	if len(b) == 0 {
		return nil
	}
	local := unix.Iovec{Base: &b[0], Len: uint64(len(b))}
	remote := unix.RemoteIovec{Base: uintptr(addr), Len: len(b)}
	n, _, e := unix.Syscall6(unix.SYS_PROCESS_VM_WRITEV, uintptr(tid),
		uintptr(unsafe.Pointer(&local)), 1, uintptr(unsafe.Pointer(&remote)), 1, 0)
	if e != 0 {
		return e
	}
	if int(n) != len(b) {
		return unix.EFAULT
	}
	return nil
}

// PtraceDetach lets go of a stopped thread that the calling thread, which is locked, traces, and hands
// it a signal, 0 for none. x/sys's hands over none, so the signal at which it stopped would be lost. An
// error means that the thread is gone, was killed where it stopped, or was not stopped.
func PtraceDetach(tid int, signal unix.Signal) error {
	_, _, e := unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_DETACH, uintptr(tid), 0, uintptr(signal), 0, 0)
	return errnoErr(e)
}

// PtraceGetSigmask is PTRACE_GETSIGMASK (Linux 3.11), which x/sys lacks: the blocked signals of a stopped
// thread that the calling thread, which is locked, traces.
func PtraceGetSigmask(tid int) (mask uint64, err error) {
	err = ptraceMask(unix.PTRACE_GETSIGMASK, tid, &mask)
	return mask, err
}

// PtraceSetSigmask is PTRACE_SETSIGMASK; see PtraceGetSigmask.
func PtraceSetSigmask(tid int, mask uint64) error {
	return ptraceMask(unix.PTRACE_SETSIGMASK, tid, &mask)
}

// ptraceMask hands over a mask of 8 bytes, the kernel's sigset_t.
func ptraceMask(request, tid int, mask *uint64) error {
	_, _, e := unix.RawSyscall6(unix.SYS_PTRACE, uintptr(request), uintptr(tid), 8, uintptr(unsafe.Pointer(mask)), 0, 0)
	return errnoErr(e)
}
