package launch

import (
	"context"
	"encoding/binary"
	"encoding/gob"
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
	Path     string   // the program's file; see LookPath
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
	PID    int
	ns     Namespaces
	guard  int
	others []int    // our children that are not the program's
	ctl    *os.File // to the guard
	config *os.File // the guard's, until the program runs
	pidfd  int
	noUser error // why there is no user namespace for the guard, and so no guard

	mu     sync.Mutex
	exited bool // under mu: pidfd is not signalled any more

	done   chan struct{} // closed when the main process has ended; the rest is final then
	status unix.WaitStatus
	alone  bool // nothing of the tree was left
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

// Begin starts the guard, which takes some milliseconds, without waiting for it: the caller finds out
// meanwhile what it is to do. Kill ends it.
func Begin(ns Namespaces) (*Process, error) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("become subreaper: %w", err)
	}
	p := &Process{ns: ns, pidfd: -1, done: make(chan struct{})}
	ours, theirs, err := socketpair("guard")
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	p.ctl = ours
	p.config, err = newConfig()
	if err == nil {
		err = p.spawnGuard(theirs)
	}
	if err != nil {
		p.closeConfig()
		ours.Close()
		return nil, err
	}
	return p, nil
}

func (p *Process) spawnGuard(theirs *os.File) error {
	var attr *syscall.SysProcAttr
	if p.ns.User {
		// Threads cannot leave their user namespace: the guard has it as a whole.
		uid, gid := os.Getuid(), os.Getgid()
		attr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: uid, HostID: uid, Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: gid, HostID: gid, Size: 1}},
			AmbientCaps: []uintptr{unix.CAP_SYS_ADMIN},
		}
	}
	p.others, _ = childrenOf(os.Getpid())
	pid, err := spawn(wordGuard, attr, int(theirs.Fd()), int(p.config.Fd()))
	if err != nil && p.ns.User {
		p.noUser = &mountns.Unavailable{Step: makeNamespaces, Err: err}
		return nil
	}
	if err != nil {
		return fmt.Errorf("start guard: %w", err)
	}
	p.guard = pid
	return nil
}

// closeConfig lets go of what is for the start only.
func (p *Process) closeConfig() {
	if p.config != nil {
		p.config.Close()
	}
	p.config = nil
}

// Run makes of a begun process the program, and returns when it executes its first instruction. Its
// namespaces are those that it was begun with. After an error only Kill is left.
func (p *Process) Run(ctx context.Context, spec Spec) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	defer p.closeConfig()
	if p.noUser != nil {
		return p.noUser
	}
	err := gob.NewEncoder(p.config).Encode(config{
		Path: spec.Path, Argv: spec.Argv, Env: spec.Env, Namespaces: p.ns, Filter: spec.Filter,
		Mount: spec.Mount, Hostname: spec.Hostname, Domain: spec.Domain,
	})
	if err != nil {
		return err
	}
	// A start that takes too long or is called off ends the conversation, and so all below.
	stop := context.AfterFunc(ctx, func() { p.ctl.SetDeadline(time.Now()) })
	err = p.begin(spec)
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

// begin talks to the guard until the program runs.
func (p *Process) begin(spec Spec) error {
	guard, err := unix.PidfdOpen(p.guard, 0)
	if err != nil {
		return fmt.Errorf("pidfd of the guard: %w", err)
	}
	defer unix.Close(guard)
	// hand takes a descriptor of the guard's and gives it to f.
	hand := func(fd int, f func(int) error) error {
		got, err := unix.PidfdGetfd(guard, fd, 0)
		if err != nil {
			return fmt.Errorf("pidfd_getfd: %w", err)
		}
		return f(got)
	}
	answer := func() error {
		if _, err := p.ctl.Write([]byte{1}); err != nil {
			return fmt.Errorf("guard: %w", err)
		}
		return nil
	}
	if err := answer(); err != nil { // the configuration is complete
		return err
	}
	for {
		kind, value, text, err := p.hear()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("the program did not start within %v", startTimeout)
		}
		if err != nil {
			return fmt.Errorf("guard ended before the program was started: %w", err)
		}
		switch kind {
		case sayMount:
			if err := hand(value, spec.ServeFUSE); err != nil {
				return fmt.Errorf("serve the pod's files: %w", err)
			}
		case sayListener:
			if err := hand(value, func(fd int) error { return spec.Serve(sys.Listener(fd)) }); err != nil {
				return listenerFault(err)
			}
		case sayFailed:
			return launcherFault(unix.Errno(value), text)
		case sayExec:
			return ExecFault(spec.Argv[0], unix.Errno(value))
		case sayStarted:
			p.PID = value
			if p.pidfd, err = unix.PidfdOpen(p.PID, 0); err != nil {
				return fmt.Errorf("pidfd of the program: %w", err)
			}
			return answer()
		}
		if err := answer(); err != nil {
			return err
		}
	}
}

