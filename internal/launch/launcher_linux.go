package launch

import (
	"encoding/binary"
	"errors"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/intercept/mountns"
	"github.com/stead-dev/stead/internal/intercept/notify"
	"github.com/stead-dev/stead/internal/sys"
)

// config is what the session tells the guard's launcher.
type config struct {
	Path       string // the program
	Argv       []string
	Env        []string
	Namespaces Namespaces
	Filter     notify.Options // what the filter traps
	Mount      *mountns.Plan  // nil: no mount namespace
	Hostname   string         // where there is a UTS namespace
	Domain     string
}

// Messages of the guard to the session: kind and value as two int32, then text. Only write(2) is
// used: sendmsg is trapped as soon as the filter is in. Those marked with ? are answered by one byte.
const (
	sayMount    = 1 // ? value: our descriptor of /dev/fuse, mounted and waiting to be served
	sayListener = 2 // ? value: our descriptor of the filter's listener
	sayFailed   = 3 // value: errno; text: what failed
	sayExec     = 4 // value: errno of the exec
	sayStarted  = 5 // ? value: the program's pid; it is not reaped before the answer
	sayState    = 6 // value: wait status of the program; text: sayAlone or nothing
)

// sayAlone says that with the program's end nothing is left of its tree.
const sayAlone = "alone"

// enterMount and makeNamespaces begin the text of failures after which another door may be taken.
const (
	enterMount     = "enter mount namespace"
	makeNamespaces = "make namespaces"
)

// launch makes its thread what the program is to come from, starts the program, and tells started its
// pid, 0 when there is none; the session has heard why. The thread is the program's parent as far as
// PDEATHSIG goes, so it stays until the guard ends.
func launch(ctl *guardEnd, from int, started chan<- int) {
	runtime.LockOSThread()
	started <- start(ctl, from)
	select {}
}

func start(ctl *guardEnd, from int) (pid int) {
	if err := ctl.hear(); err != nil { // the configuration comes later than we
		return 0
	}
	failed := func(what string, err error) int {
		var errno unix.Errno
		errors.As(err, &errno)
		say(ctl.fd, sayFailed, int32(errno), what+": "+err.Error())
		return 0
	}
	var cfg config
	if err := getConfig(from, &cfg); err != nil {
		return failed("read configuration", err)
	}
	flags := 0
	if cfg.Namespaces.UTS {
		flags |= unix.CLONE_NEWUTS
	}
	if cfg.Namespaces.Mount {
		flags |= unix.CLONE_NEWNS
	}
	if flags != 0 {
		if err := unix.Unshare(flags); err != nil {
			return failed(makeNamespaces, err)
		}
	}
	if cfg.Namespaces.UTS {
		if err := unix.Sethostname([]byte(cfg.Hostname)); err != nil {
			return failed("set host name", err)
		}
		if err := unix.Setdomainname([]byte(cfg.Domain)); err != nil {
			return failed("set domain name", err)
		}
	}
	// Where the program looks for its own descriptors is not where a thread with another root finds
	// them: what is inherited is found first.
	files, _ := table()
	if cfg.Mount != nil {
		if err := mountns.Enter(cfg.Mount, func(fuse int) error { return ctl.ask(sayMount, fuse) }); err != nil {
			return failed(enterMount, err)
		}
	}
	if !Admin() {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return failed("set no_new_privs", err)
		}
	}
	unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	l, err := sys.InstallFilter(notify.Filter(cfg.Filter))
	if err != nil {
		return failed("install seccomp filter", err)
	}
	// From here on no call on this thread that the filter traps, but for the exec.
	unix.CloseOnExec(int(l))
	if err := ctl.ask(sayListener, int(l)); err != nil {
		return 0
	}
	unix.Close(int(l))
	attr := &syscall.ProcAttr{Env: cfg.Env, Files: files, Sys: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}}
	// ForkExec gives the program the limit of open files that we were started with, not the one that
	// Go's runtime has set.
	pid, err = syscall.ForkExec(cfg.Path, cfg.Argv, attr)
	if err == syscall.ENOEXEC {
		// A script without an interpreter line: execvp(3) gives it to the shell.
		argv := append([]string{"/bin/sh", cfg.Path}, cfg.Argv[min(1, len(cfg.Argv)):]...)
		if again, serr := syscall.ForkExec(argv[0], argv, attr); serr == nil {
			pid, err = again, nil
		}
	}
	if err != nil {
		var errno unix.Errno
		errors.As(err, &errno)
		say(ctl.fd, sayExec, int32(errno), "")
		return 0
	}
	if err := ctl.ask(sayStarted, pid); err != nil {
		return pid // the session is gone: the guard ends all
	}
	return pid
}

// Admin says whether CAP_SYS_ADMIN is held, in the user namespace that we are in: then a filter may be
// installed without no_new_privs, so that setuid programs work below it as they do without us.
func Admin() bool {
	var hdr = unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if unix.Capget(&hdr, &data[0]) != nil {
		return false
	}
	return data[0].Effective&(1<<unix.CAP_SYS_ADMIN) != 0
}

// say writes one message with one write.
func say(ctl int, kind, value int32, text string) error {
	b := make([]byte, 8, 8+len(text))
	binary.NativeEndian.PutUint32(b, uint32(kind))
	binary.NativeEndian.PutUint32(b[4:], uint32(value))
	b = append(b, text...)
	if n, e := sys.WriteNow(ctl, b); e != 0 || n != len(b) {
		return unix.EPIPE
	}
	return nil
}

// guardEnd is the guard's end of its socket to the session. Its launcher listens until the program is
// started, then the guard; never both.
type guardEnd struct {
	fd     int
	places []string // directories that the session may leave behind
}

// ask tells the session something and waits for its byte.
func (g *guardEnd) ask(kind int32, value int) error {
	if err := say(g.fd, kind, int32(value), ""); err != nil {
		return err
	}
	return g.hear()
}

// hear waits for a byte of the session's. What is longer is a directory of the session's, which it
// tells of at any time. An error is the session's end: it never closes its socket before.
func (g *guardEnd) hear() error {
	b := make([]byte, unix.PathMax)
	for {
		n, err := unix.Read(g.fd, b)
		switch {
		case err == unix.EINTR:
		case err != nil || n == 0:
			return unix.EPIPE
		case n > 1:
			g.places = append(g.places, string(b[:n]))
		default:
			return nil
		}
	}
}

// removePlaces is for the guard's end.
func (g *guardEnd) removePlaces() {
	for _, dir := range g.places {
		removePlace(dir)
	}
}
