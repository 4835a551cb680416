package notify

import (
	"testing"

	"github.com/stead-dev/stead/internal/intercept"
)

func TestAHeldCallEndsForASignalThatItsThreadTakes(t *testing.T) {
	const usr1, usr2 = 1 << 9, 1 << 11
	for name, c := range map[string]struct {
		w      signals
		before uint64
		want   error
	}{
		"none":                                 {w: signals{}},
		"its own":                              {w: signals{own: usr1}, want: intercept.Signalled},
		"its own, masked":                      {w: signals{own: usr1, blocked: usr1}},
		"the process's, of one thread":         {w: signals{shared: usr1, alone: true}, want: intercept.Signalled},
		"the process's, of one thread, masked": {w: signals{shared: usr1, blocked: usr1, alone: true}, before: usr1},
		"the process's, just come":             {w: signals{shared: usr1}},
		"the process's, another is gone":       {w: signals{shared: usr1}, before: usr2},
		"the process's, still there":           {w: signals{shared: usr1 | usr2}, before: usr2, want: errProcess},
		"the process's, still there, masked":   {w: signals{shared: usr1, blocked: usr1}, before: usr1},
	} {
		if got := c.w.interrupts(c.before); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}
