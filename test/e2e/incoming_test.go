//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stead-dev/stead/test/internal/corpus"
)

const interrupt = syscall.SIGINT

// session is a stead exec that goes on beside the test.
type session struct {
	t    *testing.T
	cmd  *exec.Cmd
	out  *bufio.Scanner
	mu   sync.Mutex
	errs bytes.Buffer
	done chan struct{}
}

func (s *session) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.errs.Write(p)
}

func (s *session) stderr() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.errs.String()
}

// begin starts a program in the stead of a target; it ends with the test.
func begin(t *testing.T, target string, flags []string, argv ...string) *session {
	t.Helper()
	args := append([]string{"exec", "-n", namespace, "--target", target}, flags...)
	s := &session{t: t, cmd: exec.Command(stead, append(append(args, "--"), argv...)...), done: make(chan struct{})}
	s.cmd.Env, s.cmd.Dir, s.cmd.Stderr = environment(), work, s
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.out = bufio.NewScanner(out)
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.stop)
	return s
}

// line is the program's next one.
func (s *session) line() string {
	s.t.Helper()
	got := make(chan string, 1)
	go func() {
		if s.out.Scan() {
			got <- s.out.Text()
		}
		close(got)
	}()
	select {
	case l := <-got:
		return l
	case <-time.After(limit):
		s.t.Fatalf("no line within %v; stderr %s", limit, s.stderr())
		return ""
	}
}

func (s *session) expect(line string) {
	s.t.Helper()
	if got := s.line(); got != line {
		s.t.Fatalf("line %q, want %q; stderr %s", got, line, s.stderr())
	}
}

// collect reads the program's lines from now on, so that it can go on printing, and gives those read.
func (s *session) collect() func() []string {
	var mu sync.Mutex
	var all []string
	go func() { // ends with the program
		for s.out.Scan() {
			mu.Lock()
			all = append(all, s.out.Text())
			mu.Unlock()
		}
	}()
	return func() []string { mu.Lock(); defer mu.Unlock(); return slices.Clone(all) }
}

// end waits for the program's end and gives its exit code.
func (s *session) end() int {
	s.t.Helper()
	go func() { s.cmd.Wait(); close(s.done) }()
	select {
	case <-s.done:
	case <-time.After(limit):
		s.cmd.Process.Kill()
		s.t.Errorf("stead did not end within %v; stderr %s", limit, s.stderr())
	}
	return s.cmd.ProcessState.ExitCode()
}

func (s *session) stop() {
	select {
	case <-s.done:
	default:
		s.cmd.Process.Signal(syscall.SIGTERM)
		go s.cmd.Wait()
	}
}

// plain shows IPv4 clients of sockets that speak both families by their IPv4 address.
func plain(s string) string { return strings.ReplaceAll(s, "::ffff:", "") }

// call sends requests from the pod client.
func call(url string, count string) result {
	return kubectl("exec", "client", "--", "/app", "call", url, count)
}

func TestRequestsThroughTheServiceAreStolenWithTheirRealClient(t *testing.T) {
	client := kubectl("get", "pod", "client", "-o", "jsonpath={.status.podIP}").stdout
	s := begin(t, "deployment/bare", []string{"--steal"}, programs()+"/goprobe", "serve", "8080", "5")
	s.expect("listening 8080")
	r := call("http://bare/stolen", "5")
	if n := strings.Count(plain(r.stdout), "go program: GET /stolen from "+client+" "); n != 5 {
		t.Errorf("%d of 5 requests were answered by the program: %s%s", n, r.stdout, r.stderr)
	}
	if code := s.end(); code != 0 {
		t.Errorf("exit code %d: %s", code, s.stderr())
	}
	if r := call("http://bare/after", "1"); !strings.HasPrefix(r.stdout, "pod bare-") {
		t.Errorf("after the session: %s%s", r.stdout, r.stderr)
	}
}

func TestRequestsThroughTheServiceAreMirrored(t *testing.T) {
	client := kubectl("get", "pod", "client", "-o", "jsonpath={.status.podIP}").stdout
	s := begin(t, "service/bare", nil, programs()+"/goprobe", "serve", "8080", "5")
	s.expect("listening 8080")
	r := call("http://bare/mirrored", "5")
	if n := strings.Count(r.stdout, "pod bare-"); n != 5 {
		t.Errorf("%d of 5 requests were answered by the app: %s%s", n, r.stdout, r.stderr)
	}
	for range 5 {
		if l := plain(s.line()); !strings.HasPrefix(l, "served GET /mirrored "+client+" ") {
			t.Errorf("the program says %q; stderr %s", l, s.stderr())
		}
	}
	if code := s.end(); code != 0 {
		t.Errorf("exit code %d: %s", code, s.stderr())
	}
}

