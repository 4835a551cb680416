package notify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/intercept"
	"github.com/stead-dev/stead/internal/sys"
)

// holds are the calls that take time: a blocking connect or accept. Under WAIT_KILLABLE a held
// call is deaf to Ctrl-C, so one goroutine looks at the pending signals of every held thread and
// ends the hold's context when there is one to deliver, or when the thread is gone.
type holds struct {
	l       sys.Listener
	mu      sync.Mutex
	byID    map[uint64]*hold
	closed  bool
	wake    chan struct{}
	done    chan struct{}
	running sync.WaitGroup
}

type hold struct {
	t      *task
	since  time.Time
	looked time.Time
	shared uint64 // signals for its process that it would take, at the last look; the watch's own
	cancel context.CancelCauseFunc
}

// Why a hold's context ends before the call does, beside intercept.Signalled.
var (
	errGone    = errors.New("the thread is gone")
	errProcess = fmt.Errorf("%w or for another one of its process", intercept.Signalled)
	errClosed  = errors.New("the supervisor is closed")
)

// The first second of a hold is looked at often, so that Ctrl-C feels immediate where it matters
// least; later looks cost 0.05 % of a CPU for each held call.
const (
	lookEarly = 20 * time.Millisecond
	lookLate  = 60 * time.Millisecond
)

func (h *holds) start(l sys.Listener) {
	h.l = l
	h.byID = make(map[uint64]*hold)
	h.wake = make(chan struct{}, 1)
	h.done = make(chan struct{})
	h.running.Add(1)
	go h.watch()
}

// add runs f on a goroutine that stop waits for.
func (h *holds) add(t *task, f func(context.Context)) {
	ctx, cancel := context.WithCancelCause(context.Background())
	h.mu.Lock()
	if h.closed {
		cancel(errClosed)
	}
	h.byID[t.id] = &hold{t: t, since: time.Now(), cancel: cancel}
	h.running.Add(1)
	h.mu.Unlock()
	select {
	case h.wake <- struct{}{}:
	default:
	}
	go func() {
		defer h.running.Done()
		defer func() {
			h.mu.Lock()
			delete(h.byID, t.id)
			h.mu.Unlock()
			cancel(nil)
		}()
		f(ctx)
	}()
}

// stop ends every hold and waits for it. add is not called any more.
func (h *holds) stop() {
	h.mu.Lock()
	h.closed = true
	for _, x := range h.byID {
		x.cancel(errClosed)
	}
	h.mu.Unlock()
	close(h.done)
	h.running.Wait()
}

func (h *holds) watch() {
	defer h.running.Done()
	tick := time.NewTimer(0)
	defer tick.Stop()
	for {
		h.mu.Lock()
		idle := len(h.byID) == 0
		h.mu.Unlock()
		if idle {
			select {
			case <-h.done:
				return
			case <-h.wake:
			}
		}
		tick.Reset(lookEarly)
		select {
		case <-h.done:
			return
		case <-tick.C:
		}
		h.look(time.Now())
	}
}

func (h *holds) look(now time.Time) {
	h.mu.Lock()
	due := make([]*hold, 0, len(h.byID))
	for _, x := range h.byID {
		if now.Sub(x.since) < time.Second || x.shared != 0 || now.Sub(x.looked) >= lookLate {
			x.looked = now
			due = append(due, x)
		}
	}
	h.mu.Unlock()
	for _, x := range due {
		w, ok := signalsOf(x.t.tid)
		if !ok || !h.l.Valid(x.t.id) {
			x.cancel(errGone)
			continue
		}
		if why := w.interrupts(x.shared); why != nil {
			x.cancel(why)
		}
		x.shared = w.shared &^ w.blocked
	}
}

// signals are what /proc/TID/status says of a thread's.
type signals struct {
	own, shared, blocked uint64 // pending for it, pending for its process, masked
	leader               bool   // it is its process's main thread
	alone                bool   // its process has no other thread
}

// interrupts decides whether a held call of the thread has to end, and how sure that is; before is what
// it would have taken at the last look. A signal for a process is given to one of the threads that do not
// block it, which is marked (complete_signal in kernel/signal.c), and nobody shows us which one. Who does
// not wait in a call of ours takes it at once, so what is still there at the next look may be for us.
func (w signals) interrupts(before uint64) error {
	shared := w.shared &^ w.blocked
	switch {
	case w.own&^w.blocked != 0, w.alone && shared != 0:
		return intercept.Signalled
	case shared&before != 0:
		return errProcess
	}
	return nil
}

func signalsOf(tid int) (w signals, ok bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return w, false
	}
	field := func(key string) string {
		_, rest, _ := bytes.Cut(b, []byte("\n"+key+":\t"))
		value, _, _ := bytes.Cut(rest, []byte("\n"))
		return string(value)
	}
	mask := func(key string) uint64 {
		v, _ := strconv.ParseUint(field(key), 16, 64)
		return v
	}
	return signals{own: mask("SigPnd"), shared: mask("ShdPnd"), blocked: mask("SigBlk"),
		leader: field("Pid") == field("Tgid"), alone: field("Threads") == "1"}, true
}

// canceller is a descriptor that becomes readable when ctx ends, to poll beside another one.
func canceller(ctx context.Context) (fd int, release func(), err error) {
	fd, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return -1, nil, err
	}
	one := [8]byte{1}
	var mu sync.Mutex // the late call of AfterFunc must not write to a number used again
	open := true
	stop := context.AfterFunc(ctx, func() {
		mu.Lock()
		defer mu.Unlock()
		if open {
			unix.Write(fd, one[:])
		}
	})
	return fd, func() {
		stop()
		mu.Lock()
		defer mu.Unlock()
		open = false
		unix.Close(fd)
	}, nil
}

// waitReadable waits until fd is readable. EINTR: ctx ended. EAGAIN: the socket's own receive
// timeout (SO_RCVTIMEO) passed.
func waitReadable(ctx context.Context, fd int) unix.Errno {
	timeout := -1
	if tv, err := unix.GetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO); err == nil && (tv.Sec != 0 || tv.Usec != 0) {
		timeout = int(min(tv.Sec*1000+(int64(tv.Usec)+999)/1000, 1<<31-1))
	}
	cfd, release, err := canceller(ctx)
	if err != nil {
		return unix.ENOMEM
	}
	defer release()
	deadline := time.Now().Add(time.Duration(timeout) * time.Millisecond)
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(cfd), Events: unix.POLLIN}}
	for {
		wait := timeout
		if timeout >= 0 {
			if wait = int(time.Until(deadline).Milliseconds()); wait < 0 {
				return unix.EAGAIN
			}
		}
		n, err := unix.Poll(fds, wait)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return err.(unix.Errno)
		case n == 0:
			return unix.EAGAIN
		case fds[1].Revents != 0:
			return unix.EINTR
		default:
			return 0
		}
	}
}
