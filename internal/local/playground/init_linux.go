package playground

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// podMessage goes between the daemon and a pod's init: Go lets it begin, Exec asks for a command
// (descriptors: the caller's connection and its standard streams); the init says Error, or Restarts
// each time that the app has begun.
type podMessage struct {
	Go       bool     `json:"go,omitempty"`
	Exec     *request `json:"exec,omitempty"`
	Error    string   `json:"error,omitempty"`
	Restarts int      `json:"restarts,omitempty"`
}

// initMain is the first process of a pod: it makes the pod's root its own, keeps the app running
// as a kubelet would, runs commands, and reaps.
func initMain() int {
	unix.CloseOnExec(3)
	f := os.NewFile(3, "daemon")
	conn, err := net.FileConn(f)
	f.Close()
	if err != nil || len(os.Args) < 3 {
		return 1
	}
	ctl := conn.(*net.UnixConn)
	spec := specOf(os.Args[2])
	var m podMessage
	if _, err := receive(ctl, &m); err != nil || spec == nil {
		return 1
	}
	if err := enterPod(spec); err != nil {
		_ = send(ctl, podMessage{Error: err.Error()})
		return 1
	}
	p := &podInit{spec: spec, ctl: ctl, waiting: make(map[int]chan syscall.WaitStatus)}
	go p.reap()
	if err := p.keepApp(); err != nil {
		_ = send(ctl, podMessage{Error: err.Error()})
		return 1
	}
	for {
		var m podMessage
		fds, err := receive(ctl, &m)
		if err != nil {
			return 0 // the daemon is gone, and so are we
		}
		if m.Exec != nil && len(fds) >= 1 {
			go p.exec(m.Exec, fds)
			continue
		}
		closeAll(fds)
	}
}

// enterPod makes host name, network and root of the pod.
func enterPod(spec *podSpec) error {
	if err := unix.Sethostname([]byte(spec.hostname)); err != nil {
		return fmt.Errorf("host name: %w", err)
	}
	if err := unplugged(spec); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("mounts: %w", err)
	}
	submounts, err := ownMounts()
	if err != nil {
		return err
	}
	// Everything is laid out in memory, on a mount that only this namespace has.
	const stage = "/tmp"
	if err := unix.Mount("pod", stage, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("tmpfs: %w", err)
	}
	upper, work, root := stage+"/upper", stage+"/work", stage+"/root"
	for _, d := range []string{upper, work, root} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	if err := spec.write(upper); err != nil {
		return fmt.Errorf("files: %w", err)
	}
	for _, d := range []string{"tmp", "run", "proc", "sys", "dev"} {
		if err := os.MkdirAll(filepath.Join(upper, d), 0o755); err != nil {
			return err
		}
	}
	if err := layRoot(submounts, upper, work, root); err != nil {
		return fmt.Errorf("overlay over the machine's root: %w", err)
	}
	for _, m := range submounts { // a home or a work directory on a file system of its own
		if st, err := os.Stat(m); err == nil && st.IsDir() {
			_ = unix.Mount(m, root+m, "", unix.MS_BIND, "")
		}
	}
	if err := unix.Mount("proc", root+"/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("proc: %w", err)
	}
	for _, d := range []string{"/sys", "/dev"} {
		if err := unix.Mount(d, root+d, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("bind %s: %w", d, err)
		}
	}
	for _, d := range []string{"/tmp", "/run"} {
		if err := unix.Mount("pod", root+d, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
			return fmt.Errorf("tmpfs on %s: %w", d, err)
		}
	}
	_ = unix.Chmod(root+"/tmp", 0o1777)
	// What the spec has below /run is on the tmpfs, /var/run leads there on most machines.
	if err := copyTree(upper+"/var/run", root+"/var/run"); err != nil {
		return err
	}
	if err := unix.Chdir(root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("let go of the machine's root: %w", err)
	}
	return unix.Chdir("/")
}

// layRoot makes root the machine's root with upper on top. In a user namespace mounts that came from
// outside are locked to their place, and a directory with one below it cannot be a lower layer: such a
// directory then is put together of its entries, each an overlay where it can be one, put together where
// a mount is below it, and bound as it is where it is a mount itself.
func layRoot(mounts []string, upper, work, root string) error {
	if overlay("/", upper, work, root) == nil {
		return nil
	}
	if err := unix.Mount(root, root, "", unix.MS_BIND, ""); err != nil { // a root is a mount
		return err
	}
	return layDir(mounts, "/", upper, work, root)
}

