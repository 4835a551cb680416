// Package tell writes stead's own few lines where a person reads them.
package tell

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/stead-dev/stead/internal/fault"
)

// Teller writes lines to stderr, in order, from a goroutine of its own: who reads there may have stopped
// (a full pipe, Ctrl-S on a terminal), and whoever tells something may be the one that answers the program's
// calls, follows its pods or holds a lock. A line is waited for a moment, so that as a rule it stands before
// what the program prints next.
type Teller struct {
	lines chan line
	done  chan struct{} // everything is written

	mu     sync.Mutex
	said   map[string]bool
	closed bool
	stuck  bool // a line was waited for in vain: nobody waits until one is written again
}

type line struct {
	text    string
	written chan struct{}
}

const (
	maxSaid      = 1000                  // different lines that are said but once
	unread       = 100                   // lines that wait for a reader; what is more is lost
	patience     = 20 * time.Millisecond // of who tells something
	lastPatience = 2 * time.Second       // at the end
)

// New tells on w. The goroutine ends with Close, or when w takes what was told before.
func New(w io.Writer) *Teller {
	t := &Teller{lines: make(chan line, unread), done: make(chan struct{}), said: make(map[string]bool)}
	go func() {
		defer close(t.done)
		for l := range t.lines {
			fmt.Fprintln(w, fault.Line(l.text))
			t.mu.Lock()
			close(l.written)
			t.stuck = false
			t.mu.Unlock()
		}
	}()
	return t
}

// Once is Say, but says nothing a second time.
func (t *Teller) Once(text string) {
	t.mu.Lock()
	known := t.said[text] || len(t.said) > maxSaid
	if !known {
		t.said[text] = true
	}
	t.mu.Unlock()
	if !known {
		t.Say(text)
	}
}

// Say tells one line, whatever is in text.
func (t *Teller) Say(text string) {
	l := line{text, make(chan struct{})}
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
		select {
		case <-l.written:
		default:
			t.stuck = true
		}
		t.mu.Unlock()
	}
}

// Close lets what was said be written, if somebody reads; it says no more.
func (t *Teller) Close() {
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
