// Package conformance runs real programs natively in a pod and under stead on the laptop, and
// compares what they saw.
package conformance

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stead-dev/stead/test/internal/bed"
	"github.com/stead-dev/stead/test/internal/corpus"
)

var (
	stead    string
	programs string // built ones
)

func TestMain(m *testing.M) {
	// Started by nohup we ignore it, and so would all that we start.
	// What is caught is not inherited.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	var err error
	if stead, err = bed.Build("conformance"); err == nil {
		programs = filepath.Join(bed.Cache(), "programs")
		err = buildPrograms()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// buildPrograms compiles the corpus, and what only this suite runs.
func buildPrograms() error {
	if err := corpus.Build(programs); err != nil {
		return err
	}
	src := filepath.Join(bed.Root(), "test/conformance/programs")
	for _, argv := range [][]string{
		{"go", "build", "-o", programs + "/confine", "./test/internal/confine"},
		{"musl-gcc", "-static", "-O1", "-o", programs + "/told", src + "/told.c"},
		{"cp", "-p", src + "/odd.py", src + "/doors.py", src + "/exec.py", src + "/waits.py", programs},
	} {
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Dir = bed.Root()
		if b, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %v\n%s", strings.Join(argv, " "), err, b)
		}
	}
	return nil
}

// doors are the ways by which files are shown: each test on files runs through every one.
var doors = []string{"mount", "trap", "copy"}

func TestProgramsSeeWhatTheySeeInThePod(t *testing.T) {
	b := bed.Up(t, stead, "conformance-look")
	for _, c := range corpus.Programs(programs) {
		native := b.Native(c.Look...)
		if native.Code != 0 || len(strings.Split(native.Stdout, "\n")) < 5 {
			t.Fatalf("%s natively in the pod: exit code %d\n%s%s", c.Name, native.Code, native.Stdout, native.Stderr)
		}
		for _, door := range doors {
			for _, again := range []string{"", " again"} {
				t.Run(c.Name+" by "+door+again, func(t *testing.T) {
					under := b.Exec([]string{"--files", door, "--no-incoming"}, c.Look...)
					if diff := cmp.Diff(native.Stdout, under.Stdout); diff != "" || under.Code != native.Code {
						t.Errorf("exit code %d, stderr %s\n- pod + stead:\n%s", under.Code, under.Stderr, diff)
					}
					if under.Stderr != native.Stderr {
						t.Errorf("stderr under stead is %q, natively %q", under.Stderr, native.Stderr)
					}
				})
			}
		}
	}
}

func TestStolenAndMirroredRequestsReachProgramsWithTheirRealClient(t *testing.T) {
	b := bed.Up(t, stead, "conformance-serve")
	for _, c := range corpus.Programs(programs) {
		for _, mode := range []string{"--steal", "--mirror"} {
			t.Run(c.Name+" "+mode, func(t *testing.T) { serve(t, b, c.Serve, mode) })
		}
	}
}

var bodyFrom = regexp.MustCompile(`^(\w+) program: (GET /\S+) from (\S+)`)

func serve(t *testing.T, b *bed.Bed, program []string, mode string) {
	const count = 3
	argv := append(slices.Clone(program), "8080", strconv.Itoa(count))
	cmd := b.Command(append([]string{"exec", "--target", "playground/orders", mode, "--"}, argv...)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var errs strings.Builder
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	lines := bufio.NewScanner(out)
	if !lines.Scan() || lines.Text() != "listening 8080" {
		t.Fatalf("first line %q, stderr %s", lines.Text(), errs.String())
	}
	urls := []string{"http://10.244.0.11:8080/one", "http://[fd00:244::11]:8080/two", "http://orders:8080/three"}
	if program[0] == "python3" { // listens on IPv4 alone
		urls[1], urls[2] = "http://10.244.0.11:8080/two", "http://10.244.0.11:8080/three"
	}
	for _, url := range urls {
		r := b.Call(url)
		if mode == "--mirror" {
			if !strings.HasPrefix(r.Stdout, "orders-0 (pod): GET /") {
				t.Errorf("%s: the app did not answer: %q %s", url, r.Stdout, r.Stderr)
			}
		} else if m := bodyFrom.FindStringSubmatch(r.Stdout); m == nil || m[3] != "10.244.0.13" && !strings.HasPrefix(m[3], "fd00:244:") {
			t.Errorf("%s: the program did not answer with the client's address: %q %s", url, r.Stdout, r.Stderr)
		}
	}
	served := 0
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) != 4 || f[0] != "served" || f[3] != "10.244.0.13" && !strings.HasPrefix(f[3], "fd00:244:") {
			t.Errorf("unexpected line %q", lines.Text())
		}
		served++
	}
	cmd.Wait()
	if served != count || cmd.ProcessState.ExitCode() != 0 {
		t.Errorf("served %d of %d, exit code %d, stderr %s", served, count, cmd.ProcessState.ExitCode(), errs.String())
	}
	if r := b.Call("http://orders:8080/after"); r.Stdout != "orders-0 (pod): GET /after\n" {
		t.Errorf("after the session: %q %s", r.Stdout, r.Stderr)
	}
}

