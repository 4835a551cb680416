package playground

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/local/beside"
)

// Descriptors that Up passes to the daemon.
const (
	fdListener = 3
	fdReady    = 4
)

// daemon owns the pods. Its main goroutine keeps its OS thread: the pods' init processes die with
// the thread that made them.
type daemon struct {
	rootless bool
	end      chan struct{}
	once     sync.Once

	mu   sync.Mutex
	pods []*pod
}

// pod is a running pod. init and ctl are fixed; the rest is guarded by daemon.mu.
type pod struct {
	spec     *podSpec
	init     *exec.Cmd
	ctl      *net.UnixConn // to its init process
	app      int           // pid of the app
	restarts int
	agent    *beside.Agent
}

func daemonMain(args []string) int {
	runtime.LockOSThread()
	ready := os.NewFile(fdReady, "ready")
	unix.CloseOnExec(fdListener)
	unix.CloseOnExec(fdReady)
	d := &daemon{rootless: len(args) > 0 && args[0] == "true", end: make(chan struct{})}
	l, err := d.begin()
	if err != nil {
		_ = json.NewEncoder(ready).Encode(answer{Error: err.Error()})
		return 1
	}
	_ = json.NewEncoder(ready).Encode(answer{})
	ready.Close()
	go d.serve(l)
	sig := make(chan os.Signal, 1)
	signal.Notify(sig, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	select {
	case <-d.end:
	case <-sig:
	}
	d.close()
	return 0
}

// begin makes the network and the pods, all at once as they take their time to furnish.
func (d *daemon) begin() (net.Listener, error) {
	lf := os.NewFile(fdListener, "socket")
	defer lf.Close()
	l, err := net.FileListener(lf)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	if err := makeSwitch(); err != nil {
		return nil, fmt.Errorf("make the pods' network: %w", err)
	}
	if err := serveDNS(); err != nil {
		return nil, fmt.Errorf("nameserver: %w", err)
	}
	for i := range pods {
		p, err := d.startPod(&pods[i])
		if err != nil {
			return nil, fmt.Errorf("pod %s: %w", pods[i].name, err)
		}
		d.pods = append(d.pods, p)
	}
	for _, p := range d.pods {
		if err := d.await(p); err != nil {
			return nil, fmt.Errorf("pod %s: %w", p.spec.name, err)
		}
	}
	return l, nil
}

func (d *daemon) startPod(spec *podSpec) (*pod, error) {
	ours, theirs, err := beside.Socketpair(unix.SOCK_SEQPACKET)
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	defer ours.Close()
	c := exec.Command("/proc/self/exe", wordInit, spec.name)
	c.ExtraFiles = []*os.File{theirs}
	c.Stderr = os.Stderr
	c.Dir = "/"
	c.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL,
	}
	if err := c.Start(); err != nil {
		return nil, fmt.Errorf("start: %w", err)
	}
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, err
	}
	p := &pod{spec: spec, init: c, ctl: conn.(*net.UnixConn)}
	if err := plug(spec, c.Process.Pid); err != nil {
		return nil, fmt.Errorf("connect to the switch: %w", err)
	}
	return p, send(p.ctl, podMessage{Go: true}) // its end of the cable is there
}

// await returns when the pod's app runs, and then follows it.
func (d *daemon) await(p *pod) error {
	_ = p.ctl.SetReadDeadline(time.Now().Add(60 * time.Second))
	var m podMessage
	if _, err := receive(p.ctl, &m); err != nil {
		return fmt.Errorf("init: %w", err)
	}
	if m.Error != "" {
		return fmt.Errorf("%s", m.Error)
	}
	_ = p.ctl.SetReadDeadline(time.Time{})
	p.app = appPID(p.init.Process.Pid)
	go func() { // ends with the pod's init
		for {
			var m podMessage
			if _, err := receive(p.ctl, &m); err != nil {
				return
			}
			d.mu.Lock()
			p.app = appPID(p.init.Process.Pid)
			p.restarts = m.Restarts
			d.mu.Unlock()
		}
	}()
	return nil
}

