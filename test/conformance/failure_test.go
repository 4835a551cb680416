package conformance

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stead-dev/stead/test/internal/bed"
)

// failed checks that what stead says is one line with the cause and one whose first word is a command.
func failed(t *testing.T, r bed.Result, code int, says string) {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(r.Stderr, "\n"), "\n")
	if r.Code != code || len(lines) != 2 || !strings.HasPrefix(lines[0], "error: "+says) || !strings.HasPrefix(lines[1], "hint: ") {
		t.Errorf("exit code %d, want %d; want one line error: %s and one hint:\n%s", r.Code, code, says, r.Stderr)
		return
	}
	// stead itself, a shell's builtin, commands of machines that this one need not be, any that it has.
	command := strings.Fields(lines[1])[1]
	if _, err := exec.LookPath(command); err != nil && !slices.Contains([]string{"stead", "cd", "sudo", "sysctl", "docker", "kubectl", "file"}, command) {
		t.Errorf("the hint begins with no command: %s", lines[1])
	}
}

func TestWhatGoesWrongIsOneErrorOneCommandAndAnExitCode(t *testing.T) {
	t.Parallel()
	b := bed.Up(t, stead, "conformance-exit")
	plain := filepath.Join(bed.Cache(), "not-executable")
	if err := os.WriteFile(plain, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	in := func(more ...string) []string { return append([]string{"exec", "-t", "playground/orders"}, more...) }
	pod := func(more ...string) []string { return append([]string{"playground", "exec", "orders", "--"}, more...) }
	for _, c := range []struct {
		name string
		args []string
		code int
		says string // "" means silence
	}{
		{"the program's own", in("--", "sh", "-c", "exit 42"), 42, ""},
		{"the program's own, as stead's", in("--", "sh", "-c", "exit 125"), 125, ""},
		{"death by a signal", in("--", "sh", "-c", "kill -SEGV $$"), 139, ""},
		{"not found in PATH", in("--", "no-such-program"), 127, "run no-such-program: not found in PATH"},
		{"no such file", in("--", "./no/such"), 127, "run ./no/such: no such file"},
		{"an empty name", in("--", ""), 127, "run a program without a name: no such file"},
		{"not executable", in("--", plain), 126, "run " + plain + ": permission denied"},
		{"a directory", in("--", "/usr"), 126, "run /usr: is a directory"},
		{"a command line in quotes", in("--", "echo hello"), 127, "run echo hello: "},
		{"no such pod", []string{"exec", "-t", "playground/none", "--", "true"}, 125, `no pod "none" in the playground`},
		{"no such process", []string{"exec", "-t", "process/4194304", "--", "true"}, 125, "target process/4194304: no such process"},
		{"not a process", []string{"exec", "-t", "process/x", "--", "true"}, 125, `target "process/x": "x" is no process id`},
		{"no such kind", []string{"exec", "-t", "thing", "--", "true"}, 125, `target "thing": want KIND/NAME`},
		{"no target", []string{"exec", "--", "true"}, 125, "no target"},
		{"no program", in(), 125, "no program to run"},
		{"unknown flag", []string{"exec", "--nonsense"}, 125, "unknown flag"},
		{"unknown command", []string{"nonsense"}, 125, `unknown command "nonsense"`},
		{"a command with a wrong letter", []string{"exce", "-t", "playground/orders", "--", "true"}, 125, `unknown command "exce" for "stead"`},
		{"an argument too many", []string{"port-forward", "-t", "playground/orders", "8080"}, 125, `stead port-forward takes flags alone, not "8080"`},
		{"a flag without its value", []string{"exec", "-t"}, 125, "flag needs an argument"},
		{"an impossible value", in("--follow", "soon", "--", "true"), 125, `invalid argument "soon"`},
		{"a time below zero", in("--follow", "-1s", "--", "true"), 125, "--follow -1s"},
		{"modes that exclude each other", in("--steal", "--mirror", "--", "true"), 125, "--steal, --mirror and --no-incoming exclude each other"},
		{"no such door", in("--files", "window", "--", "true"), 125, "--files window: no such way"},
		{"a path that is none", in("--files-pod", "etc", "--", "true"), 125, "path rule etc: not an absolute path"},
		{"an address that is none", in("--outgoing-laptop", "nowhere", "--", "true"), 125, "--outgoing-laptop nowhere"},
		{"a target that is none", in("--targetless", "--", "true"), 125, "--targetless has no target"},
		{"nested stead", in("--", stead, "exec", "-t", "playground/orders", "--", "true"), 125, "another supervisor listens to this process tree already"},

		{"exit code in the pod", pod("sh", "-c", "exit 9"), 9, ""},
		{"not found in the pod", pod("no-such-program"), 127, "run no-such-program in pod orders"},
		{"no such file in the pod", pod("/no/such"), 127, "run /no/such in pod orders"},
		{"not executable in the pod", pod("/etc/orders/config.yaml"), 126, "run /etc/orders/config.yaml in pod orders"},
		{"an empty name in the pod", pod(""), 127, "run in pod orders"},
		{"no command in the pod", pod(), 125, "want a command"},
		{"no pod and no command", []string{"playground", "exec"}, 125, "want a pod and a command"},
		{"an unknown command of a command", []string{"playground", "nonsense"}, 125, `unknown command "nonsense"`},
		{"a command in no pod", []string{"playground", "exec", "none", "--", "true"}, 125, `no pod "none" in the playground`},
		{"a call that fails", []string{"playground", "call", "http://orders:1/"}, 1, `Get "http://orders:1/": dial tcp`},
		{"a call to nowhere", []string{"playground", "call", "nonsense"}, 125, "call nonsense: no scheme"},
		{"a call without address", []string{"playground", "call"}, 125, "accepts 1 arg(s), received 0"},
		{"a second playground", []string{"playground", "up", "--detach"}, 125, "the playground is up already"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := b.Run(c.args...)
			if c.says != "" {
				failed(t, r, c.code, c.says)
			} else if r.Code != c.code || r.Stderr != "" {
				t.Errorf("exit code %d, want %d; stderr:\n%s", r.Code, c.code, r.Stderr)
			}
		})
	}
	down := &bed.Bed{Stead: stead, T: t, Env: append(os.Environ(), "STEAD_PLAYGROUND=never-up")}
	failed(t, down.Exec(nil, "true"), 125, "the playground is not up")
}