// Every program of the corpus serves what other pods send to the Service of both replicas, and to each of
// them: on two nodes one replica is on the client's node and one is not.
func TestRealProgramsServeTheRequestsOfTheService(t *testing.T) {
	client := kubectl("get", "pod", "client", "-o", "jsonpath={.status.podIP}").stdout
	replicas, nodes := podsOf(t, "orders"), make(map[string]bool)
	for p := range replicas {
		nodes[nodeOf(t, namespace, p)] = true
	}
	if len(replicas) != 2 || lastNode != "node1" && len(nodes) != 2 {
		t.Fatalf("replicas %v on %v", replicas, nodes)
	}
	for _, c := range corpus.Programs(programs()) {
		for _, mode := range []string{"steal", "mirror"} {
			t.Run(c.Name+" "+mode, func(t *testing.T) {
				const count, each = 6, 2
				// Many, as a mirror is shown the kubelet's probes, too.
				s := begin(t, "deployment/orders", []string{"--" + mode}, append(slices.Clone(c.Serve), "8080", "1000000")...)
				s.expect("listening 8080")
				asked := func(host string, count int, by string) {
					t.Helper()
					if mode == "steal" {
						by = " program: GET /steal from " + client + " "
					}
					r := call("http://"+host+"/"+mode, strconv.Itoa(count))
					if n := strings.Count(plain(r.stdout), by); n != count {
						t.Errorf("%d of %d answers of %s have %q: %s%s", n, count, host, by, r.stdout, r.stderr)
					}
				}
				asked("orders", count, "pod orders-")
				for name, ip := range replicas {
					asked(ip+":8080", each, "pod "+name+":")
				}
				for n := 0; n < count+2*each; {
					if strings.HasPrefix(plain(s.line()), "served GET /"+mode+" "+client+" ") {
						n++
					}
				}
				s.cmd.Process.Signal(syscall.SIGTERM)
				if code := s.end(); code != 128+int(syscall.SIGTERM) {
					t.Errorf("exit code %d: %s", code, s.stderr())
				}
			})
		}
	}
	if r := call("http://orders/after", "10"); strings.Count(r.stdout, "pod orders-") != 10 {
		t.Errorf("after the sessions: %s%s", r.stdout, r.stderr)
	}
}

func TestThreeSessionsShareOneAgentAndASecondStealIsRefused(t *testing.T) {
	one := begin(t, "deployment/bare", nil, programs()+"/goprobe", "serve", "8080", "1")
	one.expect("listening 8080")
	two := begin(t, "deployment/bare", nil, programs()+"/goprobe", "serve", "8080", "1")
	two.expect("listening 8080")
	three := begin(t, "deployment/bare", []string{"--steal"}, programs()+"/goprobe", "serve", "8080", "1")
	three.expect("listening 8080")
	if r := kubectl("get", "pods", "-l", "app.kubernetes.io/managed-by=stead", "-o", "name"); strings.Count(r.stdout, "pod/stead-bare-") != 1 {
		t.Errorf("three sessions have these agents: %s%s", r.stdout, r.stderr)
	}
	holder := ""
	for _, a := range agentsNow(t) {
		for _, s := range a.Sessions {
			if slices.Equal(s.Incoming, []string{"steal:8080"}) {
				holder = s.Holder
			}
		}
	}
	four := execIn("deployment/bare", []string{"--steal"}, programs()+"/goprobe", "serve", "8080", "1")
	if four.code == 0 || holder == "" || !strings.Contains(four.stderr, "ask "+holder+" to end the session") {
		t.Errorf("a second steal beside that of %q: exit code %d, %s", holder, four.code, four.stderr)
	}
	if r := call("http://bare/shared", "1"); !strings.HasPrefix(r.stdout, "go program: GET /shared") {
		t.Errorf("answered by %s%s", r.stdout, r.stderr)
	}
	for _, s := range []*session{one, two, three} {
		if l := s.line(); !strings.HasPrefix(l, "served GET /shared") {
			t.Errorf("a session saw %q; stderr %s", l, s.stderr())
		}
		s.end()
	}
}
