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
	"runtime"
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
		{"go", "build", "-o", programs + "/names", "./test/internal/names"},
		{"musl-gcc", "-static", "-O1", "-o", programs + "/told", src + "/told.c"},
		{"cp", "-p", src + "/odd.py", src + "/doors.py", src + "/exec.py", src + "/names.py", src + "/sockets.py", src + "/waits.py", programs},
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
	t.Parallel()
	b := bed.Up(t, stead, "conformance-look")
	look(t, b, programs)
	// Where the door keeps something, a second session sees it, too.
	for _, door := range doors {
		same(t, b, []string{"--files", door}, programs+"/goprobe", "look")
	}
}

// look runs the whole corpus by every door.
func look(t *testing.T, b *bed.Bed, dir string) {
	for _, c := range corpus.Programs(dir) {
		t.Run(c.Name, func(t *testing.T) {
			native := b.Native(c.Look...)
			if native.Code != 0 || len(strings.Split(native.Stdout, "\n")) < 5 {
				t.Fatalf("natively in the pod: exit code %d\n%s%s", native.Code, native.Stdout, native.Stderr)
			}
			for _, door := range doors {
				asNatively(t, b, native, []string{"--files", door}, c.Look...)
			}
		})
	}
}

// same runs a program natively in the pod and under stead, and compares all that it says.
func same(t *testing.T, b *bed.Bed, flags []string, argv ...string) {
	t.Helper()
	native := b.Native(argv...)
	if native.Code != 0 || native.Stdout == "" {
		t.Fatalf("%q natively in the pod: exit code %d\n%s%s", argv, native.Code, native.Stdout, native.Stderr)
	}
	asNatively(t, b, native, flags, argv...)
}

// asNatively runs a program under stead and compares with what it said natively.
func asNatively(t *testing.T, b *bed.Bed, native bed.Result, flags []string, argv ...string) {
	t.Helper()
	under := b.Exec(append([]string{"--no-incoming"}, flags...), argv...)
	if diff := cmp.Diff(native.Stdout, under.Stdout); diff != "" || under.Code != native.Code {
		t.Errorf("%q %q: exit code %d, natively %d, stderr %s\n- pod + stead:\n%s", flags, argv, under.Code, native.Code, under.Stderr, diff)
	}
	if under.Stderr != native.Stderr {
		t.Errorf("%q %q: stderr under stead is %q, natively %q", flags, argv, under.Stderr, native.Stderr)
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

// Nothing is done for a program of another ABI; it runs as it would without us, and its user is told, once.
func TestAProgramOf32BitsIsToldOf(t *testing.T) {
	t.Parallel()
	b := bed.Up(t, stead, "conformance-32")
	probe := t.TempDir() + "/probe32"
	build := exec.Command("go", "build", "-o", probe, "./programs/goprobe")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH="+map[string]string{"amd64": "386", "arm64": "arm"}[runtime.GOARCH])
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	argv := []string{probe, "errnos", "127.0.0.1", "::1"}
	native, err := exec.Command(argv[0], argv[1:]...).Output()
	if err != nil { // this machine runs none
		if r := b.Exec([]string{"--no-incoming"}, argv...); r.Code != 126 {
			t.Errorf("natively %v, under stead exit code %d: %s", err, r.Code, r.Stderr)
		}
		return
	}
	for _, door := range doors {
		r := b.Exec([]string{"--files", door, "--no-incoming"}, argv...)
		if r.Stdout != string(native) || r.Code != 0 {
			t.Errorf("by %s: exit code %d, %q, want %q", door, r.Code, r.Stdout, native)
		}
		if n := strings.Count(r.Stderr, "warning: probe32 is a program of 32 bits: "); n != 1 || strings.Count(r.Stderr, "hint: ") != 1 {
			t.Errorf("by %s: told %d times: %s", door, n, r.Stderr)
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
	if during < before/4 || before < 100 || failed != 0 {
		t.Errorf("ticks %d during the dials, %d before them; %d of the dials failed", during, before, failed)
	}
}

func TestTheEnvironmentIsThePodsOverTheLaptops(t *testing.T) {
	b := bed.Up(t, stead, "conformance-env")
	b.Env = append(b.Env, "ONLY_HERE=laptop", "GREETING=from the laptop", "PYTHONPATH=/var/tmp/laptop")
	native := b.Native("env").Stdout
	for _, own := range []string{"PATH", "HOME", "PWD", "PYTHONPATH", "JAVA_HOME"} {
		if !strings.Contains("\n"+native, "\n"+own+"=/") {
			t.Fatalf("the pod has no %s of its own:\n%s", own, native)
		}
	}
	got := map[string]string{}
	for _, kv := range strings.Split(b.Exec(nil, "env").Stdout, "\n") {
		k, v, _ := strings.Cut(kv, "=")
		got[k] = v
	}
	if strings.Contains(fmt.Sprint(got), "/home/pod") {
		t.Errorf("places of the pod's have come: %v", got)
	}
	for k, want := range map[string]string{
		"POD_NAME": "orders-0", "GREETING": "hello from the pod", "ONLY_HERE": "laptop",
		"DATABASE_URL": "tcp://db.shop.svc.cluster.local:5432", "HOME": os.Getenv("HOME"), "PATH": os.Getenv("PATH"),
		"PWD": os.Getenv("PWD"), "PYTHONPATH": "/var/tmp/laptop", "JAVA_HOME": os.Getenv("JAVA_HOME"),
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
