// Package death kills each part of a session during traffic and looks for what is left.
package death

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/stead-dev/stead/test/internal/bed"
)

var stead, confine string

// name is the comm of our processes: a copy of the binary under a name that nobody else has.
const name = "stead-death"

func TestMain(m *testing.M) {
	built, err := bed.Build("death")
	if err == nil {
		stead = filepath.Join(filepath.Dir(built), name)
		err = os.Rename(built, stead)
	}
	if err == nil {
		confine = filepath.Join(filepath.Dir(built), "confine")
		c := exec.Command("go", "build", "-o", confine, "./test/internal/confine")
		c.Dir = bed.Root()
		err = c.Run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	before = traces(nil)
	os.Exit(m.Run())
}

const times = 20

// traces is everything of ours on this machine that a session could leave behind.
func traces(t testing.TB) []string {
	var out []string
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		exe, err := os.Readlink(p + "/exe")
		if err != nil || !strings.HasPrefix(exe, stead) && !strings.HasPrefix(exe, "/memfd:stead-launch") {
			continue
		}
		cmd, _ := os.ReadFile(p + "/cmdline")
		args := strings.ReplaceAll(strings.TrimRight(string(cmd), "\x00"), "\x00", " ")
		if strings.Contains(args, "__playground") || strings.Contains(args, "__pod") || strings.Contains(args, "__app") {
			continue
		}
		out = append(out, "process "+args)
	}
	for _, pattern := range []string{"/tmp/*stead*", "/var/tmp/*stead*", "/run/*stead*", "/run/user/*/*stead*", "/dev/shm/*stead*"} {
		found, _ := filepath.Glob(pattern)
		for _, f := range found {
			st, err := os.Lstat(f)
			if err != nil || st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
				continue // a program that somebody builds beside us: a session makes none
			}
			out = append(out, "file "+f)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range strings.Split(string(mounts), "\n") {
		if strings.Contains(l, "stead") {
			out = append(out, "mount "+l)
		}
	}
	for id, err := ebpf.ProgramGetNextID(0); err == nil; id, err = ebpf.ProgramGetNextID(id) {
		p, err := ebpf.NewProgramFromID(id)
		if err != nil {
			continue
		}
		if i, err := p.Info(); err == nil && strings.HasPrefix(i.Name, "stead") {
			out = append(out, "BPF program "+i.Name)
		}
		p.Close()
	}
	sockets, _ := os.ReadFile("/proc/net/unix")
	for _, l := range strings.Split(string(sockets), "\n") {
		if strings.Contains(l, "stead") && !strings.Contains(l, "stead-playground") {
			out = append(out, "socket "+l)
		}
	}
	out = slices.DeleteFunc(out, func(s string) bool { return slices.Contains(before, s) })
	slices.Sort(out)
	return out
}

// before is what this machine had when the tests began, whosever it is.
var before []string

// traffic sends requests to orders until stop is called, and gives how many were answered at all.
func traffic(b *bed.Bed) (stop func() int64) {
	var n atomic.Int64
	done := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-done:
				return
			default:
			}
			if b.Call("--count", "20", "--concurrency", "4", "http://orders:8080/traffic").Stdout != "" {
				n.Add(1)
			}
		}
	}()
	return func() int64 { close(done); <-ended; return n.Load() }
}

// server is a program that serves for ever, reads a large file of the pod's over and over, and
// keeps a connection out of the pod busy. It has children, one of which daemonizes.
const server = `
import http.server, os, socket, threading, time
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        b = b"program\n"; self.send_response(200); self.send_header("Content-Length", str(len(b))); self.end_headers(); self.wfile.write(b)
    def log_message(self, *a): pass
class S(http.server.ThreadingHTTPServer): request_queue_size = 128
s = S(("0.0.0.0", 8080), H)
def files():
    while True:
        with open("/var/data/big.bin", "rb") as f:
            while f.read(1 << 20): pass
        os.listdir("/var/data/many")
def connection():
    c = socket.create_connection(("db", 5432)); f = c.makefile("rb")
    while True: c.sendall(b"x" * 1000 + b"\n"); f.readline()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while True: time.sleep(1)
    os._exit(0)
for f in (files, connection): threading.Thread(target=f, daemon=True).start()
print("ready", flush=True)
s.serve_forever()
`

// inDirectory, before the flags of a session, makes copies of the pod's files go to a directory: no other
// place can be had.
const inDirectory = "in a directory"

// places are the directories with copies of the pod's files.
func places() (out []string) {
	for _, dir := range []string{"/dev/shm", os.TempDir()} {
		found, _ := filepath.Glob(dir + "/stead-files-*")
		out = append(out, found...)
	}
	return out
}

