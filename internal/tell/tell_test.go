package tell

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
)

func TestWhatIsToldIsWrittenInOrderAndOnce(t *testing.T) {
	var b bytes.Buffer
	s := New(&b)
	for i := range 2 {
		s.Once("a")
		s.Say(fmt.Sprint("b", i))
		s.Once("c")
	}
	s.Close()
	if got := b.String(); got != "a\nb0\nc\nb1\n" {
		t.Errorf("%q", got)
	}
	s.Say("after the end")
	s.Once("after the end")
	s.Close()
}

// Whoever tells something goes on though nobody reads; what was told is there when somebody does.
func TestNobodyWaitsForAReader(t *testing.T) {
	r, w := io.Pipe()
	s := New(w)
	var all sync.WaitGroup
	for i := range 3 * unread {
		all.Go(func() { s.Once(fmt.Sprintf("line %03d", i)) })
	}
	all.Wait() // for ever, if one waited for the reader
	closed := make(chan struct{})
	go func() { defer w.Close(); defer close(closed); s.Close() }()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	<-closed
	if n := strings.Count(string(b), "line "); n <= unread/2 || n > unread+1 {
		t.Errorf("%d lines were written:\n%s", n, b)
	}
}
