package launch

import (
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/fault"
)

// guardMain is the guard: descriptors are its socket to the session and the program's configuration.
func guardMain(args []string) (code int, err error) {
	session := os.Getppid()
	fds, err := descriptors(args, 2)
	if err != nil {
		return fault.ExitOurs, err
	}
	ctl := fds[0]
	end := &guardEnd{fd: ctl}
	defer end.removePlaces()
	// A signal to the process group is meant for the program. Caught, not ignored: ignoring would
	// be inherited, and so is what we were started to ignore (nohup).
	swallow := make(chan os.Signal, 1)
	for _, sig := range []os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGUSR1,
		syscall.SIGUSR2, syscall.SIGPIPE, syscall.SIGALRM, syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGTTOU} {
		if !signal.Ignored(sig) {
			signal.Notify(swallow, sig)
		}
	}
	unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

	started := make(chan int)
	go launch(end, fds[1], started)
	pid := <-started
	if pid == 0 {
		return fault.ExitOurs, nil
	}
	// The only way that the session's end of the socket closes is its end.
	gone := make(chan struct{})
	go func() {
		for end.hear() == nil {
		}
		close(gone)
	}()
	go func() {
		for {
			var ws unix.WaitStatus
			got, err := unix.Wait4(-1, &ws, unix.WUNTRACED|unix.WCONTINUED, nil)
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				time.Sleep(10 * time.Millisecond) // no child at the moment; one may yet fall to us
				continue
			}
			if got == pid {
				jobControl(session, pid, ws)
				rest := ""
				if (ws.Exited() || ws.Signaled()) && unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil) == unix.ECHILD {
					rest = sayAlone
				}
				say(ctl, sayState, int32(ws), rest)
			}
		}
	}()
	<-gone
	killTree(5*time.Second, nil)
	return 0, nil
}

// jobControl makes the shell that started the session see what its job does: when the terminal stops
// the program, the session stops; when the program goes on, the session does. It is the guard's, for
// it sees these in their order, and is never stopped itself: the session might come to know of a stop
// when the program runs again.
func jobControl(session, pid int, ws unix.WaitStatus) {
	if os.Getppid() != session {
		return // it is gone
	}
	switch {
	case ws.Continued():
		unix.Kill(session, unix.SIGCONT)
	case ws.Stopped():
		switch ws.StopSignal() {
		case unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU:
			own, err := unix.Getpgid(session)
			if pgid, perr := unix.Getpgid(pid); err == nil && perr == nil && pgid == own {
				unix.Kill(session, unix.SIGSTOP)
			}
		}
	}
}

// killTree kills every process below this one but those in spare (and what is below them), again
// and again until none is left or the time is over (a process in uninterruptible sleep cannot be
// killed). As a subreaper we are the parent of whatever they orphan, so nothing escapes.
func killTree(limit time.Duration, spare []int) {
	for end := time.Now().Add(limit); ; time.Sleep(time.Millisecond) {
		for _, pid := range descendants(os.Getpid(), spare) {
			unix.Kill(pid, unix.SIGKILL)
		}
		// Twice: reading the list of children while one of them ends may leave out another.
		if childless(spare) && childless(spare) || time.Now().After(end) {
			return
		}
	}
}

// childless reaps what has ended and says whether no child but those in spare is left. Whoever has
// none, dead or alive, has no descendant either, and as a subreaper gets none.
func childless(spare []int) bool {
	if len(spare) == 0 {
		for {
			got, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
			if got <= 0 && err != unix.EINTR {
				return err == unix.ECHILD
			}
		}
	}
	children, err := childrenOf(os.Getpid())
	if err != nil {
		return len(scan(os.Getpid(), spare)) == 0
	}
	for _, pid := range children {
		if slices.Contains(spare, pid) {
			continue
		}
		if got, err := unix.Wait4(pid, nil, unix.WNOHANG, nil); got != pid && err != unix.ECHILD {
			return false
		}
	}
	return true
}

// childrenOf returns the direct children of a process, zombies too.
func childrenOf(pid int) (out []int, err error) {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return nil, err
	}
	for _, t := range tasks {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, t.Name()))
		if err != nil {
			if _, serr := os.Stat(fmt.Sprintf("/proc/%d/task/%s", pid, t.Name())); serr == nil {
				return nil, err // no CONFIG_PROC_CHILDREN
			}
			continue // the thread ended
		}
		for _, f := range strings.Fields(string(b)) {
			if child, err := strconv.Atoi(f); err == nil {
				out = append(out, child)
			}
		}
	}
	return out, nil
}

// descendants returns the live processes below root, parents first, without spare and what is below
// those. Zombies are left out. It asks the kernel for each process's children, which costs as much
// as the tree is large; a child that is forked or orphaned meanwhile may be missed.
func descendants(root int, spare []int) (out []int) {
	for queue := []int{root}; len(queue) > 0; queue = queue[1:] {
		children, err := childrenOf(queue[0])
		if err != nil {
			if queue[0] == root {
				return scan(root, spare)
			}
			continue // ended
		}
		for _, pid := range children {
			if slices.Contains(spare, pid) {
				continue
			}
			queue = append(queue, pid)
			if state, _, ok := stat(pid); ok && state != "Z" && state != "X" {
				out = append(out, pid)
			}
		}
	}
	return out
}

// stat reads a process's state and parent.
func stat(pid int) (state string, parent int, ok bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", 0, false
	}
	// pid (comm) state ppid ...; comm may hold anything, so from its last parenthesis on.
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(f) < 2 {
		return "", 0, false
	}
	parent, _ = strconv.Atoi(f[1])
	return f[0], parent, true
}

// scan is descendants by looking at every process of the machine: slow, and misses nothing.
func scan(root int, spare []int) []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	children := map[int][]int{}
	zombie := map[int]bool{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		state, parent, ok := stat(pid)
		if !ok {
			continue
		}
		children[parent] = append(children[parent], pid)
		zombie[pid] = state == "Z" || state == "X"
	}
	var out []int
	for queue := []int{root}; len(queue) > 0; queue = queue[1:] {
		for _, c := range children[queue[0]] {
			if slices.Contains(spare, c) {
				continue
			}
			queue = append(queue, c)
			if !zombie[c] {
				out = append(out, c)
			}
		}
	}
	return out
}