// session starts the server under stead and returns when it is served.
func session(t *testing.T, b *bed.Bed, flags ...string) *exec.Cmd {
	t.Helper()
	if len(flags) > 0 && flags[0] == inDirectory {
		confined := *b
		confined.Before = []string{confine, "0,admin,userns"}
		b, flags = &confined, flags[1:]
	}
	c := b.Command(append(append([]string{"exec", "-t", "playground/orders", "--steal"}, flags...), "--", "python3", "-c", server)...)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var errs strings.Builder
	c.Stderr = &errs
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Process.Kill() })
	if line, _ := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("the program did not begin: %s", errs.String())
	}
	if r := b.Call("http://orders:8080/"); r.Stdout != "program\n" {
		t.Fatalf("nothing is stolen: %q %s", r.Stdout, r.Stderr)
	}
	return c
}

// below finds a process of the session by a word of its command line.
func below(t *testing.T, pid int, word string) int {
	t.Helper()
	out, err := exec.Command("ps", "-e", "-o", "pid=,ppid=,args=").Output()
	if err != nil {
		t.Fatal(err)
	}
	tree := map[int]bool{pid: true}
	for range 3 {
		for _, l := range strings.Split(string(out), "\n") {
			var p, pp int
			if n, _ := fmt.Sscan(l, &p, &pp); n == 2 && tree[pp] {
				tree[p] = true
				if strings.Contains(l, word) {
					return p
				}
			}
		}
	}
	t.Fatalf("no process %q below %d", word, pid)
	return 0
}

func TestWhoeverDiesNothingIsLeftAndTheAppAnswers(t *testing.T) {
	for _, c := range []struct {
		victim string
		find   func(t *testing.T, b *bed.Bed, s *exec.Cmd) int
		code   int // stead's exit code, -1 where it was the victim
		flags  []string
	}{
		{"supervisor", func(t *testing.T, b *bed.Bed, s *exec.Cmd) int { return s.Process.Pid }, -1, nil},
		{"supervisor that traps path calls", func(t *testing.T, b *bed.Bed, s *exec.Cmd) int { return s.Process.Pid }, -1, []string{"--files", "trap"}},
		{"supervisor with copies of files in memory", func(t *testing.T, b *bed.Bed, s *exec.Cmd) int { return s.Process.Pid }, -1, []string{"--files", "copy"}},
		{"supervisor with copies of files in a directory", func(t *testing.T, b *bed.Bed, s *exec.Cmd) int { return s.Process.Pid }, -1, []string{inDirectory, "--files", "copy"}},
		{"guard", func(t *testing.T, b *bed.Bed, s *exec.Cmd) int { return below(t, s.Process.Pid, "__guard") }, 137, nil},
		{"program", func(t *testing.T, b *bed.Bed, s *exec.Cmd) int { return below(t, s.Process.Pid, "python3") }, 137, nil},
		{"agent", func(t *testing.T, b *bed.Bed, s *exec.Cmd) int { return b.Status().Pods[0].Agent }, 125, []string{"--follow", "0"}},
		{"app of the pod", func(t *testing.T, b *bed.Bed, s *exec.Cmd) int { return b.Status().Pods[0].PID }, 125, []string{"--follow", "0"}},
	} {
		t.Run(c.victim, func(t *testing.T) {
			if left := traces(t); len(left) > 0 {
				t.Fatalf("before the test: %s", strings.Join(left, "\n"))
			}
			b := bed.Up(t, stead, "death")
			for i := range times {
				s := session(t, b, c.flags...)
				stop := traffic(b)
				time.Sleep(time.Duration(20+37*i%100) * time.Millisecond) // at a different moment each time
				if named := slices.Contains(c.flags, inDirectory); named != (len(places()) == 1) {
					t.Fatalf("copies are in %q", places())
				}
				if err := syscall.Kill(c.find(t, b, s), syscall.SIGKILL); err != nil {
					t.Fatalf("kill: %v", err)
				}
				ended := make(chan struct{})
				go func() { s.Wait(); close(ended) }()
				select {
				case <-ended:
				case <-time.After(bed.Limit):
					t.Fatal("stead does not end")
				}
				if code := s.ProcessState.ExitCode(); code != c.code {
					t.Errorf("time %d: exit code %d, want %d; stderr %s", i, code, c.code, s.Stderr)
				}
				stop()
				// A connection that began before the death may have been cut; every later one is
				// the app's.
				if c.victim == "app of the pod" {
					bed.Eventually(t, "the app is restarted", func() bool { return b.Status().Pods[0].Restarts >= i+1 })
				}
				for range 3 {
					if r := b.Call("http://orders:8080/later"); r.Stdout != "orders-0 (pod): GET /later\n" {
						t.Errorf("time %d: afterwards %q %s", i, r.Stdout, r.Stderr)
					}
				}
				// The playground keeps an agent for its next session for a moment.
				var left []string
				bed.Eventually(t, "nothing is left", func() bool {
					left = slices.DeleteFunc(traces(t), func(s string) bool { return strings.HasPrefix(s, "process ") && strings.Contains(s, "agent serve") })
					return len(left) == 0
				})
			}
			bed.Eventually(t, "the agent ends when nobody needs it", func() bool { return len(traces(t)) == 0 })
			b.Run("playground", "down")
			bed.Eventually(t, "the playground is gone", func() bool {
				out, _ := exec.Command("pgrep", "-f", "^stead __|"+name+" __").Output()
				return len(out) == 0
			})
		})
	}
}

