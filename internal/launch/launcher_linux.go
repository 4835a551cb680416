package launch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/intercept/mountns"
	"github.com/stead-dev/stead/internal/intercept/notify"
	"github.com/stead-dev/stead/internal/sys"
)

// launcherConfig is what the session tells the launcher.
type launcherConfig struct {
	Path     string // the program, absolute
	Argv     []string
	Env      []string
	Session  int            // pid of the session, which reads our memory
	Filter   notify.Options // what the filter traps
	Mount    *mountns.Plan  // nil: no mount namespace
	UTS      bool           // the launcher has a UTS namespace: give it Hostname and Domain
	Hostname string
	Domain   string
}

// Messages of the launcher to the session: kind and value as two int32, then text. Only write(2)
// is used: sendmsg is trapped as soon as the filter is in.
const enterMount = "enter mount namespace"

const (
	sayMount    = 1 // value: our descriptor of /dev/fuse, mounted and waiting to be served
	sayListener = 2 // value: our descriptor of the filter's listener
	sayFailed   = 3 // value: errno; text: what failed
	sayExec     = 4 // value: errno of the exec
)

// launcherMain is the launcher: descriptors are its socket to the session and its configuration.
func launcherMain(args []string) int {
	runtime.LockOSThread()
	fds, err := descriptors(args, 2)
	if err != nil {
		fmt.Fprintln(os.Stderr, "stead:", err)
		return 125
	}
	ctl := fds[0]
	if err := hear(ctl); err != nil { // the configuration comes later than we
		return 125
	}
	var cfg launcherConfig
	if err := getConfig(fds[1], &cfg); err != nil {
		return failed(ctl, "read configuration", err)
	}
	if cfg.UTS {
		if err := unix.Sethostname([]byte(cfg.Hostname)); err != nil {
			return failed(ctl, "set host name", err)
		}
		if err := unix.Setdomainname([]byte(cfg.Domain)); err != nil {
			return failed(ctl, "set domain name", err)
		}
	}
	if cfg.Mount != nil {
		if err := mountns.Enter(cfg.Mount, func(fuse int) error { return ask(ctl, sayMount, fuse) }); err != nil {
			return failed(ctl, enterMount, err)
		}
	}
	// Yama's ptrace_scope=1 lets only ancestors read us: name the session. EINVAL: no Yama.
	unix.Prctl(unix.PR_SET_PTRACER, uintptr(cfg.Session), 0, 0, 0)
	if !Admin() {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return failed(ctl, "set no_new_privs", err)
		}
	}
	path, argv, envv, shell, err := execArgs(&cfg)
	if err != nil {
		return failed(ctl, "prepare exec", err)
	}
	unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	l, err := sys.InstallFilter(notify.Filter(cfg.Filter))
	if err != nil {
		return failed(ctl, "install seccomp filter", err)
	}
	// From here on nothing but raw calls that the filter lets pass.
	unix.CloseOnExec(int(l))
	if err := ask(ctl, sayListener, int(l)); err != nil {
		return 125
	}
	unix.RawSyscall(unix.SYS_CLOSE, uintptr(l), 0, 0)
	_, _, e := unix.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(path)), uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&envv[0])))
	if e == unix.ENOEXEC {
		// A script without an interpreter line: execvp(3) gives it to the shell.
		unix.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(shell[0])), uintptr(unsafe.Pointer(&shell[0])), uintptr(unsafe.Pointer(&envv[0])))
	}
	say(ctl, sayExec, int32(e), "")
	runtime.KeepAlive(path)
	return 126
}

// Admin says whether CAP_SYS_ADMIN is held, in the user namespace that we are in: then a filter may be installed without no_new_privs, so that setuid programs work
// below it as they do without us.
func Admin() bool {
	var hdr = unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if unix.Capget(&hdr, &data[0]) != nil {
		return false
	}
	return data[0].Effective&(1<<unix.CAP_SYS_ADMIN) != 0
}

func execArgs(cfg *launcherConfig) (path *byte, argv, envv, shell []*byte, err error) {
	if path, err = unix.BytePtrFromString(cfg.Path); err != nil {
		return
	}
	if argv, err = syscall.SlicePtrFromStrings(cfg.Argv); err != nil {
		return
	}
	if envv, err = syscall.SlicePtrFromStrings(cfg.Env); err != nil {
		return
	}
	shell, err = syscall.SlicePtrFromStrings(append([]string{"/bin/sh", cfg.Path}, cfg.Argv[min(1, len(cfg.Argv)):]...))
	return
}

// say writes one message with one write.
func say(ctl int, kind, value int32, text string) error {
	b := make([]byte, 8, 8+len(text))
	binary.NativeEndian.PutUint32(b, uint32(kind))
	binary.NativeEndian.PutUint32(b[4:], uint32(value))
	b = append(b, text...)
	n, _, e := unix.RawSyscall(unix.SYS_WRITE, uintptr(ctl), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	if e != 0 || int(n) != len(b) {
		return unix.EPIPE
	}
	return nil
}

// ask tells the session of a descriptor and waits for its byte.
func ask(ctl int, kind int32, fd int) error {
	if err := say(ctl, kind, int32(fd), ""); err != nil {
		return err
	}
	return hear(ctl)
}

// hear waits for a byte of the session's.
func hear(ctl int) error {
	var b [1]byte
	for {
		n, _, e := unix.Syscall(unix.SYS_READ, uintptr(ctl), uintptr(unsafe.Pointer(&b[0])), 1)
		if e == unix.EINTR {
			continue
		}
		if e != 0 || n != 1 {
			return unix.EPIPE // the session is gone: so are we
		}
		return nil
	}
}

func failed(ctl int, what string, err error) int {
	var errno unix.Errno
	errors.As(err, &errno)
	say(ctl, sayFailed, int32(errno), what+": "+err.Error())
	return 125
}
