package launch

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/fault"
	"github.com/stead-dev/stead/internal/intercept/mountns"
	"github.com/stead-dev/stead/internal/intercept/notify"
	"github.com/stead-dev/stead/internal/sys"
)

// Spec says what to start and how.
type Spec struct {
	Path     string   // the program's file, absolute; see LookPath
	Argv     []string // argv[0] as the user gave it
	Env      []string
	Filter   notify.Options
	Mount    *mountns.Plan
	NS       Namespaces
	Hostname string // where there is a UTS namespace
	Domain   string

	// ServeFUSE is called once when Mount is set, with the FUSE device that the launcher mounted.
	// It owns the descriptor and must return at once, serving in the background.
	ServeFUSE func(fd int) error
	// Serve is called once with the filter's listener, which it owns, before the program runs.
	Serve func(sys.Listener) error
}

// Process is a running program.
type Process struct {
	PID      int
	ns       Namespaces
	guard    int
	others   []int    // our children that are not the program's
	ctl      *os.File // to the guard
	launcher *os.File // until the program runs
	config   *os.File // the launcher's
	pidfd    int

	mu     sync.Mutex
	exited bool // under mu: pidfd is not signalled any more

	done   chan struct{} // closed when the main process has ended
	status unix.WaitStatus
}

// startTimeout bounds what happens before the program's first instruction. Entering the namespaces
// takes milliseconds; a machine so loaded that it takes longer than this is not usable.
const startTimeout = 30 * time.Second

// Namespaces are those that the program gets beside its own machine's.
type Namespaces struct {
	Mount bool
	UTS   bool
	User  bool // the others need a user namespace
}

// Start starts the program and returns when it executes its first instruction.
func Start(ctx context.Context, spec Spec) (*Process, error) {
	p, err := Begin(spec.NS)
	if err != nil {
		return nil, err
	}
	if err := p.Run(ctx, spec); err != nil {
		p.Kill()
		return nil, err
	}
	return p, nil
}

// Begin starts guard and launcher, which takes some milliseconds, without waiting for them: the
// caller finds out meanwhile what they are to do. Kill ends them.
func Begin(ns Namespaces) (*Process, error) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("become subreaper: %w", err)
	}
	p := &Process{ns: ns, pidfd: -1, done: make(chan struct{})}
	guardOurs, guardTheirs, err := socketpair("guard")
	if err != nil {
		return nil, err
	}
	defer guardTheirs.Close()
	p.ctl = guardOurs
	launcherOurs, launcherTheirs, err := socketpair("launcher")
	if err != nil {
		guardOurs.Close()
		return nil, err
	}
	defer launcherTheirs.Close()
	p.launcher = launcherOurs
	p.config, err = newConfig()
	if err == nil {
		err = p.spawnGuard(guardTheirs, launcherTheirs)
	}
	if err != nil {
		p.closeLaunch()
		guardOurs.Close()
		return nil, err
	}
	return p, nil
}

func (p *Process) spawnGuard(theirs, launcher *os.File) error {
	gc := guardConfig{UID: os.Getuid(), GID: os.Getgid()}
	if p.ns.Mount {
		gc.Cloneflags |= syscall.CLONE_NEWNS
	}
	if p.ns.UTS {
		gc.Cloneflags |= syscall.CLONE_NEWUTS
	}
	if p.ns.User {
		gc.Cloneflags |= syscall.CLONE_NEWUSER
		gc.Ambient = true
	}
	cfg, err := newConfig()
	if err != nil {
		return err
	}
	defer cfg.Close()
	if err := json.NewEncoder(cfg).Encode(gc); err != nil {
		return err
	}
	p.others, _ = childrenOf(os.Getpid())
	p.guard, err = spawn(wordGuard, nil, int(theirs.Fd()), int(launcher.Fd()), int(p.config.Fd()), int(cfg.Fd()))
	if err != nil {
		return fmt.Errorf("start guard: %w", err)
	}
	return nil
}

// closeLaunch lets go of what is for the launcher only, which ends it unless it is the program.
func (p *Process) closeLaunch() {
	if p.launcher != nil {
		p.launcher.Close()
	}
	if p.config != nil {
		p.config.Close()
	}
	p.launcher, p.config = nil, nil
}

// Run makes of a begun process the program, and returns when it executes its first instruction. Its
// namespaces are those that it was begun with. After an error only Kill is left.
func (p *Process) Run(ctx context.Context, spec Spec) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	defer p.closeLaunch()
	err := json.NewEncoder(p.config).Encode(launcherConfig{
		Path: spec.Path, Argv: spec.Argv, Env: spec.Env, Session: os.Getpid(), Filter: spec.Filter,
		Mount: spec.Mount, UTS: p.ns.UTS, Hostname: spec.Hostname, Domain: spec.Domain,
	})
	if err != nil {
		return err
	}
	launcher := p.launcher
	// A start that takes too long or is called off ends both conversations, and so all below.
	stop := context.AfterFunc(ctx, func() { launcher.SetDeadline(time.Now()); p.ctl.SetDeadline(time.Now()) })
	err = p.begin(spec, launcher)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return err
	}
	go p.watch()
	return nil
}

