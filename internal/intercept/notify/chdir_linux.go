package notify

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/fault"
	"github.com/stead-dev/stead/internal/sys"
)

// The working directory. It is the kernel's, also in the tree: a chdir to a directory of the tree's
// is made by the thread itself, with an fchdir that we lead it to by ptrace, so fork, exec and
// relative paths of every kind need no book-keeping of ours. What we need to know is which calls
// have a relative path that is the tree's, and that is remembered per process until it moves.

// cwds is what is known of working directories. The receiver owns it.
type cwds struct {
	dev       uint64 // the tree's st_dev
	byProcess map[process]cwd
	// moving are the threads of a process that have been let into chdir or fchdir: until they make
	// another call nobody knows whether they have moved already.
	moving map[process][]int
}

type cwd struct {
	path   string
	inside bool // in the tree
}

const maxCwds = 512

func (c *cwds) init(root int) error {
	c.byProcess, c.moving = make(map[process]cwd), make(map[process][]int)
	var st unix.Stat_t
	if r := statOf(root, unix.AT_STATX_DONT_SYNC); r.errno != 0 {
		return fmt.Errorf("stat the tree's root: %w", r.errno)
	} else {
		copy(unsafe.Slice((*byte)(unsafe.Pointer(&st)), unsafe.Sizeof(st)), r.memory)
	}
	c.dev = uint64(st.Dev)
	return nil
}

// settle notes that a thread has come back.
func (s *Supervisor) settle(tid int) {
	if len(s.cwds.moving) == 0 {
		return
	}
	p, ok := s.pids.group(tid)
	if !ok {
		return
	}
	if left := slices.DeleteFunc(s.cwds.moving[p], func(t int) bool { return t == tid }); len(left) > 0 {
		s.cwds.moving[p] = left
	} else {
		delete(s.cwds.moving, p)
	}
}

// moved forgets where a thread's process is.
func (s *Supervisor) moved(tid int) {
	p, ok := s.pids.group(tid)
	if !ok {
		clear(s.cwds.byProcess) // no way to tell whose it is
		return
	}
	delete(s.cwds.byProcess, p)
	if len(s.cwds.moving) > maxCwds {
		clear(s.cwds.moving) // of threads that never came back
		clear(s.cwds.byProcess)
	}
	if !slices.Contains(s.cwds.moving[p], tid) {
		s.cwds.moving[p] = append(s.cwds.moving[p], tid)
	}
}

// cwd returns the working directory of a thread.
func (s *Supervisor) cwd(tid int) (dir string, inside bool, err error) {
	p, known := s.pids.group(tid)
	if known {
		if c, ok := s.cwds.byProcess[p]; ok {
			return c.path, c.inside, nil
		}
	}
	link := "/proc/" + strconv.Itoa(tid) + "/cwd"
	dir, _, inside, errno := s.knownAt(link, 0)
	if errno != 0 {
		return "", false, errno
	}
	if dir == "" {
		if dir, err = os.Readlink(link); err != nil {
			return "", false, err
		}
		dir = strings.TrimSuffix(dir, " (deleted)")
	}
	if _, moves := s.cwds.moving[p]; known && !moves {
		if len(s.cwds.byProcess) >= maxCwds {
			clear(s.cwds.byProcess)
		}
		s.cwds.byProcess[p] = cwd{dir, inside}
	}
	return dir, inside, nil
}

func (s *Supervisor) fchdir(t *task) {
	s.moved(t.tid)
	s.l.Continue(t.id)
}

func (s *Supervisor) getcwd(t *task) {
	s.settle(t.tid)
	dir, inside, err := s.cwd(t.tid)
	if err != nil || !inside {
		s.l.Continue(t.id)
		return
	}
	if uint64(len(dir)) >= t.args[1] {
		s.l.Answer(t.id, 0, unix.ERANGE)
		return
	}
	s.finishPath(t, result{val: int64(len(dir) + 1), memory: append([]byte(dir), 0), addr: t.args[0]})
}

func (s *Supervisor) chdir(t *task) {
	name, other, ok := s.whose(t, 0)
	if !ok {
		return
	}
	if !other {
		s.moved(t.tid)
		s.l.Continue(t.id)
		return
	}
	s.at(t, name, true, func(p place) result {
		// Not O_PATH, which ADDFD refuses (EBADF): so a directory that may be searched but not read
		// cannot be entered.
		fd, errno := open(p.fd, ".", &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC})
		if errno != 0 {
			return fails(errno) // ENOTDIR, or EACCES
		}
		return result{enter: fd}
	})
}

// enter makes dir the working directory of the thread whose chdir waits, and ends that call.
//
// The thread is stopped on its way back from the call, and led once more through its own system
// call instruction, with fchdir and a copy of dir, then with close. The copy is put into it before,
// and is close-on-exec. All signals wait meanwhile. A thread that somebody else traces cannot be
// led: its chdir fails with EPERM, and we say why.
func (s *Supervisor) enter(t *task, dir int) {
	runtime.LockOSThread() // ptrace belongs to the thread
	defer runtime.UnlockOSThread()
	l := s.seize(t, "a directory")
	if l == nil {
		return
	}
	defer l.release()
	fd, err := s.l.AddFD(t.id, dir, true)
	if err != nil {
		if e, ok := err.(unix.Errno); ok {
			s.l.Answer(t.id, 0, e)
		}
		return
	}
	if err := unix.PtraceInterrupt(t.tid); err != nil {
		s.l.Answer(t.id, 0, unix.EPERM)
		return
	}
	// It stops before it is back in its own code. Should the call have been interrupted meanwhile,
	// nobody takes the answer, and it stops all the same.
	s.l.Answer(t.id, 0, 0)
	err = l.chdir(fd)
	if err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.ECHILD) {
		s.h.Trouble(fmt.Errorf("chdir of thread %d: %w", t.tid, err))
	}
}

