// Package notify catches the program's network calls by seccomp user notification, for every
// binary of every language, static or not. It installs nothing in the program: the filter is
// inherited over fork and exec, the kernel hands each trapped call to the Supervisor's receiver,
// and the answer comes from there. What an answer means is the intercept.Handler's business.
//
// What one must know to change it:
//
//   - One receiver thread, all signals blocked (a signal during ADDFD|SEND makes the call return 0
//     with no descriptor). Several threads in RECV are slower. It never blocks: what takes time
//     becomes a hold, a goroutine of its own (hold_linux.go).
//   - close, dup, fork, fcntl, read and write are never trapped: a Go program's runtime signals
//     itself all the time, and every trapped call can come twice because of it. Handlers are
//     idempotent for that reason.
//   - A socket is known by SO_COOKIE, never by (pid, fd). The program's descriptor is never
//     replaced (an epoll registration would be lost): pidfd_getfd gives us the same open file
//     description, and we act on that.
//   - Arguments are copied once and acted upon as copied. An answer to a call that died fails by
//     itself with ENOENT; Valid is asked only before a side effect on the task.
//   - Linux 5.14 is the floor (ADDFD_FLAG_SEND). Later features are tried, never deduced.
package notify

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/fault"
	"github.com/stead-dev/stead/internal/intercept"
	"github.com/stead-dev/stead/internal/sys"
)

// Supervisor answers the calls of one filter. The receiver goroutine owns the fields without a
// note; Close may be called from anywhere.
type Supervisor struct {
	l sys.Listener
	h intercept.Handler

	tree   intercept.Tree   // nil: path calls are not trapped
	copies intercept.Copies // tree, where it is one of copies
	cwds   cwds
	path   [maxPath]byte // of the call at hand

	pids  pidfds
	netns uint64 // see netnsOf

	holds  holds
	left   leftovers
	taking sync.Mutex // held while a datagram is taken, by any goroutine; never over a wait

	ending   atomic.Bool
	receiver chan int      // the receiver's thread
	received chan struct{} // closed when the receiver has ended
}

// Start begins to answer the calls that arrive on the listener, which it owns from now on. tree is
// for Options.Paths, else nil.
func Start(l sys.Listener, h intercept.Handler, tree intercept.Tree) (*Supervisor, error) {
	s := &Supervisor{l: l, h: h, tree: tree, netns: ownNetns(), receiver: make(chan int, 1), received: make(chan struct{})}
	s.copies, _ = tree.(intercept.Copies)
	if tree != nil {
		if err := s.cwds.init(tree.Root()); err != nil {
			unix.Close(int(l))
			return nil, err
		}
	}
	_ = l.SetSyncWakeUp() // before Linux 6.6 each call costs more, nothing else
	s.pids.init()
	s.holds.start(l)
	go s.run()
	return s, nil
}

// Close stops answering: trapped calls of tasks that still run fail with ENOSYS. It returns when
// the receiver and every hold are gone. It is called once.
func (s *Supervisor) Close() {
	s.ending.Store(true)
	for tid := <-s.receiver; ; {
		_ = sys.Interrupt(tid)
		select {
		case <-s.received:
		case <-time.After(time.Millisecond):
			continue
		}
		break
	}
	s.holds.stop()
	s.left.close()
	unix.Close(int(s.l))
}

// run receives, without polling before it, which would be a sixth of what a call costs: Close has to
// interrupt it.
func (s *Supervisor) run() {
	defer close(s.received)
	runtime.LockOSThread() // never unlocked: the thread, its signal mask with it, ends with the goroutine
	sys.BlockSignals()
	s.receiver <- unix.Gettid()
	defer s.pids.close()
	var n sys.Notif
	for !s.ending.Load() {
		switch e := s.l.Recv(&n); e {
		case 0:
		case unix.EINTR:
			continue
		case unix.ENOENT:
			if s.l.Over() {
				return
			}
			continue
		default:
			return
		}
		if n.Data.Arch != auditArch || n.Data.NR&x32Bit != 0 {
			s.otherABI(&n)
			continue
		}
		c := byNumber[n.Data.NR]
		if c == nil {
			s.l.Continue(n.ID)
			continue
		}
		// A task escapes to the heap when a hold keeps it; the common call does not.
		c.handle(s, &task{id: n.ID, tid: int(n.PID), nr: n.Data.NR, name: c.name, ip: n.Data.IP, args: n.Data.Args, dirs: c.dirs})
	}
}