func socketpair(name string) (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair for %s: %w", name, err)
	}
	_ = unix.SetNonblock(fds[0], true) // so that its reads can be ended
	return os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name+"'s"), nil
}

// begin talks to guard and launcher until the program runs.
func (p *Process) begin(spec Spec, launcher *os.File) error {
	kind, value, err := p.readReport()
	if err != nil {
		return fmt.Errorf("guard ended before the program was started: %w", err)
	}
	if kind == reportFailed {
		err := fmt.Errorf("start launcher: %w", unix.Errno(value))
		if p.ns.Mount || p.ns.User {
			return &mountns.Unavailable{Step: "make namespaces", Err: unix.Errno(value)}
		}
		return err
	}
	p.PID = int(value)
	if p.pidfd, err = unix.PidfdOpen(p.PID, 0); err != nil {
		return fmt.Errorf("pidfd of launcher: %w", err)
	}
	if _, err := launcher.Write([]byte{1}); err != nil { // the configuration is complete
		return fmt.Errorf("launcher: %w", err)
	}
	b := make([]byte, 64<<10)
	for {
		n, err := launcher.Read(b)
		if err != nil || n == 0 {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return fmt.Errorf("the program did not start within %v", startTimeout)
			}
			return nil // closed by the exec: the program runs, or died since, which Wait tells
		}
		if n < 8 {
			return errors.New("launcher: short message")
		}
		value := int(int32(binary.NativeEndian.Uint32(b[4:])))
		switch int(binary.NativeEndian.Uint32(b)) {
		case sayMount:
			if err := p.hand(value, spec.ServeFUSE); err != nil {
				return fmt.Errorf("serve the pod's files: %w", err)
			}
		case sayListener:
			if err := p.hand(value, func(fd int) error { return spec.Serve(sys.Listener(fd)) }); err != nil {
				return listenerFault(err)
			}
		case sayFailed:
			return launcherFault(unix.Errno(value), string(b[8:n]))
		case sayExec:
			return ExecFault(spec.Argv[0], unix.Errno(value))
		}
		if _, err := launcher.Write([]byte{1}); err != nil {
			return fmt.Errorf("launcher: %w", err)
		}
	}
}

// hand takes descriptor fd of the launcher and gives it to f.
func (p *Process) hand(fd int, f func(int) error) error {
	got, err := unix.PidfdGetfd(p.pidfd, fd, 0)
	if err != nil {
		return fmt.Errorf("pidfd_getfd: %w", err)
	}
	return f(got)
}

func (p *Process) readReport() (kind, value int32, err error) {
	var b [reportSize]byte
	n, err := p.ctl.Read(b[:])
	if err == nil && n != len(b) {
		err = errors.New("short report")
	}
	return int32(binary.NativeEndian.Uint32(b[:])), int32(binary.NativeEndian.Uint32(b[4:])), err
}

// watch follows the states that the guard reports.
func (p *Process) watch() {
	defer close(p.done)
	for {
		kind, value, err := p.readReport()
		if err != nil { // the guard was killed: the program died with it
			p.status = unix.WaitStatus(unix.SIGKILL)
			break
		}
		if kind != reportState {
			continue
		}
		ws := unix.WaitStatus(value)
		if ws.Exited() || ws.Signaled() {
			p.status = ws
			break
		}
	}
	p.mu.Lock()
	p.exited = true
	p.mu.Unlock()
}

// Done is closed when the program's main process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Status is the wait status of the program; call it after Done.
func (p *Process) Status() unix.WaitStatus { return p.status }

// ExitCode is the status as a shell gives it: 128+signal for a death by signal.
func (p *Process) ExitCode() int {
	if p.status.Signaled() {
		return 128 + int(p.status.Signal())
	}
	return p.status.ExitStatus()
}

// Signal sends sig to the program's main process; to a dead one it does nothing.
func (p *Process) Signal(sig syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pidfd >= 0 && !p.exited {
		_ = unix.PidfdSendSignal(p.pidfd, sig, nil, 0)
	}
}

// Leftovers returns how many processes of the program's tree still live.
func (p *Process) Leftovers() int { return len(p.tree()) }

// tree is the program's processes: what is below us but for the guard and for our other children.
func (p *Process) tree() []int {
	return slices.DeleteFunc(descendants(os.Getpid(), p.others), func(pid int) bool { return pid == p.guard })
}

