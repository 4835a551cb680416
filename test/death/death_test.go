// Package death kills each part of a session during traffic and looks for what is left. It does so on a
// machine of its own (test/internal/machine), so everything that it finds there is ours.
package death

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/test/internal/bed"
	"github.com/stead-dev/stead/test/internal/machine"
)

var (
	stead   = filepath.Join(bed.Cache(), "death", "stead")
	confine = filepath.Join(bed.Cache(), "death", "confine")
)

func TestMain(m *testing.M) {
	os.Exit(machine.Main(func() error {
		if _, err := bed.Build("death"); err != nil {
			return err
		}
		c := exec.Command("go", "build", "-o", confine, "./test/internal/confine")
		c.Dir = bed.Root()
		if out, err := c.CombinedOutput(); err != nil {
			return fmt.Errorf("build confine: %v\n%s", err, out)
		}
		return nil
	}, m.Run))
}

// times is how often each of those of whom the issue speaks is killed.
const times = 20

// scene is a playground, and what the machine and the pod look like without a session.
type scene struct {
	*bed.Bed
	init   int // of the pod orders: the process that holds its namespaces
	client int // of the pod client
	before []string
}

func scenery(t *testing.T, b *bed.Bed) *scene {
	t.Helper()
	s := &scene{Bed: b}
	for _, p := range b.Status().Pods {
		switch p.Name {
		case "orders":
			s.init = parent(t, p.PID)
		case "client":
			s.client = p.PID
		}
	}
	s.before = s.all(t)
	return s
}

func parent(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	ppid, err := strconv.Atoi(strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))[1])
	if err != nil {
		t.Fatal(err)
	}
	return ppid
}

// all is everything that a session could leave behind. The playground's own processes are left out: an
// app that is started again is another one.
func (s *scene) all(t *testing.T) []string {
	t.Helper()
	out := append(machine.In(t, "laptop", os.Getpid()), machine.Files(t)...)
	if s.init != 0 {
		out = append(out, machine.In(t, "pod", s.init)...)
	}
	for _, p := range machine.Processes(t) {
		if !strings.Contains(p, " __playground ") && !strings.Contains(p, " __pod ") && !strings.Contains(p, " __app ") {
			out = append(out, p)
		}
	}
	return out
}

// traces is what is there that was not there before the session.
func (s *scene) traces(t *testing.T) []string {
	t.Helper()
	return slices.DeleteFunc(s.all(t), func(x string) bool { return slices.Contains(s.before, x) })
}

// nothingLeft waits until there is no trace but of the playground's agent, which it keeps for its next
// session for a moment.
func (s *scene) nothingLeft(t *testing.T) {
	t.Helper()
	var left []string
	t.Cleanup(func() {
		if t.Failed() && len(left) > 0 {
			t.Logf("left:\n%s", strings.Join(left, "\n"))
		}
	})
	bed.Eventually(t, "nothing is left", func() bool {
		left = slices.DeleteFunc(s.traces(t), func(x string) bool { return strings.HasPrefix(x, "process ") && strings.Contains(x, " agent serve ") })
		return len(left) == 0
	})
}