// A session that follows its pod goes on with another agent beside it, and leaves as little.
func TestASessionOutlivesItsAgentAndTheAppItStandsFor(t *testing.T) {
	b := bed.Up(t, stead, "death-follow")
	s := session(t, b)
	for i := range times {
		stop := traffic(b)
		time.Sleep(time.Duration(20+37*i%100) * time.Millisecond)
		st := b.Status().Pods[0]
		victim, app := st.Agent, i%2 == 1
		if app {
			victim = st.PID
		}
		if err := syscall.Kill(victim, syscall.SIGKILL); err != nil {
			t.Fatalf("kill: %v", err)
		}
		bed.Eventually(t, "another agent stands there", func() bool {
			now := b.Status().Pods[0]
			return now.Agent != 0 && now.Agent != st.Agent && now.PID != 0 && (now.PID != st.PID) == app
		})
		bed.Eventually(t, "the program answers", func() bool { return b.Call("http://orders:8080/").Stdout == "program\n" })
		stop()
	}
	if err := s.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	s.Wait()
	if r := b.Call("http://orders:8080/later"); r.Stdout != "orders-0 (pod): GET /later\n" {
		t.Errorf("afterwards %q %s", r.Stdout, r.Stderr)
	}
	bed.Eventually(t, "nothing is left", func() bool { return len(traces(t)) == 0 })
}

func TestKillingTheDaemonTakesThePlaygroundAlong(t *testing.T) {
	for i := range times {
		b := bed.Up(t, stead, "death-daemon")
		st := b.Status()
		s := session(t, b)
		if err := syscall.Kill(st.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		s.Wait()
		if code := s.ProcessState.ExitCode(); code != 125 {
			t.Errorf("time %d: the session ended with %d; stderr %s", i, code, s.Stderr)
		}
		bed.Eventually(t, "the pods are gone", func() bool {
			for _, p := range st.Pods {
				if _, err := os.Stat(fmt.Sprintf("/proc/%d", p.PID)); err == nil {
					return false
				}
			}
			return len(traces(t)) == 0
		})
	}
}

// When nobody is left to remove the copies of the pod's files, the next session does; it leaves alone
// those of a session that lives.
func TestCopiesThatNobodyRemovedAreSweptByTheNextSession(t *testing.T) {
	confined := *bed.Up(t, stead, "death-sweep")
	confined.Before = []string{confine, "0,admin,userns"}
	begin := func() *exec.Cmd {
		c := confined.Command("exec", "-t", "playground/orders", "--files", "copy", "--no-incoming", "--", "sh", "-c", "cat /etc/hostname; exec sleep 1000")
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Process.Kill() })
		if line, _ := bufio.NewReader(out).ReadString('\n'); line != "orders-0\n" {
			t.Fatalf("the program did not begin: %q", line)
		}
		return c
	}
	living := begin()
	own := places()
	if len(own) != 1 {
		t.Fatalf("copies of one session are in %q", own)
	}
	for i := range 5 {
		s := begin()
		guard := below(t, s.Process.Pid, "__guard")
		for _, pid := range []int{guard, s.Process.Pid} {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		s.Wait()
		if left := places(); len(left) != 2 {
			t.Fatalf("time %d: %q are left, and the test shows nothing", i, left)
		}
		if r := confined.Exec([]string{"--files", "copy", "--no-incoming"}, "cat", "/etc/hostname"); r.Stdout != "orders-0\n" {
			t.Errorf("time %d: the next session: %q %s", i, r.Stdout, r.Stderr)
		}
		if left := places(); len(left) != 1 || left[0] != own[0] {
			t.Errorf("time %d: afterwards %q, want %q", i, left, own)
		}
	}
	living.Process.Signal(syscall.SIGTERM)
	living.Wait()
	if left := places(); len(left) != 0 {
		t.Errorf("at the end %q are left", left)
	}
}
