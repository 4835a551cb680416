// Package playground makes "pods" of namespaces on this machine, so that everything can be tried and
// tested with no cluster: a network of its own that the laptop cannot reach, a nameserver, and
// three pods (pods.go says what is in them).
//
// One daemon owns everything. Its network namespace is the switch that the pods hang on; each pod
// is an init process of ours in network, mount, UTS, IPC and pid namespaces of its own, which dies
// with the daemon (PDEATHSIG), and with it, as the first process of a pid namespace, all that runs
// in the pod; the rest lives in those namespaces. Nothing is written to the machine's file systems:
// a pod's root is an overlay whose upper layer is memory, and the daemon is reached by an abstract
// socket, made in the caller's network namespace. So however the daemon dies, nothing is left.
//
// With root the namespaces are made as they are; an ordinary user (or Rootless) gets a user
// namespace around them.
package playground

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/fault"
)

// Pod is one pod as status tells it.
type Pod struct {
	Name     string   `json:"name"`
	PID      int      `json:"pid"` // of its app, as the container's main process; 0 while it is restarted
	IPs      []string `json:"ips"`
	Restarts int      `json:"restarts"`
	Agent    int      `json:"agent,omitempty"` // pid of the agent beside it
}

// Status is what the daemon says of itself.
type Status struct {
	PID      int   `json:"pid"`
	Rootless bool  `json:"rootless"`
	Pods     []Pod `json:"pods"`
}

// Hidden words: the first argument that makes this executable a part of the playground.
const (
	wordDaemon = "__playground"
	wordInit   = "__pod"
	wordApp    = "__app"
	wordCall   = "__call"
)

// Main runs this process as a part of the playground if args ask for it. Only the one that makes calls in
// the pod client writes to stdout and stderr, as the command that it is a part of would: answers, and
// error: and hint: for those that there were none to. The others tell who started them.
func Main(args []string, stdout, stderr io.Writer) (code int, handled bool) {
	if len(args) == 0 {
		return 0, false
	}
	switch args[0] {
	case wordDaemon:
		return daemonMain(args[1:]), true
	case wordInit:
		return initMain(), true
	case wordApp:
		return appMain(args[1:]), true
	case wordCall:
		return callMain(args[1:], stdout, stderr), true
	}
	return 0, false
}

// socketName is the daemon's abstract socket: one playground for each user, or for each value of
// STEAD_PLAYGROUND, which keeps several apart.
func socketName() string {
	h := fnv.New64a()
	h.Write([]byte(os.Getenv("STEAD_PLAYGROUND")))
	return fmt.Sprintf("@stead-playground-%d-%x", os.Getuid(), h.Sum64())
}

var errDown = fault.With(errors.New("the playground is not up"), "stead playground up --detach")

// connect reaches the daemon, which must be ours: anybody may take an abstract name.
func connect(ctx context.Context) (*net.UnixConn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unixpacket", socketName())
	if err != nil {
		return nil, errDown
	}
	u := c.(*net.UnixConn)
	cred, err := peer(u)
	if err == nil && int(cred.Uid) != os.Getuid() {
		err = fault.With(fmt.Errorf("the playground's socket belongs to user %d", cred.Uid), "STEAD_PLAYGROUND=mine stead playground up --detach")
	}
	if err != nil {
		u.Close()
		return nil, err
	}
	return u, nil
}

func peer(u *net.UnixConn) (cred *unix.Ucred, err error) {
	raw, err := u.SyscallConn()
	if err != nil {
		return nil, err
	}
	cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	return cred, errors.Join(cerr, err)
}

// request is what a client says; answer what it hears. Descriptors go beside them.
type request struct {
	Op   string   `json:"op"` // status, dial, exec, down, signal
	Pod  string   `json:"pod,omitempty"`
	Argv []string `json:"argv,omitempty"`
	Env  []string `json:"env,omitempty"` // added to the pod's
	Sig  int      `json:"sig,omitempty"`
	TTY  bool     `json:"tty,omitempty"` // the standard streams are a terminal that is to be its own
}