// seize begins to lead the thread whose call waits. nil: the call has been answered.
func (s *Supervisor) seize(t *task, to string) *lead {
	err := unix.PtraceSeize(t.tid)
	if err == nil {
		return &lead{tid: t.tid, after: t.ip}
	}
	if !s.l.Valid(t.id) {
		return nil // killed meanwhile, which EPERM says, too
	}
	if !errors.Is(err, unix.ESRCH) {
		err = fault.With(fmt.Errorf("lead it to %s of the target's: %w", to, err),
			"stead exec --files mount ... (or without a debugger on it, and with sysctl kernel.yama.ptrace_scope 0 or 1)")
	}
	s.trouble(t, unix.EPERM, err)
	return nil
}

// lead is a thread that we trace.
type lead struct {
	tid     int
	group   int    // 0: it stays who it is
	after   uint64 // address behind the instruction that made its call
	stopped bool
	call    bool // stopped where a system call begins or ends
	// signal is what the thread had begun to take when it stopped, 0 for another stop. It is handed
	// back when the thread goes on; where it is blocked by then, the kernel keeps it for later.
	signal unix.Signal
}

// release lets the thread go on. One that was killed where it stopped cannot be let go: it dies as ours, and
// its process is not over for its parent before we have waited for it.
func (l *lead) release() {
	for {
		if !l.stopped {
			_ = unix.PtraceInterrupt(l.tid)
			if l.wait() != nil {
				return // it is gone
			}
		}
		if sys.PtraceDetach(l.tid, l.signal) == nil {
			return
		}
		l.stopped = false
	}
}

const syscallStop = unix.SIGTRAP | 0x80

// wait waits for the thread's next stop.
func (l *lead) wait() error {
	for {
		var ws unix.WaitStatus
		options := unix.WALL
		if l.group != 0 && l.group != l.tid {
			options |= unix.WNOHANG // when it has executed its number is the group's, of which nobody wakes us
		}
		got, err := unix.Wait4(l.tid, &ws, options, nil)
		if err == unix.EINTR {
			continue
		}
		if options&unix.WNOHANG != 0 && (err == unix.ECHILD || err == nil && got == 0) {
			if got, gerr := unix.Wait4(l.group, &ws, options, nil); gerr == nil && got == l.group {
				l.tid, err = l.group, nil
			} else if err == unix.ECHILD && gerr == unix.ECHILD {
				return unix.ESRCH
			} else {
				time.Sleep(execTick)
				continue
			}
		}
		if err != nil {
			return err
		}
		if !ws.Stopped() {
			return unix.ESRCH
		}
		l.stopped, l.signal = true, ws.StopSignal()
		l.call = l.signal == syscallStop
		if event := ws >> 16; event != 0 || l.call { // event: our interruption, or a stopped group
			l.signal = 0
		}
		return nil
	}
}

// halt waits for the thread, stopped or about to stop, and makes it ready to be led: all signals wait.
func (l *lead) halt() (regs registers, mask uint64, err error) {
	if err := l.wait(); err != nil {
		return regs, mask, err
	}
	if err := unix.PtraceSetOptions(l.tid, unix.PTRACE_O_TRACESYSGOOD); err != nil {
		return regs, mask, err
	}
	if regs, err = getRegisters(l.tid); err != nil {
		return regs, mask, err
	}
	regs.setAfter(l.after)
	if mask, err = sys.PtraceGetSigmask(l.tid); err != nil {
		return regs, mask, err
	}
	if err := sys.PtraceSetSigmask(l.tid, ^uint64(0)); err != nil {
		return regs, mask, err
	}
	code := make([]byte, len(callInstruction))
	if n, err := sys.ReadTask(l.tid, uint64(regs.callAddress()), code); err != nil || n != len(code) || string(code) != callInstruction {
		err = errors.New("the call was made by no ordinary instruction")
		return regs, mask, errors.Join(err, l.restore(regs, mask, unix.ENOSYS))
	}
	return regs, mask, nil
}

// chdir leads the thread through fchdir(fd) and close(fd).
func (l *lead) chdir(fd int) error {
	regs, mask, err := l.halt()
	if err != nil {
		return err
	}
	errno := unix.EINTR
	for errno == unix.EINTR || errno == restart {
		// Once more where its group was stopped meanwhile: no signal interrupts a chdir for good.
		ret, err := l.do(regs, unix.SYS_FCHDIR, uintptr(fd))
		if err != nil {
			return err
		}
		errno = unix.Errno(max(-ret, 0))
	}
	if _, err := l.do(regs, unix.SYS_CLOSE, uintptr(fd)); err != nil {
		return err
	}
	return l.restore(regs, mask, errno)
}

// restore puts the thread back where its call ended, with the call's result.
func (l *lead) restore(regs registers, mask uint64, errno unix.Errno) error {
	r := regs
	r.setResult(-int64(errno))
	return errors.Join(r.set(l.tid), sys.PtraceSetSigmask(l.tid, mask))
}

// do makes the stopped thread execute one system call, and returns its result.
func (l *lead) do(regs registers, nr uintptr, args ...uintptr) (int64, error) {
	r := regs
	r.setCall(nr, args...)
	if err := r.set(l.tid); err != nil {
		return 0, err
	}
	for stops := 0; stops < 2; {
		// A SIGSTOP, which nobody can block, stops the thread's group; the thread is led on.
		if err := unix.PtraceSyscall(l.tid, int(l.signal)); err != nil {
			return 0, err
		}
		l.stopped = false
		if err := l.wait(); err != nil {
			return 0, err
		}
		if l.call {
			stops++
		}
	}
	after, err := getRegisters(l.tid)
	return after.result(), err
}
