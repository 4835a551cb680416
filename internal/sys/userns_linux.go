package sys

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// CanEnterNetwork says with nil that this process may join the network namespace of process pid.
func CanEnterNetwork(pid int) error {
	n, err := EnterNetwork(pid)
	if err == nil {
		n.Close()
	}
	return err
}

// OtherUser says whether process pid lives in another user namespace than this one.
func OtherUser(pid int) bool {
	var own, other unix.Stat_t
	return unix.Stat("/proc/self/ns/user", &own) == nil &&
		unix.Stat("/proc/"+strconv.Itoa(pid)+"/ns/user", &other) == nil && own.Ino != other.Ino
}

// StartAsOwner starts this executable with args inside the user namespace of process pid, as its
// root where it has one. It works for whoever made that namespace. A process with threads, as every
// Go program is one, cannot join a user namespace: so it forks, and the child, alone, joins and
// executes. files become the descriptors 0, 1, 2...
func StartAsOwner(pid int, args, env []string, files []*os.File) (*os.Process, error) {
	exe, err := os.Open("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	defer exe.Close()
	user, err := os.Open("/proc/" + strconv.Itoa(pid) + "/ns/user")
	if err != nil {
		return nil, err
	}
	defer user.Close()
	said, say, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer said.Close()
	j := join{user: int(user.Fd()), exe: int(exe.Fd()), say: int(say.Fd())}
	if j.argv, err = syscall.SlicePtrFromStrings(args); err == nil {
		j.envv, err = syscall.SlicePtrFromStrings(env)
	}
	if err != nil {
		say.Close()
		return nil, err
	}
	// Out of the way of the numbers that they become; closed by exec, and here.
	for _, fd := range append([]*int{&j.user, &j.exe, &j.say}, j.places(files)...) {
		n, err := unix.FcntlInt(uintptr(*fd), unix.F_DUPFD_CLOEXEC, 64)
		if err != nil {
			say.Close()
			return nil, err
		}
		moved := os.NewFile(uintptr(n), "descriptor to pass")
		defer moved.Close()
		if fd == &j.say {
			say.Close()
			say = moved
		}
		*fd = n
	}
	child, errno := j.fork()
	say.Close() // the child's end is the last
	runtime.KeepAlive(files)
	if errno != 0 {
		return nil, fmt.Errorf("fork: %w", errno)
	}
	p, err := os.FindProcess(child)
	if err != nil {
		return nil, err
	}
	var b [2]byte
	if n, _ := said.Read(b[:]); n == len(b) {
		_, _ = p.Wait()
		return nil, fmt.Errorf("%s in the user namespace of process %d: %w", joinSteps[b[0]], pid, unix.Errno(b[1]))
	}
	return p, nil
}

// join is what the child between fork and exec needs, made before.
type join struct {
	user, exe, say int
	argv, envv     []*byte
	fds            []int
	old            [1]uint64 // the thread's signal mask
}

func (j *join) places(files []*os.File) (out []*int) {
	j.fds = make([]int, len(files))
	for i, f := range files {
		j.fds[i] = int(f.Fd())
		out = append(out, &j.fds[i])
	}
	return out
}

var joinSteps = [...]string{"pass descriptors", "join", "take capabilities", "execute the agent"}

var (
	allSignals = [1]uint64{^uint64(0)}
	nothing    = [1]byte{}
)

// The kernel's structs for capset(2), version 3, all capabilities of the first 41.
var (
	capHeader = unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	capAll    [2]unix.CapUserData
)

// fork makes the child. No signal may reach the child before it executes: the runtime in it is a
// copy without its threads.
func (j *join) fork() (pid int, errno syscall.Errno) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	syscall.ForkLock.Lock()
	defer syscall.ForkLock.Unlock()
	return j.forkAndExec()
}

// forkAndExec runs in parent and child. After the fork the child makes raw system calls only: it
// allocates nothing, grows no stack and calls nothing that could wait for another thread.
//
//go:noinline
//go:norace
//go:nocheckptr
func (j *join) forkAndExec() (pid int, errno syscall.Errno) {
	argv, envv := unsafe.Pointer(&j.argv[0]), unsafe.Pointer(&j.envv[0])
	fds, say := j.fds, uintptr(j.say)
	var report [2]byte
	var i, n int
	var e syscall.Errno
	var r uintptr
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&allSignals)), uintptr(unsafe.Pointer(&j.old)), 8, 0, 0)
	r, _, e = syscall.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if e != 0 || r != 0 {
		syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&j.old)), 0, 8, 0, 0)
		return int(r), e
	}
	n = len(fds)
	for i = 0; i < n; i++ {
		if _, _, e = syscall.RawSyscall(unix.SYS_DUP3, uintptr(fds[i]), uintptr(i), 0); e != 0 {
			goto failed
		}
	}
	report[0] = 1
	if _, _, e = syscall.RawSyscall(unix.SYS_SETNS, uintptr(j.user), unix.CLONE_NEWUSER, 0); e != 0 {
		goto failed
	}
	// As root of the namespace the capabilities outlive exec; where it has no root, as ambient ones.
	syscall.RawSyscall(unix.SYS_SETRESGID, 0, 0, 0)
	if _, _, e = syscall.RawSyscall(unix.SYS_SETRESUID, 0, 0, 0); e != 0 {
		report[0] = 2
		if _, _, e = syscall.RawSyscall(unix.SYS_CAPGET, uintptr(unsafe.Pointer(&capHeader)), uintptr(unsafe.Pointer(&capAll)), 0); e != 0 {
			goto failed
		}
		capAll[0].Inheritable, capAll[1].Inheritable = capAll[0].Permitted, capAll[1].Permitted
		if _, _, e = syscall.RawSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&capHeader)), uintptr(unsafe.Pointer(&capAll)), 0); e != 0 {
			goto failed
		}
		for i = 0; i <= unix.CAP_LAST_CAP; i++ {
			syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(i), 0, 0, 0)
		}
	}
	report[0] = 3
	// Its own group: the terminal's signals are not for it.
	syscall.RawSyscall(unix.SYS_SETPGID, 0, 0, 0)
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&j.old)), 0, 8, 0, 0)
	_, _, e = syscall.RawSyscall6(unix.SYS_EXECVEAT, uintptr(j.exe), uintptr(unsafe.Pointer(&nothing)), uintptr(argv), uintptr(envv), unix.AT_EMPTY_PATH, 0)
failed:
	report[1] = byte(e)
	syscall.RawSyscall(unix.SYS_WRITE, say, uintptr(unsafe.Pointer(&report)), 2)
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, 253, 0, 0)
	}
}
