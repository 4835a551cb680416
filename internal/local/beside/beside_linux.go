// Package beside starts agents as processes of this machine.
package beside

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/agent"
	"github.com/stead-dev/stead/internal/fault"
	"github.com/stead-dev/stead/internal/sys"
)

// Agent is a running agent process of ours, started by whoever may enter the target.
type Agent struct {
	PID     int
	control *os.File
	exited  chan struct{}
	err     error // of the process; read after exited

	ready sync.Once
	unfit error // why it does not stand beside its target; read after ready

	mu     sync.Mutex
	stderr tail
}

// Start starts this executable as the agent beside process pid. The agent ends with the starter:
// its control socket ends then.
func Start(pid int, args ...string) (*Agent, error) {
	ours, theirs, err := Socketpair(unix.SOCK_SEQPACKET)
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	a := &Agent{control: ours, exited: make(chan struct{})}
	argv := append([]string{"/proc/self/exe", "agent", "serve", "--pid", strconv.Itoa(pid), "--control-fd", "3"}, args...)
	if err := a.start(pid, argv, theirs); err != nil {
		ours.Close()
		return nil, fmt.Errorf("start agent: %w", err)
	}
	return a, nil
}

// start runs the agent with the same rights as ours, or where those do not reach the target, in the
// user namespace of a target that is ours.
func (a *Agent) start(pid int, argv []string, control *os.File) error {
	said, stderr, err := os.Pipe()
	if err != nil {
		return err
	}
	defer stderr.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		said.Close()
		return err
	}
	defer null.Close()
	files := []*os.File{null, null, stderr, control}
	var p *os.Process
	if sys.OtherUser(pid) && errors.Is(sys.CanEnterNetwork(pid), unix.EPERM) {
		p, err = sys.StartAsOwner(pid, argv, os.Environ(), files)
		if errors.Is(err, unix.EPERM) {
			err = fault.With(err, "sudo stead exec --target process/"+strconv.Itoa(pid)+" ... (the target belongs to somebody else: its user and root may enter it)")
		}
	} else {
		p, err = os.StartProcess(argv[0], argv, &os.ProcAttr{Files: files,
			Sys: &syscall.SysProcAttr{Setpgid: true}}) // Ctrl-C is not for it
	}
	if err != nil {
		said.Close()
		return err
	}
	a.PID = p.Pid
	go func() { // ends with the process
		_, _ = io.Copy(&a.stderr, said)
		said.Close()
		state, err := p.Wait()
		if err == nil && !state.Success() {
			err = &exec.ExitError{ProcessState: state}
		}
		a.err = err
		close(a.exited)
	}()
	return nil
}

// Exited is closed when the agent has ended.
func (a *Agent) Exited() <-chan struct{} { return a.exited }

// Dial passes a fresh transport to the agent; it is a tunnel.Dialer.
func (a *Agent) Dial(ctx context.Context) (net.Conn, error) {
	f, err := a.Transport(ctx)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return net.FileConn(f)
}

// Transport passes one end of a fresh socket pair to the agent and returns the other.
func (a *Agent) Transport(ctx context.Context) (*os.File, error) {
	if err := a.stands(ctx); err != nil {
		return nil, err
	}
	ours, theirs, err := Socketpair(unix.SOCK_STREAM)
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	a.mu.Lock()
	err = agent.SendTransport(a.control, theirs)
	a.mu.Unlock()
	if err != nil {
		ours.Close()
		return nil, a.why(err)
	}
	return ours, nil
}

// startTimeout bounds the wait for the agent to stand beside its target.
const startTimeout = 30 * time.Second

// stands waits until the agent stands beside its target. An agent that somebody has given up on is not
// waited for again.
func (a *Agent) stands(ctx context.Context) error {
	a.ready.Do(func() {
		ctx, cancel := context.WithTimeout(ctx, startTimeout)
		defer cancel()
		defer context.AfterFunc(ctx, func() { _ = a.control.SetReadDeadline(time.Unix(1, 0)) })()
		if n, err := a.control.Read(make([]byte, 1)); n == 0 {
			if a.unfit = ctx.Err(); a.unfit == nil || errors.Is(a.unfit, context.DeadlineExceeded) {
				a.unfit = a.why(err)
			}
		}
	})
	return a.unfit
}

// why explains an error of the conversation by what the agent said before it ended.
func (a *Agent) why(err error) error {
	select {
	case <-a.exited:
		if said := a.stderr.first(); said != nil {
			return said
		}
		return fmt.Errorf("agent ended: %v: %w", a.err, err)
	case <-time.After(time.Second):
		return fmt.Errorf("pass a connection to the agent: %w", err)
	}
}

// Err says why the agent ended, nil while it runs or when it ended as it should.
func (a *Agent) Err() error {
	select {
	case <-a.exited:
		if a.err == nil {
			return nil
		}
		if said := a.stderr.first(); said != nil {
			return said
		}
		return a.err
	default:
		return nil
	}
}

// Close ends the agent and waits for it.
func (a *Agent) Close() {
	a.control.Close()
	select {
	case <-a.exited:
	case <-time.After(2 * time.Second):
		unix.Kill(a.PID, unix.SIGKILL)
		select { // a thread that waits for a volume may have to wait for it even so; it ends with that
		case <-a.exited:
		case <-time.After(2 * time.Second):
		}
	}
}

// Socketpair returns two connected unix sockets, ours non-blocking, theirs to be inherited.
func Socketpair(kind int) (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	_ = unix.SetNonblock(fds[0], true)
	return os.NewFile(uintptr(fds[0]), "socket"), os.NewFile(uintptr(fds[1]), "peer socket"), nil
}