type answer struct {
	Error  string  `json:"error,omitempty"`
	Hint   string  `json:"hint,omitempty"`
	Exit   *int    `json:"exit,omitempty"`
	Status *Status `json:"status,omitempty"`
}

func (a *answer) err() error {
	if a.Error == "" {
		return nil
	}
	return fault.With(errors.New(a.Error), a.Hint)
}

const maxPacket = 128 << 10

// send writes v as one packet, with descriptors.
func send(c *net.UnixConn, v any, fds ...int) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(b) > maxPacket {
		return fmt.Errorf("%d bytes of arguments, more than %d", len(b), maxPacket)
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	_, _, err = c.WriteMsgUnix(b, oob, nil)
	return err
}

// receive reads one packet into v and returns the descriptors that came with it.
func receive(c *net.UnixConn, v any) ([]int, error) {
	b, oob := make([]byte, maxPacket), make([]byte, unix.CmsgSpace(4*8))
	n, on, _, _, err := c.ReadMsgUnix(b, oob)
	if err != nil {
		return nil, err
	}
	var fds []int
	if msgs, err := unix.ParseSocketControlMessage(oob[:on]); err == nil {
		for i := range msgs {
			if got, err := unix.ParseUnixRights(&msgs[i]); err == nil {
				fds = append(fds, got...)
			}
		}
	}
	for _, fd := range fds {
		unix.CloseOnExec(fd)
	}
	if n == 0 {
		closeAll(fds)
		return nil, errors.New("connection closed")
	}
	if err := json.Unmarshal(b[:n], v); err != nil {
		closeAll(fds)
		return nil, err
	}
	return fds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// ask sends one request and waits for its answer.
func ask(ctx context.Context, r request) (a answer, fds []int, err error) {
	c, err := connect(ctx)
	if err != nil {
		return a, nil, err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	if err = send(c, r); err == nil {
		fds, err = receive(c, &a)
	}
	if err != nil {
		return a, nil, fmt.Errorf("playground's daemon: %w", err)
	}
	return a, fds, a.err()
}

// Get returns the daemon's status.
func Get(ctx context.Context) (*Status, error) {
	a, _, err := ask(ctx, request{Op: "status"})
	return a.Status, err
}

// Check says whether there is such a pod.
func Check(ctx context.Context, pod string) error {
	st, err := Get(ctx)
	if err != nil {
		return err
	}
	var names []string
	for _, p := range st.Pods {
		if p.Name == pod {
			return nil
		}
		names = append(names, p.Name)
	}
	return fault.With(fmt.Errorf("no pod %q in the playground", pod), "stead playground status (its pods are "+strings.Join(names, ", ")+")")
}

// Dial gives a fresh connection to the agent beside a pod, which the daemon starts when there is
// none.
func Dial(ctx context.Context, pod string) (net.Conn, error) {
	_, fds, err := ask(ctx, request{Op: "dial", Pod: pod})
	if err != nil {
		return nil, err
	}
	if len(fds) != 1 {
		closeAll(fds)
		return nil, fmt.Errorf("take the connection of the playground's daemon: %w", unix.EMFILE) // it has sent one, for which we had no number
	}
	_ = unix.SetNonblock(fds[0], true)
	f := os.NewFile(uintptr(fds[0]), "agent")
	defer f.Close()
	return net.FileConn(f)
}

// Down ends the playground and returns when nothing of it is left.
func Down(ctx context.Context) error {
	st, err := Get(ctx)
	if err != nil {
		return err
	}
	pidfd, err := unix.PidfdOpen(st.PID, 0)
	if err != nil {
		return fmt.Errorf("find the daemon: %w", err)
	}
	defer unix.Close(pidfd)
	if _, _, err := ask(ctx, request{Op: "down"}); err != nil {
		return err
	}
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
		if n, _ := unix.Poll(fds, 100); n > 0 {
			return nil
		}
	}
	return fault.With(fmt.Errorf("the daemon (pid %d) does not end", st.PID), "kill -9 "+strconv.Itoa(st.PID)+" (it takes everything along)")
}

// Up starts the playground and returns its daemon's process when the pods are ready.
func Up(ctx context.Context, rootless bool) (*os.Process, error) {
	if _, err := Get(ctx); err == nil {
		return nil, fault.With(errors.New("the playground is up already"), "stead playground down")
	}
	addr, err := net.ResolveUnixAddr("unixpacket", socketName())
	if err != nil {
		return nil, err
	}
	l, err := net.ListenUnix("unixpacket", addr)
	if err != nil {
		return nil, fmt.Errorf("open the playground's socket: %w", err)
	}
	defer l.Close()
	lf, err := l.File()
	if err != nil {
		return nil, err
	}
	defer lf.Close()
	ready, theirs, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer ready.Close()
	rootless = rootless || os.Getuid() != 0
	c := exec.Command("/proc/self/exe", wordDaemon, strconv.FormatBool(rootless))
	c.ExtraFiles = []*os.File{lf, theirs}
	c.Dir = "/"
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
	if rootless {
		c.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		c.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		c.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	err = c.Start()
	theirs.Close()
	if err != nil {
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EACCES) {
			return nil, fault.With(fmt.Errorf("make namespaces: %w", err), "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0 user.max_user_namespaces=15000, or run it with sudo")
		}
		return nil, fmt.Errorf("start the playground's daemon: %w", err)
	}
	// The daemon says nothing on success; on failure its last word is the cause.
	stop := context.AfterFunc(ctx, func() { c.Process.Kill() })
	defer stop()
	_ = ready.SetReadDeadline(time.Now().Add(60 * time.Second))
	var a answer
	if err := json.NewDecoder(ready).Decode(&a); err != nil {
		c.Process.Kill()
		c.Wait()
		return nil, fmt.Errorf("the playground's daemon ended: %w", err)
	}
	if err := a.err(); err != nil {
		c.Wait()
		return nil, err
	}
	return c.Process, nil
}

// Exec runs a command in a pod with our standard streams, and returns its exit code. Where those are a
// terminal and tty is set, the command gets one of its own, as by kubectl exec -it.
func Exec(ctx context.Context, pod string, argv, env []string, signals <-chan os.Signal, tty bool) (int, error) {
	if err := Check(ctx, pod); err != nil {
		return 0, err
	}
	c, err := connect(ctx)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	stdio := []int{0, 1, 2}
	tty = tty && isTerminal(0) && isTerminal(1)
	var t *terminal
	if tty {
		if t, err = openTerminal(os.Stdin, os.Stdout); err != nil {
			return 0, err
		}
		defer t.close()
		fd := int(t.slave.Fd())
		stdio = []int{fd, fd, fd}
	}
	if err := send(c, request{Op: "exec", Pod: pod, Argv: argv, Env: env, TTY: tty}, stdio...); err != nil {
		return 0, fmt.Errorf("playground's daemon: %w", err)
	}
	if t != nil {
		t.handed()
	}
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			select {
			case s := <-signals:
				_ = send(c, request{Op: "signal", Sig: int(s.(syscall.Signal))})
			case <-ctx.Done():
				c.Close()
				return
			case <-done:
				return
			}
		}
	}()
	var a answer
	if _, err := receive(c, &a); err != nil {
		return 0, fmt.Errorf("pod %s: %w", pod, err)
	}
	if err := a.err(); err != nil {
		exit := 0
		if a.Exit != nil {
			exit = *a.Exit
		}
		return 0, fault.WithExit(err, "", exit)
	}
	if a.Exit == nil {
		return 0, errors.New("pod sent no exit code")
	}
	return *a.Exit, nil
}