func TestStrangeFilesLookAsInThePod(t *testing.T) {
	b := bed.Up(t, stead, "conformance-odd")
	if r := b.Native("python3", programs+"/odd.py", "make"); r.Code != 0 {
		t.Fatal(r.Stderr)
	}
	native := b.Native("python3", programs+"/odd.py", "look")
	for _, door := range doors {
		under := b.Exec([]string{"--files", door, "--no-incoming"}, "python3", programs+"/odd.py", "look")
		if diff := cmp.Diff(native.Stdout, under.Stdout); diff != "" || native.Code != 0 || under.Code != 0 {
			t.Errorf("by %s: exit codes %d and %d, stderr %s\n- pod + stead:\n%s", door, native.Code, under.Code, native.Stderr+under.Stderr, diff)
		}
		r := b.Exec([]string{"--files", door, "--no-incoming"}, "bash", "-c",
			"echo x > /etc/orders/new; echo x >> /etc/orders/config.yaml; rm /etc/orders/config.yaml; mkdir /var/data/d; mv /var/data/link /var/data/l; chmod 0 /var/data/big.bin")
		if n := strings.Count(r.Stderr, "Read-only file system"); n != 6 {
			t.Errorf("by %s: %d of 6 writes told that the file system is read-only:\n%s", door, n, r.Stderr)
		}
	}
}

func TestDialsThatAreNeverAnsweredStopNoGoroutine(t *testing.T) {
	b := bed.Up(t, stead, "conformance-blackhole")
	// The pods' switch forwards nothing: a packet to this documentation address goes nowhere.
	r := b.Exec([]string{"--no-incoming"}, programs+"/goprobe", "blackhole", "198.51.100.1:80")
	var before, during, failed int
	if _, err := fmt.Sscanf(r.Stdout, "ticks %d %d failed %d", &before, &during, &failed); err != nil {
		t.Fatalf("%v: %q %s", err, r.Stdout, r.Stderr)
	}
	t.Logf("ticks of another goroutine in the same time: %d without, %d during 1,000 pending dials", before, during)
	if during == 0 || failed != 0 {
		t.Errorf("ticks %d during the dials, %d of which failed", during, failed)
	}
}

func TestTheEnvironmentIsThePodsOverTheLaptops(t *testing.T) {
	b := bed.Up(t, stead, "conformance-env")
	b.Env = append(b.Env, "ONLY_HERE=laptop", "GREETING=from the laptop")
	got := map[string]string{}
	for _, kv := range strings.Split(b.Exec(nil, "env").Stdout, "\n") {
		k, v, _ := strings.Cut(kv, "=")
		got[k] = v
	}
	for k, want := range map[string]string{
		"POD_NAME": "orders-0", "GREETING": "hello from the pod", "ONLY_HERE": "laptop",
		"DATABASE_URL": "tcp://db.shop.svc.cluster.local:5432", "HOME": os.Getenv("HOME"), "PATH": os.Getenv("PATH"),
	} {
		if got[k] != want {
			t.Errorf("%s is %q, want %q", k, got[k], want)
		}
	}
}

// The laptop's tools have a part of themselves in /etc, of which most pods know nothing.
func TestToolsOfTheLaptopStartWhereThePodHasNothingOfTheirs(t *testing.T) {
	b := bed.Up(t, stead, "conformance-tools")
	if r := b.Native("rm", "-rf", "/etc/maven", "/etc/pam.d", "/etc/pam.conf", "/etc/security"); r.Code != 0 {
		t.Fatal(r.Stderr)
	}
	for _, argv := range [][]string{{"su", "-c", "echo by PAM"}, {"mvn", "-o", "-v"}} {
		if _, err := exec.LookPath(argv[0]); err != nil {
			continue // not every machine builds Java
		}
		c := exec.Command(argv[0], argv[1:]...)
		laptop, err := c.Output()
		if err != nil {
			t.Errorf("%s without stead: %v", argv[0], err)
			continue
		}
		for _, door := range doors {
			r := b.Exec([]string{"--files", door, "--no-incoming"}, argv...)
			if diff := cmp.Diff(string(laptop), r.Stdout); diff != "" || r.Code != 0 {
				t.Errorf("%s by %s: exit code %d, stderr %s\n- laptop + stead:\n%s", argv[0], door, r.Code, r.Stderr, diff)
			}
		}
	}
}

