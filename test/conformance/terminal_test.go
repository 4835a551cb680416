package conformance

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stead-dev/stead/test/internal/bed"
)

func TestTerminalAndJobControlAreAsWithoutStead(t *testing.T) {
	t.Parallel()
	b := bed.Up(t, stead, "conformance-terminal")
	typing := func(t *testing.T, before ...string) string {
		ctx, cancel := context.WithTimeout(context.Background(), bed.Limit)
		defer cancel()
		c := exec.CommandContext(ctx, "python3", append([]string{filepath.Join(bed.Root(), "test/conformance/programs/terminal.py")}, before...)...)
		c.Env = append(b.Env, "TERM=dumb")
		out, err := c.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return string(out)
	}
	native := typing(t)
	for _, door := range append(doors, "none") {
		t.Run("by "+door, func(t *testing.T) {
			if diff := cmp.Diff(native, typing(t, stead, "exec", "-t", "playground/orders", "--no-incoming", "--files", door, "--")); diff != "" {
				t.Errorf("- native + stead:\n%s", diff)
			}
		})
	}
	// A command in a pod has a terminal of its own, as by kubectl exec -it.
	t.Run("natively in the pod", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(context.Background(), bed.Limit)
		defer cancel()
		c := exec.CommandContext(ctx, "python3", filepath.Join(bed.Root(), "test/conformance/programs/inpod.py"), stead)
		c.Env = append(b.Env, "TERM=dumb")
		if out, err := c.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	})
}

// What a program leaves running cannot go on without stead: it is told to end, then ended.
func TestWhatAProgramLeavesRunningEndsWithIt(t *testing.T) {
	t.Parallel()
	b := bed.Up(t, stead, "conformance-leftovers")
	const daemons = `import os, signal, sys, time
def daemon(name, deaf):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            null = os.open("/dev/null", os.O_RDWR)
            for fd in (0, 1, 2): os.dup2(null, fd)
            def told(*a):
                open(sys.argv[1] + "/told-" + name, "w").close()
                if not deaf: os._exit(0)
            signal.signal(signal.SIGTERM, told)
            open(sys.argv[1] + "/" + name, "w").write(os.readlink("/proc/self"))
            while True: time.sleep(1)
        os._exit(0)
    os.wait()
daemon("polite", False)
daemon("deaf", True)
while not all(os.path.exists(sys.argv[1] + "/" + n) and open(sys.argv[1] + "/" + n).read() for n in ("polite", "deaf")): time.sleep(0.01)
print("done")
sys.exit(4)`
	for _, door := range append(doors, "none") {
		dir, err := os.MkdirTemp("/var/tmp", "stead-leftovers")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		r := b.Exec([]string{"--no-incoming", "--files", door}, "python3", "-c", daemons, dir)
		if r.Stdout != "done\n" || r.Code != 4 || r.Stderr != "stead: the program has ended; ending 2 process(es) that it left running\n" {
			t.Errorf("by %s: %+v", door, r)
		}
		for _, name := range []string{"polite", "deaf"} {
			if _, err := os.Stat(dir + "/told-" + name); err != nil {
				t.Errorf("by %s: %s was not told to end: %v", door, name, err)
			}
			pid, _ := os.ReadFile(dir + "/" + name)
			if cmdline, err := os.ReadFile("/proc/" + string(pid) + "/cmdline"); err == nil && strings.Contains(string(cmdline), dir) {
				t.Errorf("by %s: %s goes on as %s", door, name, pid)
			}
		}
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

// The kernel gives a signal for a process to one of its threads; those that wait in a call of ours and
// have none to take see neither an errno nor a handler.
func TestASignalForAProcessIsTakenByOneThreadAndSeenByNoOther(t *testing.T) {
	b := bed.Up(t, stead, "conformance-waits")
	argv := []string{"python3", filepath.Join(programs, "waits.py")}
	native := b.Native(argv...)
	for _, door := range append([]string{"none"}, doors...) {
		under := b.Exec([]string{"--files", door, "--no-incoming"}, argv...)
		if diff := cmp.Diff(native.Stdout, under.Stdout); diff != "" || native.Code != 0 || under.Code != 0 || under.Stderr != "" {
			t.Errorf("--files %s: exit codes %d and %d, stderr %s\n- native + stead:\n%s", door, native.Code, under.Code, under.Stderr, diff)
		}
	}
	// Many at once: the threads of some end in the moment in which they are stopped to take a signal.
	var all sync.WaitGroup
	for range 12 {
		all.Go(func() {
			if r := b.Exec([]string{"--no-incoming"}, argv...); r.Code != 0 {
				t.Errorf("one of many: exit code %d, stderr %s", r.Code, r.Stderr)
			}
		})
	}
	all.Wait()
}

// What a process has of its parent, a program under stead has of who started stead. (A signal that is
// ignored stays so for SIGHUP and SIGINT alone, nohup's and a shell's background: of the others Go's
// runtime does not tell us.)
func TestWhatAProcessInheritsIsInherited(t *testing.T) {
	b := bed.Up(t, stead, "conformance-inherits")
	const have = `umask 027; ulimit -S -n 777; ulimit -S -c 0; ulimit -S -s 4096; trap '' HUP INT; n="$1"; shift; eval "exec $n"; exec nice -n 5 "$@"`
	const tell = `import os, signal
print(open('/proc/self/limits').read(), os.umask(0), os.nice(0), sorted(int(f) for f in os.listdir('/proc/self/fd'))[:-1])
print([s for s in signal.valid_signals() if s < 32 and signal.getsignal(s) == signal.SIG_IGN], signal.pthread_sigmask(signal.SIG_BLOCK, []), os.getsid(0) == os.getsid(os.getppid()), os.getcwd())`
	run := func(open string, argv ...string) string {
		c := b.Command()
		as := exec.Command("bash", append([]string{"-c", have, "bash", open}, argv...)...)
		as.Env, as.Dir, as.SysProcAttr = c.Env, c.Dir, c.SysProcAttr
		out, err := as.CombinedOutput()
		if err != nil {
			t.Errorf("%q: %v", argv, err)
		}
		return string(out)
	}
	var every strings.Builder // but some, which ours get
	for n := 3; n < 255; n++ {
		if n != 7 && n != 30 && n != 100 {
			fmt.Fprintf(&every, "%d</dev/null ", n)
		}
	}
	for _, open := range []string{"", "7</dev/null 9>/dev/null", "3</dev/null 5</dev/null 6</dev/null 10</dev/null 11</dev/null 12</dev/null 13</dev/null 60</dev/null 200</dev/null", every.String()} {
		native := run(open, "python3", "-c", tell)
		for _, door := range append(doors, "none") {
			argv := b.Command("exec", "-q", "-t", "playground/orders", "--no-incoming", "--files", door, "--", "python3", "-c", tell).Args
			if diff := cmp.Diff(native, run(open, argv...)); diff != "" {
				t.Errorf("--files %s, with %s: - native + stead:\n%s", door, open, diff)
			}
		}
	}
}
