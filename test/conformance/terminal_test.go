package conformance

import (
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stead-dev/stead/test/internal/bed"
)

func TestTerminalAndJobControlAreAsWithoutStead(t *testing.T) {
	b := bed.Up(t, stead, "conformance-terminal")
	ctx, cancel := context.WithTimeout(context.Background(), bed.Limit)
	defer cancel()
	c := exec.CommandContext(ctx, "python3", filepath.Join(bed.Root(), "test/conformance/programs/terminal.py"), stead)
	c.Env = append(b.Env, "TERM=dumb")
	out, err := c.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "all as without stead") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestSignalsToSteadReachTheProgramOnce(t *testing.T) {
	b := bed.Up(t, stead, "conformance-signals")
	for _, sig := range []string{"TERM", "HUP", "USR1", "USR2", "INT"} {
		// $PPID is the guard, whose parent is stead.
		r := b.Exec([]string{"--no-incoming"}, "bash", "-c", `
			n=0; trap 'n=$((n+1))' `+sig+`
			kill -`+sig+` $(ps -o ppid= -p $PPID)
			for i in 1 2 3 4 5 6; do sleep 0.05; done
			echo $n`)
		if r.Stdout != "1\n" {
			t.Errorf("SIG%s was seen %q times; stderr %s", sig, r.Stdout, r.Stderr)
		}
	}
}
