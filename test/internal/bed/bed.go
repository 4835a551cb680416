// Package bed gives tests the built stead and a playground of their own.
package bed

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Root is the repository's directory.
func Root() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "../../..")
}

// Cache is where tests build what pods and laptop both run: a directory that a pod sees too. Its
// /tmp and /run are its own.
func Cache() string {
	for _, own := range []string{"/tmp/", "/run/"} {
		if strings.HasPrefix(Root(), own) {
			return filepath.Join("/var/tmp", "stead-test-"+strings.ReplaceAll(strings.Trim(Root(), "/"), "/", "-"))
		}
	}
	return filepath.Join(Root(), ".cache", "test")
}

// Build builds stead and returns its path. Each test package builds its own, so that they can run
// side by side; the compiler's cache makes that cheap.
func Build(name string) (string, error) {
	out := filepath.Join(Cache(), name, "stead")
	m := exec.Command("make", "-s", "launcher") // what it carries
	m.Dir = Root()
	if b, err := m.CombinedOutput(); err != nil {
		return "", fmt.Errorf("make launcher: %v\n%s", err, b)
	}
	c := exec.Command("go", "build", "-o", out, "./cmd/stead")
	c.Dir = Root()
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := c.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build stead: %v\n%s", err, b)
	}
	return out, nil
}

// Bed is a playground and the stead that made it.
type Bed struct {
	Stead string
	Env   []string
	Cred  *syscall.Credential // whose it is, nil for ours
	T     testing.TB
	// Before is a command that runs stead, for the user that it sees fit.
	Before []string
}

// Own makes of a name one that another clone's tests, which may run beside ours, do not use.
func Own(name string) string {
	clone := fnv.New32a()
	clone.Write([]byte(Root()))
	return fmt.Sprintf("%s-%x", name, clone.Sum32())
}

// Playground is the variable that keeps a test's playground apart from others.
func Playground(name string) string { return "STEAD_PLAYGROUND=" + Own(name) }

// Up starts a playground that ends with the test. name keeps it apart from others.
func Up(t testing.TB, stead, name string, args ...string) *Bed {
	t.Helper()
	b := &Bed{Stead: stead, T: t, Env: append(os.Environ(), Playground(name))}
	b.start(args...)
	return b
}

func (b *Bed) start(args ...string) {
	b.T.Helper()
	if r := b.Run(append([]string{"playground", "up", "--detach"}, args...)...); r.Code != 0 {
		b.T.Fatalf("playground up: %s", r.Stderr)
	}
	b.T.Cleanup(func() { b.Run("playground", "down") })
}

// UpOn is Up where before, a command, runs what follows it.
func UpOn(t testing.TB, stead, name string, before ...string) *Bed {
	t.Helper()
	b := &Bed{Stead: stead, T: t, Before: before, Env: append(os.Environ(), Playground(name))}
	b.start()
	return b
}

// UpAs is Up for another user, with a home of its own.
func UpAs(t testing.TB, stead, name string, uid uint32) *Bed {
	t.Helper()
	home, err := os.MkdirTemp("/var/tmp", "stead-home")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(home) })
	if err := os.Chown(home, int(uid), int(uid)); err != nil {
		t.Fatal(err)
	}
	b := &Bed{
		Stead: stead, T: t, Cred: &syscall.Credential{Uid: uid, Gid: uid},
		Env: []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, Playground(name)},
	}
	b.start()
	return b
}

// Result is how a command ended.
type Result struct {
	Stdout, Stderr string
	Code           int
}

// Command prepares stead with args.
func (b *Bed) Command(args ...string) *exec.Cmd {
	argv := append(append(slices.Clone(b.Before), b.Stead), args...)
	c := exec.Command(argv[0], argv[1:]...)
	c.Env = b.Env
	c.Dir = Root()
	if b.Cred != nil {
		c.Dir = "/"
	}
	if len(b.Before) == 0 {
		c.SysProcAttr = &syscall.SysProcAttr{Credential: b.Cred}
	}
	return c
}

// Limit bounds every command of a test: far more than any takes, a hang and not a slow machine.
const Limit = 3 * time.Minute

// Run runs stead with args to its end.
func (b *Bed) Run(args ...string) Result {
	b.T.Helper()
	c := b.Command(args...)
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	if err := c.Start(); err != nil {
		b.T.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), Limit)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { c.Process.Signal(syscall.SIGKILL) })
	c.Wait()
	if !stop() {
		b.T.Errorf("stead %s did not end within %v", strings.Join(args, " "), Limit)
	}
	code := c.ProcessState.ExitCode()
	if ws := c.ProcessState.Sys().(syscall.WaitStatus); ws.Signaled() {
		code = 128 + int(ws.Signal())
	}
	return Result{out.String(), errs.String(), code}
}

// Exec runs a program under stead in the stead of orders.
func (b *Bed) Exec(flags []string, argv ...string) Result {
	b.T.Helper()
	args := append([]string{"exec", "--target", "playground/orders"}, flags...)
	return b.Run(append(append(args, "--"), argv...)...)
}

// Native runs a command in the pod orders.
func (b *Bed) Native(argv ...string) Result {
	b.T.Helper()
	return b.Run(append([]string{"playground", "exec", "orders", "--"}, argv...)...)
}

// Call sends one request from the client pod to orders' app and returns the answer.
func (b *Bed) Call(args ...string) Result {
	b.T.Helper()
	return b.Run(append([]string{"playground", "call"}, args...)...)
}

// Status of the playground.
type Status struct {
	PID  int
	Pods []struct {
		Name     string
		PID      int
		IPs      []string
		Restarts int
		Agent    int
	}
}

// Status asks for the playground's.
func (b *Bed) Status() (st Status) {
	b.T.Helper()
	r := b.Run("playground", "status", "-o", "json")
	if r.Code != 0 {
		b.T.Fatalf("status: %s", r.Stderr)
	}
	if err := json.Unmarshal([]byte(r.Stdout), &st); err != nil {
		b.T.Fatal(err)
	}
	return st
}

// Eventually waits until f says that it is so.
func Eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("not within a minute: %s", what)
}
