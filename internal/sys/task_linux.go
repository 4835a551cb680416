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