// Terminate asks what is left of the tree to end.
func (p *Process) Terminate() {
	for _, pid := range p.tree() {
		unix.Kill(pid, unix.SIGTERM)
		unix.Kill(pid, unix.SIGCONT)
	}
}

// Kill ends the whole tree, the guard last, and returns when nothing of it is left.
func (p *Process) Kill() {
	p.closeLaunch()
	p.ctl.Close() // the guard kills what is below it and ends
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		var ws unix.WaitStatus
		if got, err := unix.Wait4(p.guard, &ws, unix.WNOHANG, nil); got == p.guard || err == unix.ECHILD {
			break
		}
	}
	killTree(5*time.Second, p.others) // a killed guard's children have fallen to us
	p.mu.Lock()
	if p.pidfd >= 0 {
		unix.Close(p.pidfd)
		p.pidfd = -1
	}
	p.mu.Unlock()
}

// LookPath finds the program as execvp(3) would with the PATH of env, relative to dir.
func LookPath(name, path, dir string) (string, error) {
	abs := func(p string) string {
		if filepath.IsAbs(p) {
			return p
		}
		return filepath.Join(dir, p)
	}
	if strings.Contains(name, "/") {
		p := abs(name)
		if err := executable(p); err != 0 {
			return "", ExecFault(name, err)
		}
		return p, nil
	}
	worst := unix.ENOENT
	for _, d := range filepath.SplitList(path) {
		if d == "" {
			d = "."
		}
		p := abs(filepath.Join(d, name))
		err := executable(p)
		if err == 0 {
			return p, nil
		}
		if err == unix.EACCES {
			worst = err
		}
	}
	return "", ExecFault(name, worst)
}

// executable returns 0 when path is a regular file that we may execute.
func executable(path string) unix.Errno {
	st, err := os.Stat(path)
	if err != nil {
		var errno unix.Errno
		if errors.As(err, &errno) {
			return errno
		}
		return unix.ENOENT
	}
	if st.IsDir() {
		return unix.EACCES
	}
	if err := unix.Faccessat(unix.AT_FDCWD, path, unix.X_OK, unix.AT_EACCESS); err != nil {
		return unix.EACCES
	}
	return 0
}

// ExecFault is the failure to execute name, with the exit codes of env(1).
func ExecFault(name string, errno unix.Errno) error {
	err := fmt.Errorf("run %s: %w", name, errno)
	switch errno {
	case unix.ENOENT, unix.ENOTDIR:
		if !strings.Contains(name, "/") {
			err = fmt.Errorf("run %s: not found in PATH: %w", name, errno)
			return fault.WithExit(err, "give the program's path, or extend PATH on the laptop: the pod's PATH is not used", fault.ExitNotFound)
		}
		return fault.WithExit(err, "ls -l "+name+" (for a script, the interpreter in its first line may be missing)", fault.ExitNotFound)
	case unix.EACCES:
		return fault.WithExit(err, "chmod +x "+name, fault.ExitNotExecutable)
	default:
		return fault.WithExit(err, "file "+name, fault.ExitNotExecutable)
	}
}

// launcherFault explains what stopped the launcher.
func launcherFault(errno unix.Errno, text string) error {
	err := errors.New(text)
	if rest, ok := strings.CutPrefix(text, enterMount+": "); ok {
		return &mountns.Unavailable{Step: rest, Err: errno}
	}
	if strings.HasPrefix(text, "install seccomp filter") {
		switch errno {
		case unix.EBUSY:
			return fault.With(fmt.Errorf("another supervisor listens to this process tree already (%w)", errno),
				"run stead outside of it: it cannot be nested in another stead exec, and some containers and WSL2's mirrored networking (set networkingMode=nat in .wslconfig) install such a listener")
		case unix.EINVAL, unix.ENOSYS:
			return fault.With(fmt.Errorf("the kernel has no seccomp user notification: %w", errno),
				"uname -r: Linux 5.14 or newer is needed")
		case unix.EPERM, unix.EACCES:
			return fault.With(fmt.Errorf("seccomp filters are forbidden here: %w", errno),
				"in a container run it with --security-opt seccomp=unconfined")
		}
	}
	return err
}

// listenerFault explains why the filter's listener could not be taken or served.
func listenerFault(err error) error {
	switch {
	case errors.Is(err, unix.EPERM):
		return fault.With(fmt.Errorf("may not look into the program's process: %w", err),
			"sysctl kernel.yama.ptrace_scope (3 forbids it to everybody; 0 or 1 is needed)")
	case errors.Is(err, unix.ENOSYS):
		return fault.With(err, "uname -r: Linux 5.14 or newer is needed")
	}
	return fmt.Errorf("take the filter's listener: %w", err)
}