func TestExitCodesAndErrors(t *testing.T) {
	b := bed.Up(t, stead, "conformance-exit")
	plain := filepath.Join(bed.Cache(), "not-executable")
	if err := os.WriteFile(plain, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		args []string
		code int
		says string // on stderr; "" means silence
	}{
		{"the program's own", []string{"exec", "-t", "playground/orders", "--", "sh", "-c", "exit 42"}, 42, ""},
		{"death by a signal", []string{"exec", "-t", "playground/orders", "--", "sh", "-c", "kill -SEGV $$"}, 139, ""},
		{"not found in PATH", []string{"exec", "-t", "playground/orders", "--", "no-such-program"}, 127, "error: run no-such-program: not found in PATH"},
		{"no such file", []string{"exec", "-t", "playground/orders", "--", "./no/such"}, 127, "error: run ./no/such: no such file"},
		{"not executable", []string{"exec", "-t", "playground/orders", "--", plain}, 126, "error: run " + plain + ": permission denied"},
		{"a directory", []string{"exec", "-t", "playground/orders", "--", "/etc"}, 126, "error: run /etc: is a directory"},
		{"a command line in quotes", []string{"exec", "-t", "playground/orders", "--", "echo hello"}, 127, "hint: each word by itself: -- echo hello"},
		{"an empty name", []string{"exec", "-t", "playground/orders", "--", ""}, 127, `error: run "": not found`},
		{"no such pod", []string{"exec", "-t", "playground/none", "--", "true"}, 125, `error: no pod "none" in the playground`},
		{"no such process", []string{"exec", "-t", "process/4194304", "--", "true"}, 125, "error: target process/4194304: no such process"},
		{"no such kind", []string{"exec", "-t", "thing", "--", "true"}, 125, `error: target "thing": want KIND/NAME`},
		{"no target", []string{"exec", "--", "true"}, 125, "error: no target"},
		{"no program", []string{"exec", "-t", "playground/orders"}, 125, "error: no program to run"},
		{"unknown flag", []string{"exec", "--nonsense"}, 125, "error: unknown flag"},
		{"no such door", []string{"exec", "-t", "playground/orders", "--files", "fuse", "--", "true"}, 125, "hint: --files auto, mount, trap, copy or none"},
		{"no such command", []string{"exce", "-t", "playground/orders", "--", "true"}, 125, "error: unknown command \"exce\" for \"stead\"\nhint: stead exec"},
		{"no such command at all", []string{"frobnicate"}, 125, "error: unknown command \"frobnicate\" for \"stead\"\nhint: stead --help"},
		{"no such command of the playground", []string{"playground", "upp"}, 125, "error: unknown command \"upp\" for \"stead playground\"\nhint: stead playground up"},
		{"no help on it", []string{"help", "frobnicate"}, 125, "error: unknown command \"frobnicate\" for \"stead\""},
		{"an argument too many", []string{"port-forward", "-t", "playground/orders", "8080"}, 125, `error: stead port-forward takes flags alone, not "8080"`},
		{"an argument too few", []string{"playground", "call"}, 125, "error: accepts 1 arg(s), received 0"},
		{"a call without a scheme", []string{"playground", "call", "orders:8080"}, 125, "hint: stead playground call http://orders:8080"},
		{"nested stead", []string{"exec", "-t", "playground/orders", "--", stead, "exec", "-t", "playground/orders", "--", "true"}, 125, "error: another supervisor listens to this process tree already"},
		{"exit code in the pod", []string{"playground", "exec", "orders", "--", "sh", "-c", "exit 9"}, 9, ""},
		{"not found in the pod", []string{"playground", "exec", "orders", "--", "no-such-program"}, 127, "error: run no-such-program"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := b.Run(c.args...)
			if r.Code != c.code || c.says == "" && r.Stderr != "" || !strings.Contains(r.Stderr, c.says) {
				t.Errorf("exit code %d, want %d; stderr:\n%s", r.Code, c.code, r.Stderr)
			}
			if c.code >= 125 && c.code <= 127 && strings.Count(r.Stderr, "\nhint: ") != 1 && !strings.HasPrefix(c.name, "not found in the pod") {
				t.Errorf("want one error and one hint, got:\n%s", r.Stderr)
			}
		})
	}
	down := &bed.Bed{Stead: stead, T: t, Env: append(os.Environ(), "STEAD_PLAYGROUND=never-up")}
	if r := down.Exec(nil, "true"); r.Code != 125 || !strings.Contains(r.Stderr, "hint: stead playground up") {
		t.Errorf("with no playground: exit code %d\n%s", r.Code, r.Stderr)
	}
}

func TestASecondStealIsRefusedAndNamesItsHolder(t *testing.T) {
	b := bed.Up(t, stead, "conformance-holder")
	first := b.Command("exec", "-t", "playground/orders", "--steal", "--", "python3", programs+"/probe.py", "serve", "8080", "1")
	out, err := first.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	defer first.Process.Kill()
	bufio.NewReader(out).ReadString('\n')
	r := b.Exec([]string{"--steal"}, programs+"/goprobe", "serve", "8080", "1")
	if r.Code == 0 || !strings.Contains(r.Stderr, "address already in use") || !strings.Contains(r.Stderr, "is stealing it already") {
		t.Errorf("the second steal: exit code %d\n%s", r.Code, r.Stderr)
	}
	if r := b.Call("http://orders:8080/first"); !strings.HasPrefix(r.Stdout, "python program") {
		t.Errorf("the holder lost its port: %q %s", r.Stdout, r.Stderr)
	}
	first.Wait()
}
