package conformance

import (
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

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
	for _, sig := range []string{"TERM", "HUP", "USR1", "USR2", "INT", "ABRT", "ALRM", "WINCH", "IO", "PWR", "RTMIN+3", "RTMAX"} {
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

// What a process has of its parent, a program under stead has of who started stead. (A signal that is
// ignored stays so for SIGHUP and SIGINT alone, nohup's and a shell's background: of the others Go's
// runtime does not tell us.)
func TestWhatAProcessInheritsIsInherited(t *testing.T) {
	b := bed.Up(t, stead, "conformance-inherits")
	const have = `umask 027; ulimit -S -n 777; ulimit -S -c 0; ulimit -S -s 4096; trap '' HUP INT; exec 7</dev/null 9>/dev/null; exec nice -n 5 "$@"`
	const tell = `import os, signal
print(open('/proc/self/limits').read(), os.umask(0), os.nice(0), sorted(int(f) for f in os.listdir('/proc/self/fd'))[:-1])
print([s for s in signal.valid_signals() if s < 32 and signal.getsignal(s) == signal.SIG_IGN], signal.pthread_sigmask(signal.SIG_BLOCK, []), os.getsid(0) == os.getsid(os.getppid()), os.getcwd())`
	run := func(argv ...string) string {
		c := b.Command()
		as := exec.Command("sh", append([]string{"-c", have, "sh"}, argv...)...)
		as.Env, as.Dir, as.SysProcAttr = c.Env, c.Dir, c.SysProcAttr
		out, err := as.CombinedOutput()
		if err != nil {
			t.Errorf("%q: %v", argv, err)
		}
		return string(out)
	}
	native := run("python3", "-c", tell)
	for _, door := range []string{"mount", "trap", "none"} {
		argv := b.Command("exec", "-q", "-t", "playground/orders", "--no-incoming", "--files", door, "--", "python3", "-c", tell).Args
		if diff := cmp.Diff(native, run(argv...)); diff != "" {
			t.Errorf("--files %s: - native + stead:\n%s", door, diff)
		}
	}
}
