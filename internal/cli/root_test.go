package cli

import (
	"bytes"
	"context"
	"strings"
	"testing"
)

// run gives what a command line prints and its exit code.
func run(args ...string) (stdout, stderr string, code int) {
	var out, errs bytes.Buffer
	code = Run(context.Background(), args, nil, strings.NewReader(""), &out, &errs)
	return out.String(), errs.String(), code
}

func TestACommandThatThereIsNotIsNamedWithOneThatThereIs(t *testing.T) {
	for _, c := range []struct{ args, cause, hint string }{
		{"exce --target x -- true", "stead exce: no such command", "stead exec"},
		{"nonsense", "stead nonsense: no such command", "stead --help"},
		{"playground nonsense", "stead playground nonsense: no such command", "stead playground --help"},
		{"agent imge", "stead agent imge: no such command", "stead agent image"},
		{"diagnose latncy", "stead diagnose latncy: no such command", "stead diagnose latency"},
		{"sip inspct", "stead sip inspct: no such command", "stead sip inspect"},
	} {
		stdout, stderr, code := run(strings.Fields(c.args)...)
		if want := "error: " + c.cause + "\nhint: " + c.hint + "\n"; stdout != "" || stderr != want || code != 125 {
			t.Errorf("stead %s: exit code %d, printed\n%s%swant\n%s", c.args, code, stdout, stderr, want)
		}
	}
}

func TestWithoutACommandTheHelpIsPrinted(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"", "Run a process on your laptop in a pod's stead"},
		{"playground", "playground up"},
		{"sip", "stead sip inspect"},
	} {
		stdout, stderr, code := run(strings.Fields(c.args)...)
		if !strings.Contains(stdout, "Usage:") || stderr != "" || code != 0 {
			t.Errorf("stead %s: exit code %d, printed\n%s\n%s", c.args, code, stdout, stderr)
		}
	}
}
