package beside

import (
	"errors"
	"strings"
	"sync"

	"github.com/stead-dev/stead/internal/fault"
)

// tail keeps the end of what a child says on its standard error.
type tail struct {
	mu sync.Mutex
	b  []byte
}

const tailSize = 8 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if n := len(t.b) - tailSize; n > 0 {
		t.b = t.b[n:]
	}
	return len(p), nil
}

// first gives the child's error and hint as one of ours, nil where it told none.
func (t *tail) first() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var cause, hint string
	for _, line := range strings.Split(string(t.b), "\n") {
		if s, ok := strings.CutPrefix(line, "error: "); ok {
			cause = s
		}
		if s, ok := strings.CutPrefix(line, "hint: "); ok {
			hint = s
		}
	}
	if cause == "" {
		return nil
	}
	return fault.With(errors.New(cause), hint)
}