// Where a process may open few files, stead says so, or does what it can.
func TestFewDescriptorsAreExplained(t *testing.T) {
	t.Parallel()
	b := bed.Up(t, stead, "conformance-few")
	for _, n := range []int{12, 14, 16, 18, 20, 22, 24, 32, 48, 96} {
		b.Before = []string{"prlimit", fmt.Sprintf("--nofile=%d:%d", n, n), "--"}
		r := b.Exec(nil, "sh", "-c", "exit 42")
		var warnings, rest []string
		for _, l := range strings.SplitAfter(strings.TrimSuffix(r.Stderr, "\n"), "\n") {
			if strings.HasPrefix(l, "warning: ") {
				warnings = append(warnings, l)
			} else {
				rest = append(rest, l)
			}
		}
		if strings.Count(strings.Join(warnings, ""), "too many open files") != len(warnings) {
			t.Errorf("%d files: warnings %q", n, warnings)
		}
		r.Stderr = strings.Join(rest, "")
		if r.Code == 42 && r.Stderr == "" {
			continue
		}
		if failed(t, r, 125, ""); n >= 96 || !strings.Contains(r.Stderr, "too many open files\nhint: sudo prlimit --nofile=") {
			t.Errorf("%d files: exit code %d: %s", n, r.Code, r.Stderr)
		}
	}
}

func TestFlagsWithoutEffectAreToldOf(t *testing.T) {
	t.Parallel()
	b := bed.Up(t, stead, "conformance-flags")
	r := b.Exec([]string{"--no-incoming", "-n", "shop", "--replica", "one", "--agent", "job"}, "true")
	if want := "warning: --agent, --namespace, --replica: without effect, playground/orders is on this machine\n"; r.Code != 0 || r.Stderr != want {
		t.Errorf("exit code %d, %q", r.Code, r.Stderr)
	}
	if r := b.Exec([]string{"--no-incoming"}, "true"); r.Code != 0 || r.Stderr != "" {
		t.Errorf("without such flags: exit code %d, %q", r.Code, r.Stderr)
	}
}

// What the machine forbids, by a filter that answers as such a machine does.
func TestWhatTheMachineForbidsIsExplained(t *testing.T) {
	t.Parallel()
	dir := ordinary(t)
	b := bed.UpAs(t, filepath.Join(dir, "stead"), "conformance-forbidden", nobody)
	for _, c := range []struct{ forbidden, says string }{
		{"seccomp", "the kernel has no seccomp user notification"},
		{"listener", "another supervisor listens to this process tree already"},
		{"filters", "seccomp filters are forbidden here"},
		{"ptrace", "may not look into the program's process"},
	} {
		confined := *b
		confined.Before = []string{programs + "/confine", strconv.Itoa(nobody) + "," + c.forbidden}
		for _, door := range []string{"trap", "none"} {
			failed(t, confined.Exec([]string{"--files", door, "--no-incoming"}, "true"), 125, c.says)
		}
	}
}

func TestAnotherUsersProcessIsRefused(t *testing.T) {
	dir := ordinary(t)
	b := &bed.Bed{Stead: filepath.Join(dir, "stead"), T: t, Cred: &syscall.Credential{Uid: nobody, Gid: nobody}, Env: []string{"PATH=/usr/bin:/bin"}}
	r := b.Run("exec", "-t", "process/1", "--", "true")
	failed(t, r, 125, "")
	if !strings.Contains(r.Stderr, ": permission denied\n") && !strings.Contains(r.Stderr, ": operation not permitted\n") {
		t.Errorf("it says %s", r.Stderr)
	}
}