func overlay(lower, upper, work, at string) error {
	options := "lowerdir=" + lower + ",upperdir=" + upper + ",workdir=" + work
	err := unix.Mount("pod", at, "overlay", 0, options)
	if err != nil {
		err = unix.Mount("pod", at, "overlay", 0, options+",userxattr")
	}
	return err
}

// layDir puts a directory together at at, which is empty, of the machine's entries in from and of those
// in upper, which win.
func layDir(mounts []string, from, upper, work, at string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	there := map[string]bool{}
	for _, e := range entries {
		there[e.Name()] = true
	}
	own, err := os.ReadDir(upper)
	if err != nil {
		return err
	}
	for _, e := range own {
		if !there[e.Name()] {
			entries = append(entries, e)
		}
	}
	for _, e := range entries {
		name := e.Name()
		if err := layEntry(mounts, e, filepath.Join(from, name), filepath.Join(upper, name), filepath.Join(work, name), filepath.Join(at, name)); err != nil {
			return err
		}
	}
	return nil
}

func layEntry(mounts []string, e os.DirEntry, from, upper, work, at string) error {
	bind := func(what string) error {
		if err := unix.Mount(what, at, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		return nil
	}
	st, uerr := os.Lstat(upper)
	switch {
	case uerr == nil && (!st.IsDir() || !e.IsDir()): // the pod's own instead of the machine's
		if st.IsDir() {
			if err := os.Mkdir(at, 0o755); err != nil {
				return err
			}
			return bind(upper)
		}
		fallthrough
	case !e.IsDir() && e.Type() != os.ModeSymlink:
		what := from
		if uerr == nil {
			what = upper
		}
		if err := os.WriteFile(at, nil, 0o600); err != nil {
			return err
		}
		return bind(what)
	case e.Type() == os.ModeSymlink:
		to, err := os.Readlink(from)
		if err != nil {
			return err
		}
		return os.Symlink(to, at)
	}
	for _, d := range []string{at, upper, work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	switch from {
	case "/proc", "/sys", "/dev", "/tmp", "/run": // of the pod's own
		return nil
	}
	if _, err := os.Lstat(from); errors.Is(err, os.ErrNotExist) { // the machine has none
		return bind(upper)
	}
	if overlay(from, upper, work, at) == nil {
		return nil
	}
	for _, m := range mounts {
		if strings.HasPrefix(m, from+"/") && !slices.Contains(mounts, from) {
			if err := layDir(mounts, from, upper, work, at); !errors.Is(err, os.ErrPermission) {
				return err
			}
			break // what we may not list, we may not lay out
		}
	}
	return bind(from)
}

// copyTree copies a tree of small files.
func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(p string, d os.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, os.ErrNotExist) {
				return nil
			}
			return err
		}
		at := to + p[len(from):]
		if d.IsDir() {
			return os.MkdirAll(at, 0o755)
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		return os.WriteFile(at, b, 0o644)
	})
}

// ownMounts lists the directories of the machine that are mounts with files of its own, which an
// overlay of the root does not show.
func ownMounts() ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []string
	for s := bufio.NewScanner(f); s.Scan(); {
		fields := strings.Fields(s.Text())
		if len(fields) < 5 || fields[4] == "/" {
			continue
		}
		at, skip := fields[4], false
		for _, p := range []string{"/proc", "/sys", "/dev", "/tmp", "/run", "/boot"} {
			skip = skip || at == p || strings.HasPrefix(at, p+"/")
		}
		if !skip {
			out = append(out, strings.ReplaceAll(at, `\040`, " "))
		}
	}
	return out, nil
}

// podInit runs in the pod. A pod has one reaper, for every child and orphan.
type podInit struct {
	spec *podSpec
	ctl  *net.UnixConn

	mu      sync.Mutex
	waiting map[int]chan syscall.WaitStatus
}

func (p *podInit) reap() {
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, 0, nil)
		if err != nil {
			time.Sleep(5 * time.Millisecond)
			continue
		}
		p.mu.Lock()
		if ch := p.waiting[pid]; ch != nil {
			ch <- ws
			delete(p.waiting, pid)
		} // else an orphan: nobody asks
		p.mu.Unlock()
	}
}

// start runs argv and returns a channel with its end.
func (p *podInit) start(path string, argv []string, attr *syscall.ProcAttr) (int, <-chan syscall.WaitStatus, error) {
	ch := make(chan syscall.WaitStatus, 1)
	p.mu.Lock()
	defer p.mu.Unlock() // the reaper must not see it before it is entered
	pid, err := syscall.ForkExec(path, argv, attr)
	if err != nil {
		return 0, nil, err
	}
	p.waiting[pid] = ch
	return pid, ch, nil
}