// server is a program that serves for ever and tells of each request, reads a large file of the pod's
// over and over, and keeps a connection out of the pod busy. It has children, one of which daemonizes.
const server = `
import http.server, os, socket, threading, time
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        print("got\n", end="", flush=True) # one write: threads print
        b = b"program\n"; self.send_response(200); self.send_header("Content-Length", str(len(b))); self.end_headers(); self.wfile.write(b)
    def log_message(self, *a): pass
class S(http.server.ThreadingHTTPServer): request_queue_size = 128
s = S(("0.0.0.0", 8080), H)
begun = [threading.Event(), threading.Event()]
def files():
    while True:
        with open("/var/data/big.bin", "rb") as f:
            while f.read(1 << 18): begun[0].set(); time.sleep(0.005)
        os.listdir("/var/data/many")
def connection():
    c = socket.create_connection(("db", 5432)); f = c.makefile("rb")
    while True: c.sendall(b"x" * 1000 + b"\n"); f.readline(); begun[1].set(); time.sleep(0.002)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while True: time.sleep(1)
    os._exit(0)
for f in (files, connection): threading.Thread(target=f, daemon=True).start()
for e in begun: e.wait()
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

// session is a running one and its program.
type session struct {
	*exec.Cmd
	errs   strings.Builder
	copies atomic.Int64 // requests that the program has got
	ended  chan struct{}
}

// session starts the server under stead and returns when its files and its connection are in use.
func (s *scene) session(t *testing.T, flags ...string) *session {
	t.Helper()
	b := *s.Bed
	if len(flags) > 0 && flags[0] == inDirectory {
		b.Before, flags = []string{confine, "0,admin,userns"}, flags[1:]
	}
	x := &session{Cmd: b.Command(append(append([]string{"exec", "-t", "playground/orders"}, flags...), "--", "python3", "-c", server)...), ended: make(chan struct{})}
	out, err := x.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	x.Stderr = &x.errs
	if err := x.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	line, err := lines.ReadString('\n')
	go func() {
		defer close(x.ended)
		for err == nil {
			if _, err = lines.ReadString('\n'); err == nil {
				x.copies.Add(1)
			}
		}
		x.Wait()
	}()
	t.Cleanup(func() { x.Process.Kill(); <-x.ended })
	if line != "ready\n" {
		x.Process.Kill()
		<-x.ended
		t.Fatalf("the program did not begin: %s", &x.errs)
	}
	return x
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

// victim is who is killed.
type victim struct {
	name string
	find func(t *testing.T, s *scene, x *session) int
	code int // stead's exit code, -1 where it was the victim
	// strict: from its death on no request may be lost or answered by the program. Else that is so from
	// the end of the session on, and where the app restarts, from then on.
	strict, restarts bool
	flags            []string
}

var (
	supervisor = victim{"supervisor", func(t *testing.T, s *scene, x *session) int { return x.Process.Pid }, -1, true, false, nil}
	guard      = victim{"guard", func(t *testing.T, s *scene, x *session) int { return below(t, x.Process.Pid, "__guard") }, 137, false, false, nil}
	program    = victim{"program", func(t *testing.T, s *scene, x *session) int { return below(t, x.Process.Pid, "python3") }, 137, false, false, nil}
	agent      = victim{"agent", func(t *testing.T, s *scene, x *session) int { return s.Status().Pods[0].Agent }, 125, true, false, []string{"--follow", "0"}}
	app        = victim{"app of the pod", func(t *testing.T, s *scene, x *session) int { return s.Status().Pods[0].PID }, 125, false, true, []string{"--follow", "0"}}
)

// with is the victim of a session with other flags.
func (v victim) with(name string, flags ...string) victim {
	v.name += " " + name
	v.flags = append(slices.Clone(v.flags), flags...)
	return v
}

func TestWhoeverDiesDuringAStealNothingIsLeftAndTheAppAnswers(t *testing.T) {
	s := scenery(t, bed.Up(t, stead, "death"))
	s.kill(t, times, "--steal", supervisor, agent, program, app)
	s.kill(t, 5, "--steal", guard,
		supervisor.with("that traps path calls", "--files", "trap"),
		supervisor.with("with copies of files in memory", "--files", "copy"),
		supervisor.with("with copies of files in a directory", inDirectory, "--files", "copy"))
	s.down(t)
}

func TestWhoeverDiesDuringAMirrorNothingIsLeftAndTheAppAnswers(t *testing.T) {
	s := scenery(t, bed.Up(t, stead, "death"))
	s.kill(t, times, "--mirror", supervisor, agent, program, app)
	s.down(t)
}

// An ordinary user's pods are in a user namespace: stealing is by nftables there.
func TestWhoeverDiesInAnOrdinaryUsersPlaygroundNothingIsLeftAndTheAppAnswers(t *testing.T) {
	const nobody = 65534
	readable := "/var/tmp/program"
	if out, err := exec.Command("cp", stead, readable).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() { os.Remove(readable) }) // after the playground, which it ends
	s := scenery(t, bed.UpAs(t, readable, "death", nobody))
	for _, mode := range []string{"--steal", "--mirror"} {
		s.kill(t, 3, mode, supervisor, agent, program, app)
	}
	s.down(t)
}

// kill kills each victim in one session after the other, each during traffic.
func (s *scene) kill(t *testing.T, times int, mode string, victims ...victim) {
	for _, v := range victims {
		t.Run(v.name+" "+mode, func(t *testing.T) {
			v.flags = append(slices.Clone(v.flags), mode)
			for i := range times {
				if s.once(t, i, v); t.Failed() {
					return
				}
			}
		})
	}
}

// down ends the playground and looks for processes of it.
func (s *scene) down(t *testing.T) {
	if r := s.Run("playground", "down"); r.Code != 0 {
		t.Error(r.Stderr)
	}
	for _, p := range machine.Processes(t) {
		t.Errorf("left of the playground: %s", p)
	}
}

func (s *scene) once(t *testing.T, i int, v victim) {
	steals := slices.Contains(v.flags, "--steal")
	x := s.session(t, v.flags...)
	tr := s.traffic(t)
	defer tr.stop()
	// At a different moment each time: after another number of answers by whom the requests are for.
	tr.until(t, "traffic", func() bool {
		return tr.count(0, fromProgram)+tr.count(0, fromApp) > 2+7*i%30 && (!steals || tr.count(0, fromProgram) > 0) && x.copies.Load() > 0
	})
	// So that what is looked for below would be found.
	kinds := []string{"process", "packet socket of pod"}
	if steals {
		kinds = []string{"process", "unix socket of pod: @stead-steal-8080", "listener of pod", "sk_lookup program of pod"}
		if s.Cred != nil {
			kinds[3] = "nft table of pod"
		}
	}
	during := s.traces(t)
	for _, kind := range kinds {
		if !slices.ContainsFunc(during, func(x string) bool { return strings.HasPrefix(x, kind) }) {
			t.Fatalf("time %d: no %s while the session stands:\n%s", i, kind, strings.Join(during, "\n"))
		}
	}
	if named := slices.Contains(v.flags, inDirectory); named != (len(places()) == 1) {
		t.Fatalf("time %d: copies are in %q", i, places())
	}
	restarts := s.Status().Pods[0].Restarts
	pid := v.find(t, s, x)
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatalf("time %d: pidfd_open: %v", i, err)
	}
	defer unix.Close(fd)
	tr.next()
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		t.Fatalf("time %d: kill: %v", i, err)
	}
	if v.strict {
		wait(t, fd)
		tr.next()
	}
	bed.Eventually(t, "stead ends", func() bool {
		select {
		case <-x.ended:
			return true
		default:
			return false
		}
	})
	if code := x.ProcessState.ExitCode(); code != v.code {
		t.Errorf("time %d: exit code %d, want %d; stderr %s", i, code, v.code, &x.errs)
	}
	if v.restarts {
		bed.Eventually(t, "the app is restarted", func() bool { return s.Status().Pods[0].Restarts > restarts })
	}
	if !v.strict {
		tr.next()
	}
	tr.until(t, "later calls", func() bool { return tr.total(2) >= 20 })
	tr.stop()
	if n := tr.total(2) - tr.count(2, fromApp); n != 0 {
		t.Errorf("time %d: of %d later calls %d were not answered by the app: %s", i, tr.total(2), n, tr)
	}
	// A connection that stands when somebody dies may be cut; before that none may be.
	if n := tr.total(0) - tr.count(0, fromApp) - tr.count(0, fromProgram); n != 0 {
		t.Errorf("time %d: of %d earlier calls %d were not answered: %s", i, tr.total(0), n, tr)
	}
	if !steals && tr.count(0, fromProgram) != 0 {
		t.Errorf("time %d: the program has answered while its traffic was mirrored: %s", i, tr)
	}
	s.nothingLeft(t)
}

// wait returns when the process of a pidfd has ended.
func wait(t *testing.T, fd int) {
	t.Helper()
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	bed.Eventually(t, "the victim is dead", func() bool { n, _ := unix.Poll(fds, 100); return n > 0 })
}

// A session that follows its pod goes on with another agent beside it, and leaves as little.
func TestASessionOutlivesItsAgentAndTheAppItStandsFor(t *testing.T) {
	s := scenery(t, bed.Up(t, stead, "death"))
	x := s.session(t, "--steal")
	for i := range times {
		tr := s.traffic(t)
		defer tr.stop()
		tr.until(t, "the program answers", func() bool { return tr.count(0, fromProgram) > 2+7*i%30 })
		st := s.Status().Pods[0]
		victim, app := st.Agent, i%2 == 1
		if app {
			victim = st.PID
		}
		tr.next()
		if err := syscall.Kill(victim, syscall.SIGKILL); err != nil {
			t.Fatalf("kill: %v", err)
		}
		bed.Eventually(t, "another agent stands there", func() bool {
			now := s.Status().Pods[0]
			return now.Agent != 0 && now.Agent != st.Agent && now.PID != 0 && (now.PID != st.PID) == app
		})
		stolen := tr.count(1, fromProgram)
		tr.until(t, "the program answers again", func() bool { return tr.count(1, fromProgram) > stolen+10 })
		tr.stop()
		if n := tr.total(0) - tr.count(0, fromProgram) - tr.count(0, fromApp); n != 0 {
			t.Errorf("time %d: %d requests were not answered while nobody died: %s", i, n, tr)
		}
	}
	if err := x.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	<-x.ended
	if r := s.Call("http://orders:8080/later"); r.Stdout != "orders-0 (pod): GET /later\n" {
		t.Errorf("afterwards %q %s", r.Stdout, r.Stderr)
	}
	s.nothingLeft(t)
	bed.Eventually(t, "the agent ends when nobody needs it", func() bool { return len(s.traces(t)) == 0 })
}

func TestKillingTheDaemonTakesThePlaygroundAlong(t *testing.T) {
	empty := (&scene{}).all(t)
	for i := range 5 {
		b := bed.Up(t, stead, "death")
		s := scenery(t, b)
		x := s.session(t, "--steal")
		tr := s.traffic(t)
		defer tr.cut()
		tr.until(t, "the program answers", func() bool { return tr.count(0, fromProgram) > 2+7*i%30 })
		if err := syscall.Kill(b.Status().PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		<-x.ended
		if code := x.ProcessState.ExitCode(); code != 125 {
			t.Errorf("time %d: the session ended with %d; stderr %s", i, code, &x.errs)
		}
		tr.cut()
		var left []string
		bed.Eventually(t, "nothing is left", func() bool {
			left = append((&scene{}).all(t), machine.Processes(t)...)
			left = slices.DeleteFunc(left, func(x string) bool { return slices.Contains(empty, x) })
			return len(left) == 0
		})
	}
}

// When nobody is left to remove the copies of the pod's files, the next session does; it leaves alone
// those of a session that lives.
func TestCopiesThatNobodyRemovedAreSweptByTheNextSession(t *testing.T) {
	s := scenery(t, bed.Up(t, stead, "death"))
	confined := *s.Bed
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
		x := begin()
		guard := below(t, x.Process.Pid, "__guard")
		for _, pid := range []int{guard, x.Process.Pid} {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		x.Wait()
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
	s.nothingLeft(t)
}
