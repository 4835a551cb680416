package session

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/stead-dev/stead/internal/fault"
)

// teller writes our few lines to stderr, in order, from a goroutine of its own: who reads there may have
// stopped (a full pipe, Ctrl-S on a terminal), and whoever tells something may be the one that answers the
// program's calls. A line is waited for a moment, so that as a rule it stands before what the program
// prints next.
type teller struct {
	lines chan told
	done  chan struct{} // everything is written

	mu     sync.Mutex
	said   map[string]bool
	closed bool
	stuck  bool // a line was waited for in vain: nobody waits until one is written again
}

type told struct {
	line    string
	written chan struct{}
}

const (
	maxTold      = 1000                   // different lines of one session that are said but once
	unread       = 100                    // lines that wait for a reader; what is more is lost
	patience     = 200 * time.Millisecond // of who tells something
	lastPatience = 2 * time.Second        // at the end
)

func newTeller(w io.Writer) *teller {
	t := &teller{lines: make(chan told, unread), done: make(chan struct{}), said: make(map[string]bool)}
	go func() {
		defer close(t.done)
		for l := range t.lines {
			fmt.Fprintln(w, fault.Line(l.line))
			close(l.written)
			t.mu.Lock()
			t.stuck = false
			t.mu.Unlock()
		}
	}()
	return t
}

// once says a line, but not a second time.
func (t *teller) once(line string) {
	t.mu.Lock()
	known := t.said[line] || len(t.said) > maxTold
	if !known {
		t.said[line] = true
	}
	t.mu.Unlock()
	if !known {
		t.tell(line)
	}
}

func (t *teller) tell(line string) {
	l := told{line, make(chan struct{})}
	t.mu.Lock()
	wait := !t.stuck && !t.closed
	if !t.closed {
		select {
		case t.lines <- l:
		default:
			wait = false
		}
	}
	t.mu.Unlock()
	if !wait {
		return
	}
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case <-l.written:
	case <-late.C:
		t.mu.Lock()
		t.stuck = true
		t.mu.Unlock()
	}
}

// close lets what was said be written, if somebody reads; it says no more.
func (t *teller) close() {
	t.mu.Lock()
	if !t.closed {
		t.closed = true
		close(t.lines)
	}
	t.mu.Unlock()
	late := time.NewTimer(lastPatience)
	defer late.Stop()
	select {
	case <-t.done:
	case <-late.C:
	}
}