func (p *podInit) env() []string { return append(append([]string(nil), podEnv...), p.spec.env...) }

// keepApp starts the app and starts it again whenever it ends.
func (p *podInit) keepApp() error {
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	run := func() (<-chan syscall.WaitStatus, error) {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		defer r.Close()
		_, ch, err := p.start("/proc/self/exe", []string{"stead", wordApp, p.spec.app}, &syscall.ProcAttr{
			Dir: "/", Env: p.env(), Files: []uintptr{null.Fd(), null.Fd(), null.Fd(), w.Fd()}, Sys: &syscall.SysProcAttr{Setsid: true},
		})
		w.Close()
		if err != nil {
			return nil, err
		}
		b := make([]byte, 512)
		if n, _ := r.Read(b); n > 0 { // it says what went wrong, or closes when it serves
			return nil, errors.New(string(b[:n]))
		}
		return ch, nil
	}
	end, err := run()
	if err != nil {
		return fmt.Errorf("app: %w", err)
	}
	if err := send(p.ctl, podMessage{}); err != nil {
		return err
	}
	go func() {
		for n := 1; ; n++ {
			<-end
			for {
				if end, err = run(); err == nil {
					break
				}
				time.Sleep(50 * time.Millisecond)
			}
			_ = send(p.ctl, podMessage{Restarts: n})
		}
	}()
	return nil
}

// exec runs a command for the caller whose connection is fds[0]; the caller's end kills it. It owns
// fds.
func (p *podInit) exec(r *request, fds []int) {
	_ = unix.SetNonblock(fds[0], true)
	f := os.NewFile(uintptr(fds[0]), "caller")
	conn, err := net.FileConn(f)
	f.Close()
	if err != nil {
		closeAll(fds[1:])
		return
	}
	c := conn.(*net.UnixConn)
	defer c.Close()
	pid, end, code, err := p.run(r, fds[1:])
	closeAll(fds[1:])
	if err != nil {
		name := ""
		if len(r.Argv) > 0 {
			name = r.Argv[0]
		}
		hint := "stead playground exec " + p.spec.name + " -- sh -c 'echo $PATH' (the pod's PATH)"
		switch {
		case strings.Contains(name, "/"):
			hint = "stead playground exec " + p.spec.name + " -- ls -l " + name
		case name == "":
			hint = "stead playground exec " + p.spec.name + " -- COMMAND (is a variable of the shell's empty?)"
		}
		_ = send(c, answer{Error: fmt.Sprintf("run %s in pod %s: %v", name, p.spec.name, err), Hint: hint, Exit: &code})
		return
	}
	go func() {
		for {
			var r request
			if _, err := receive(c, &r); err != nil {
				_ = unix.Kill(-pid, unix.SIGKILL)
				return
			}
			if r.Op == "signal" {
				_ = unix.Kill(-pid, unix.Signal(r.Sig))
			}
		}
	}()
	ws := <-end
	code = ws.ExitStatus()
	if ws.Signaled() {
		code = 128 + int(ws.Signal())
	}
	_ = send(c, answer{Exit: &code})
}

// run starts the command of r with the standard streams; code is the exit code of env(1) where it
// cannot.
func (p *podInit) run(r *request, stdio []int) (pid int, end <-chan syscall.WaitStatus, code int, err error) {
	if len(r.Argv) == 0 || len(stdio) != 3 {
		return 0, nil, 125, unix.EINVAL
	}
	path := r.Argv[0]
	if path != "/proc/self/exe" {
		os.Setenv("PATH", strings.TrimPrefix(podEnv[0], "PATH="))
		if path, err = exec.LookPath(path); err != nil {
			code = 127
			if errors.Is(err, os.ErrPermission) {
				code = 126
			}
			return 0, nil, code, errors.Unwrap(err)
		}
	}
	own := &syscall.SysProcAttr{Setpgid: true}
	if r.TTY {
		own = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
	}
	pid, end, err = p.start(path, r.Argv, &syscall.ProcAttr{
		Dir: "/", Env: append(p.env(), r.Env...), Sys: own,
		Files: []uintptr{uintptr(stdio[0]), uintptr(stdio[1]), uintptr(stdio[2])},
	})
	return pid, end, 126, err
}
