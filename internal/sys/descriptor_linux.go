package sys

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Calls on what a descriptor stands for (AT_EMPTY_PATH; it may be of O_PATH), for the path calls of a
// program that are answered by us. They are here because x/sys takes the empty path as a string, which
// it copies to the heap for each call, and because errno is handed on exactly as the kernel gave it, 0
// for success. They are no RawSyscalls: the file system may have to be asked.

// StatFD is newfstatat(2): it fills st. flags are AT_STATX_DONT_SYNC and its like.
func StatFD(fd, flags int, st *unix.Stat_t) unix.Errno {
	_, _, e := unix.Syscall6(sysNewfstatat, uintptr(fd), uintptr(unsafe.Pointer(&nothing)), uintptr(unsafe.Pointer(st)), uintptr(unix.AT_EMPTY_PATH|flags), 0, 0)
	return e
}

// StatxFD is statx(2): it fills st with what mask asks for, and more where that costs nothing.
func StatxFD(fd, flags int, mask uint32, st *unix.Statx_t) unix.Errno {
	_, _, e := unix.Syscall6(unix.SYS_STATX, uintptr(fd), uintptr(unsafe.Pointer(&nothing)), uintptr(unix.AT_EMPTY_PATH|flags), uintptr(mask), uintptr(unsafe.Pointer(st)), 0)
	return e
}

// AccessFD is faccessat2(2) (Linux 5.8) by the effective ids. That of x/sys goes without the kernel
// where the call is not there, by guesses from the mode.
func AccessFD(fd int, mode uint32) unix.Errno {
	_, _, e := unix.Syscall6(unix.SYS_FACCESSAT2, uintptr(fd), uintptr(unsafe.Pointer(&nothing)), uintptr(mode), unix.AT_EMPTY_PATH|unix.AT_EACCESS, 0, 0)
	return e
}

// ReadlinkFD is readlinkat(2) of a link that was opened as itself: it fills b, which is not empty, and
// returns how much of it. ENOENT: fd is no link.
func ReadlinkFD(fd int, b []byte) (int, unix.Errno) {
	n, _, e := unix.Syscall6(unix.SYS_READLINKAT, uintptr(fd), uintptr(unsafe.Pointer(&nothing)), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), 0, 0)
	return int(n), e
}

// AcceptNow is accept4(2), close-on-exec, without asking for the client's address. It is a RawSyscall:
// the caller knows that it does not wait, as something is in the queue or the listener is non-blocking.
func AcceptNow(fd, flags int) (int, unix.Errno) {
	n, _, e := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), 0, 0, uintptr(flags|unix.SOCK_CLOEXEC), 0, 0)
	if e != 0 {
		return -1, e
	}
	return int(n), 0
}

// WriteNow is write(2) of b, which is not empty, to a socket that takes it at once. It is a RawSyscall:
// a thread under a filter does with it this one call and no other, of the runtime's neither.
func WriteNow(fd int, b []byte) (int, unix.Errno) {
	n, _, e := unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	if e != 0 {
		return 0, e
	}
	return int(n), 0
}