// appPID finds the app below a pod's init by its command line: the init knows it under another
// number.
func appPID(init int) int {
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		entries, err := os.ReadDir("/proc")
		if err != nil {
			return 0
		}
		for _, e := range entries {
			pid, err := strconv.Atoi(e.Name())
			if err != nil {
				continue
			}
			stat, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "stat"))
			f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
			if len(f) < 2 || f[1] != strconv.Itoa(init) || f[0] == "Z" {
				continue
			}
			cmd, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
			if strings.Contains(string(cmd), "\x00"+wordApp+"\x00") {
				return pid
			}
		}
	}
	return 0
}

// close ends agents and pods and waits for them.
func (d *daemon) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range d.pods {
		if p.agent != nil {
			p.agent.Close()
		}
		_ = p.init.Process.Kill()
		_ = p.init.Wait()
	}
}

func (d *daemon) serve(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go d.handle(c.(*net.UnixConn))
	}
}

func (d *daemon) handle(c *net.UnixConn) {
	defer c.Close()
	// In a user namespace every foreign id shows as the overflow id; the caller's own is mapped.
	cred, err := peer(c)
	if err != nil || int(cred.Uid) != os.Getuid() && cred.Uid != 0 {
		return
	}
	var r request
	fds, err := receive(c, &r)
	if err != nil {
		return
	}
	defer closeAll(fds)
	switch r.Op {
	case "status":
		_ = send(c, answer{Status: d.status()})
	case "down":
		_ = send(c, answer{})
		d.once.Do(func() { close(d.end) })
	case "dial":
		f, err := d.dial(r.Pod)
		if err != nil {
			_ = send(c, failure(err))
			return
		}
		_ = send(c, answer{}, int(f.Fd()))
		f.Close()
	case "exec":
		d.mu.Lock()
		p := d.find(r.Pod)
		d.mu.Unlock()
		if p == nil {
			_ = send(c, failure(fmt.Errorf("no pod %q", r.Pod)))
			return
		}
		// The pod's init speaks with the caller itself.
		f, err := c.File()
		if err != nil {
			return
		}
		defer f.Close()
		if err := send(p.ctl, podMessage{Exec: &r}, append([]int{int(f.Fd())}, fds...)...); err != nil {
			_ = send(c, failure(err))
		}
	}
}

func failure(err error) answer { return answer{Error: err.Error()} }

func (d *daemon) find(name string) *pod {
	for _, p := range d.pods {
		if p.spec.name == name {
			return p
		}
	}
	return nil
}

func (d *daemon) status() *Status {
	d.mu.Lock()
	defer d.mu.Unlock()
	st := &Status{PID: os.Getpid(), Rootless: d.rootless}
	for _, p := range d.pods {
		s := Pod{Name: p.spec.name, PID: p.app, IPs: []string{p.spec.ipv4, p.spec.ipv6}, Restarts: p.restarts}
		if p.agent != nil {
			select {
			case <-p.agent.Exited():
			default:
				s.Agent = p.agent.PID
			}
		}
		st.Pods = append(st.Pods, s)
	}
	return st
}

// dial passes a connection to the pod's agent, and starts one where there is none. An agent whose
// target was restarted ends by itself.
func (d *daemon) dial(name string) (*os.File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.find(name)
	if p == nil {
		return nil, fmt.Errorf("no pod %q", name)
	}
	for fresh := false; ; fresh = true {
		if p.agent != nil {
			f, err := p.agent.Transport(context.Background())
			if err == nil || fresh {
				return f, err
			}
			p.agent.Close()
			p.agent = nil
		}
		if p.app == 0 {
			return nil, fmt.Errorf("the app of pod %s is being restarted", name)
		}
		a, err := beside.Start(p.app)
		if err != nil {
			return nil, err
		}
		p.agent = a
	}
}
