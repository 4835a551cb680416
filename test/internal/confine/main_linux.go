// Confine UID[,CALL...] PROGRAM ARGS runs a program as another user on a machine that forbids
// something: "userns", user namespaces, as Docker's default profile and Ubuntu's AppArmor rule have
// it; "seccomp", seccomp(2) as an old kernel knows it; "listener", as where somebody listens already;
// "filters", as where none may be installed; "ptrace", looking into other processes, as
// Yama has it; "admin", CAP_SYS_ADMIN, as root of a container lacks it; "fuse", /dev/fuse, which is not
// there. setuid programs still work.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "confine:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 2 {
		return fmt.Errorf("confine UID PROGRAM ARGS")
	}
	words := strings.Split(args[0], ",")
	uid, err := strconv.Atoi(words[0])
	if err != nil {
		return err
	}
	program, err := exec.LookPath(args[1])
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	// As root, so that no_new_privs is not needed.
	load := func(off uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: off}
	}
	equal := func(k uint32, yes, no uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: k, Jt: yes, Jf: no}
	}
	ret := func(k uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k} }
	errno := func(e unix.Errno) unix.SockFilter { return ret(unix.SECCOMP_RET_ERRNO | uint32(e)) }
	filter := []unix.SockFilter{load(0)}
	for _, w := range words[1:] {
		switch w {
		case "userns":
			filter = append(filter,
				equal(unix.SYS_UNSHARE, 0, 1), errno(unix.EPERM),
				equal(unix.SYS_CLONE3, 0, 1), errno(unix.ENOSYS),
				equal(unix.SYS_CLONE, 0, 4), load(16),
				unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, K: unix.CLONE_NEWUSER, Jt: 0, Jf: 1}, errno(unix.EPERM),
				load(0))
		case "seccomp":
			filter = append(filter, equal(unix.SYS_SECCOMP, 0, 1), errno(unix.EINVAL))
		case "listener":
			filter = append(filter, equal(unix.SYS_SECCOMP, 0, 1), errno(unix.EBUSY))
		case "filters":
			filter = append(filter, equal(unix.SYS_SECCOMP, 0, 1), errno(unix.EPERM))
		case "ptrace":
			filter = append(filter, equal(unix.SYS_PIDFD_GETFD, 0, 1), errno(unix.EPERM))
		case "admin":
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_SYS_ADMIN, 0, 0, 0); err != nil {
				return fmt.Errorf("drop CAP_SYS_ADMIN: %w", err)
			}
		case "fuse":
			if err := hideFUSE(); err != nil {
				return fmt.Errorf("hide /dev/fuse: %w", err)
			}
		default:
			return fmt.Errorf("%q: nothing that can be forbidden", w)
		}
	}
	filter = append(filter, ret(unix.SECCOMP_RET_ALLOW))
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	const everyThread = 1 // SECCOMP_FILTER_FLAG_TSYNC
	if _, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, everyThread, uintptr(unsafe.Pointer(&prog))); e != 0 {
		return fmt.Errorf("seccomp: %w", e)
	}
	if err := syscall.Setgroups(nil); err != nil {
		return err
	}
	if err := syscall.Setgid(uid); err != nil {
		return err
	}
	if err := syscall.Setuid(uid); err != nil {
		return err
	}
	return syscall.Exec(program, args[1:], os.Environ())
}

// hideFUSE gives us a /dev without fuse: another one in memory, with all else bound into it.
func hideFUSE() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	const at = "/mnt"
	if err := unix.Mount("dev", at, "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	entries, err := os.ReadDir("/dev")
	if err != nil {
		return err
	}
	for _, e := range entries {
		from, to := "/dev/"+e.Name(), at+"/"+e.Name()
		switch {
		case e.Name() == "fuse":
			continue
		case e.Type()&os.ModeSymlink != 0:
			target, lerr := os.Readlink(from)
			if err = lerr; err == nil {
				err = os.Symlink(target, to)
			}
		case e.IsDir():
			if err = os.Mkdir(to, 0o755); err == nil {
				err = unix.Mount(from, to, "", unix.MS_BIND|unix.MS_REC, "")
			}
		default:
			if err = os.WriteFile(to, nil, 0o600); err == nil {
				err = unix.Mount(from, to, "", unix.MS_BIND, "")
			}
		}
		if err != nil {
			return fmt.Errorf("%s: %w", from, err)
		}
	}
	return unix.Mount(at, "/dev", "", unix.MS_MOVE, "")
}