// hear reads one message of the guard's.
func (p *Process) hear() (kind, value int, text string, err error) {
	b := make([]byte, 64<<10)
	n, err := p.ctl.Read(b)
	if err == nil && n < 8 {
		err = errors.New("short message")
	}
	if err != nil {
		return 0, 0, "", err
	}
	return int(binary.NativeEndian.Uint32(b)), int(int32(binary.NativeEndian.Uint32(b[4:]))), string(b[8:n]), nil
}

// watch follows the states that the guard reports.
func (p *Process) watch() {
	defer close(p.done)
	for {
		kind, value, text, err := p.hear()
		if err != nil { // the guard was killed: the program died with it
			p.status = unix.WaitStatus(unix.SIGKILL)
			break
		}
		if kind != sayState {
			continue
		}
		ws := unix.WaitStatus(value)
		if ws.Exited() || ws.Signaled() {
			p.status, p.alone = ws, text == sayAlone
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
func (p *Process) Leftovers() int {
	select {
	case <-p.done:
		if p.alone {
			return 0
		}
	default:
	}
	return len(p.tree())
}

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
	p.closeConfig()
	p.ctl.Close() // the guard kills what is below it and ends
	ended := make(chan struct{})
	go func() { // which ends with the guard, here or below
		defer close(ended)
		for p.guard != 0 {
			if _, err := unix.Wait4(p.guard, nil, 0, nil); err != unix.EINTR {
				break
			}
		}
	}()
	select {
	case <-ended:
	case <-time.After(2 * time.Second):
	}
	killTree(5*time.Second, p.others) // a killed guard's children have fallen to us
	p.mu.Lock()
	if p.pidfd >= 0 {
		unix.Close(p.pidfd)
		p.pidfd = -1
	}
	p.mu.Unlock()
}

// LookPath finds the program as execvp(3) would with the PATH of env, relative to dir. A name with a slash
// is executed as it is: a script sees it.
func LookPath(name, path, dir string) (string, error) {
	if name == "" {
		return "", ExecFault(name, unix.ENOENT)
	}
	abs := func(p string) string {
		if filepath.IsAbs(p) {
			return p
		}
		return filepath.Join(dir, p)
	}
	if strings.Contains(name, "/") {
		if err := executable(abs(name)); err != 0 {
			return "", ExecFault(name, err)
		}
		return name, nil
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
		return unix.EISDIR
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
		if name == "" {
			return fault.WithExit(fmt.Errorf("run a program without a name: %w", errno), "stead exec --target TARGET -- PROGRAM (is a variable of the shell's empty?)", fault.ExitNotFound)
		}
		if strings.ContainsAny(name, " \t\n") {
			return fault.WithExit(err, "stead exec --target TARGET -- "+name+" (each word by itself; or, for a shell's line, -- sh -c '"+name+"')", fault.ExitNotFound)
		}
		if !strings.Contains(name, "/") {
			err = fmt.Errorf("run %s: not found in PATH: %w", name, errno)
			return fault.WithExit(err, "which -a "+name+" (PATH is the laptop's, not the pod's; or give the program's path)", fault.ExitNotFound)
		}
		return fault.WithExit(err, "ls -l "+name+" (for a script, the interpreter in its first line may be missing)", fault.ExitNotFound)
	case unix.EACCES:
		return fault.WithExit(err, "chmod +x "+name, fault.ExitNotExecutable)
	case unix.EISDIR:
		return fault.WithExit(err, "ls "+name, fault.ExitNotExecutable)
	default:
		return fault.WithExit(err, "file "+name, fault.ExitNotExecutable)
	}
}

// launcherFault explains what stopped the guard's launcher: text is what failed and why, by errno if it is
// not 0.
func launcherFault(errno unix.Errno, text string) error {
	err := errors.New(text)
	if what, ok := strings.CutSuffix(text, ": "+errno.Error()); ok {
		err, text = fmt.Errorf("%s: %w", what, errno), what
	}
	if rest, ok := strings.CutPrefix(text, enterMount+": "); ok {
		return &mountns.Unavailable{Step: rest, Err: errno}
	}
	if strings.HasPrefix(text, makeNamespaces) {
		return &mountns.Unavailable{Step: makeNamespaces, Err: errno}
	}
	if strings.HasPrefix(text, "install seccomp filter") {
		if f := FilterFault(errno); f != nil {
			return f
		}
	}
	return err
}

// FilterFault explains why the program's filter cannot be installed; nil where there is nothing to
// explain.
func FilterFault(err error) error {
	switch {
	case errors.Is(err, unix.EBUSY):
		return fault.With(fmt.Errorf("another supervisor listens to this process tree already (%w)", err),
			"grep Seccomp /proc/self/status (2: somebody filters already; run stead outside of another stead exec, of such a container, of WSL2's mirrored networking: networkingMode=nat in .wslconfig)")
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS):
		return fault.With(fmt.Errorf("the kernel has no seccomp user notification: %w", err),
			"uname -r: Linux 5.14 or newer is needed")
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fault.With(fmt.Errorf("seccomp filters are forbidden here: %w", err),
			"docker run --security-opt seccomp=unconfined ... (a container's own filter forbids it)")
	}
	return nil
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