// otherABI tells of a program that we do nothing for when it connects to the network, and lets its call pass.
func (s *Supervisor) otherABI(n *sys.Notif) {
	defer s.l.Continue(n.ID)
	at := n.Data.Args[1]
	if n.Data.Arch != auditArch && uint32(n.Data.NR) == otherSocketcall { // it points to the arguments
		var args [12]byte
		if _, err := sys.ReadTask(int(n.PID), at, args[:]); err != nil {
			return
		}
		at = uint64(binary.LittleEndian.Uint32(args[4:]))
	}
	var family [2]byte
	if _, err := sys.ReadTask(int(n.PID), at, family[:]); err != nil {
		return
	}
	if f := binary.LittleEndian.Uint16(family[:]); f != unix.AF_INET && f != unix.AF_INET6 {
		return
	}
	name, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", n.PID))
	if err != nil || !s.l.Valid(n.ID) {
		return
	}
	s.h.Trouble(fault.With(fmt.Errorf("%s is a program of 32 bits: its connections leave from the laptop, and its names are looked up there", path.Base(name)),
		"use one of 64 bits: file PROGRAM says which it is"))
}

// task is one trapped call.
type task struct {
	id   uint64
	tid  int
	nr   int32
	name string
	ip   uint64 // address behind the call's instruction
	args [6]uint64
	dirs bool // see call
}

// readTask fills b from the memory of the task at addr.
func (s *Supervisor) readTask(t *task, addr uint64, b []byte) bool {
	n, err := sys.ReadTask(t.tid, addr, b)
	return err == nil && n == len(b)
}

// fd is argument i as a descriptor.
func (t *task) fd(i int) int { return int(int32(t.args[i])) }

// finish ends the call as the handler said. It owns sock, which may be nil.
func (s *Supervisor) finish(t *task, sock *intercept.Socket, o intercept.Outcome) {
	if o.Later != nil {
		s.holds.add(t, func(ctx context.Context) {
			defer closeSocket(sock)
			s.end(ctx, t, o.Later(ctx))
		})
		return
	}
	closeSocket(sock)
	s.end(context.Background(), t, o)
}

// restart is ERESTARTSYS of include/linux/errno.h. A program never sees it, if the thread that gets it
// has a signal to take: else the number is the call's errno.
const restart = unix.Errno(512)

// end answers the call. An interrupted hold is answered with ERESTARTSYS: the kernel runs the
// signal's handler and restarts the call or fails it with EINTR, as SA_RESTART says.
func (s *Supervisor) end(ctx context.Context, t *task, o intercept.Outcome) {
	switch {
	case o.Continue:
		s.l.Continue(t.id)
	case o.Errno == unix.EINTR && ctx.Err() != nil:
		s.interrupt(t, context.Cause(ctx))
	default:
		s.l.Answer(t.id, o.Value, o.Errno)
	}
}

// interrupt answers a call whose hold ended for the reason why. Where it is not sure that the thread has
// a signal to take, the thread is stopped by ptrace on its way back, which has the kernel look: it takes
// the signal, or makes the call again.
func (s *Supervisor) interrupt(t *task, why error) {
	answer := restart
	switch why {
	case errClosed:
		answer = unix.ENOSYS
	case errProcess:
		runtime.LockOSThread() // ptrace belongs to the thread
		defer runtime.UnlockOSThread()
		if unix.PtraceSeize(t.tid) == nil {
			l := &lead{tid: t.tid}
			defer l.release()
			_ = unix.PtraceInterrupt(t.tid)
		} else if w, _ := signalsOf(t.tid); !w.leader {
			// Somebody else traces it. The kernel likes the main thread best, so it is most likely that
			// this one has nothing to take.
			answer = unix.EINTR
		}
	}
	s.l.Answer(t.id, 0, answer)
}

// trouble fails a call that we cannot answer rightly, and says why once.
func (s *Supervisor) trouble(t *task, errno unix.Errno, err error) {
	if errors.Is(err, unix.EPERM) {
		err = fault.With(err, "a program that lets nobody trace it, as ssh-agent and gpg-agent do, is started without stead or by --files mount (for every program, sysctl kernel.yama.ptrace_scope must be 0 or 1)")
	}
	s.h.Trouble(fmt.Errorf("%s of thread %d: %w", t.name, t.tid, err))
	s.l.Answer(t.id, 0, errno)
}
