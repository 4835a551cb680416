//go:build e2e

package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// talker is a program that says something to the pod db every tenth of a second, over one connection,
// and prints each answer's number.
const talker = `
import socket, time, sys
s = socket.create_connection(("db", 5432), 30)
s.settimeout(90)
for i in range(int(sys.argv[1])):
    s.sendall(b"%d\n" % i)
    b = b""
    while not b.endswith(b"\n"):
        b += s.recv(100)
    assert b == b"db: %d\n" % i, b
    print(i, flush=True)
    time.sleep(0.1)
print("done", flush=True)
`

func talk(t *testing.T, target string, count int) *session {
	t.Helper()
	script := filepath.Join(work, "talker.py")
	if err := os.WriteFile(script, []byte(talker), 0o644); err != nil {
		t.Fatal(err)
	}
	s := begin(t, target, []string{"--no-incoming"}, "python3", script, strconv.Itoa(count))
	s.expect("0")
	return s
}

// TestProgramsGoOnThroughRestartsOfTheAPIServerAndTheKubelet: one that takes the requests, connects, sends
// datagrams and reads files; one that gets copies of the requests; one that counts over a connection.
func TestProgramsGoOnThroughRestartsOfTheAPIServerAndTheKubelet(t *testing.T) {
	thief := reside(t, "deployment/bare")
	pod := thief.stands()
	mirror := begin(t, "deployment/bare", nil, programs()+"/goprobe", "serve", "8080", "1000000")
	mirror.expect("listening 8080")
	talker := talk(t, "deployment/bare", 100000)
	served(t, thief, "http://bare/before", 10)
	stolen, copies := thief.collect(), mirror.collect()
	node := nodeOf(t, namespace, pod)
	spoken := 1
	for _, c := range []struct{ part, node string }{{"apiserver", "node1"}, {"kubelet", node}} {
		t.Run(c.part, func(t *testing.T) {
			stop := stream(t, "bare", c.part)
			copied(t, copies, c.part, 20)
			from := time.Now()
			if _, err := clusterAt(c.node, "restart", c.part); err != nil {
				t.Fatal(err)
			}
			to := time.Now()
			ready(t)
			served(t, thief, "http://bare/after", 10)
			copied(t, copies, c.part, 20)
			for until := spoken + 30; spoken < until; spoken++ { // each number once, in order
				talker.expect(strconv.Itoa(spoken))
			}
			tr := stop()
			tr.inFlight(t, event{from, to})
			if tr.program == 0 {
				t.Error("the program answered nothing")
			}
			tr.copied(t, copies, from, to)
		})
	}
	for _, l := range stolen() { // it says what has changed; datagrams may have come too late for it
		if f := strings.Fields(l); len(f) != 7 || f[1] != pod || !strings.HasSuffix(l, " tcp db: x") {
			t.Errorf("what takes the requests has trouble: %s", l)
		}
	}
	for _, s := range []*session{thief, mirror, talker} {
		if strings.Contains(s.stderr(), "lost") || strings.Contains(s.stderr(), "error") {
			t.Errorf("what is told: %s", s.stderr())
		}
		s.cmd.Process.Signal(interrupt)
		s.end()
	}
	nothingLeft(t, soon)
}

// ready waits until the cluster is itself again.
func ready(t *testing.T) {
	t.Helper()
	var r result
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if r = kubectl("wait", "--for=condition=Ready", "node", "--all", "--timeout=20s"); r.code == 0 {
			if r = kubectl("wait", "--for=condition=Ready", "pod", "--all", "--timeout=20s"); r.code == 0 {
				return
			}
		}
	}
	t.Fatalf("the cluster is not ready: %s%s", r.stdout, r.stderr)
}

// A lease keeps the agent of a session, and ends that of nobody. The three wait at the same time.
func TestLeases(t *testing.T) {
	t.Run("all", func(t *testing.T) {
		t.Run("a session that goes on moves its agent's on", func(t *testing.T) {
			t.Parallel()
			s := begin(t, "pod/client", []string{"--no-incoming", "--follow", "0"}, "sh", "-c", "for i in $(seq 15); do sleep 5; echo $i; done; cat /etc/hostname")
			s.expect("1")
			pod, first := agentOf(t, "client")
			for i := range 13 {
				s.expect(strconv.Itoa(i + 2))
			}
			if now, deadline := agentOf(t, "client"); now != pod || deadline < first+40 || deadline <= 70 {
				t.Errorf("after 5 s pod %s, until %d s; after 70 s pod %s, until %d s", pod, first, now, deadline)
			}
			s.expect("15")
			s.expect("client")
			if code := s.end(); code != 0 || strings.Contains(s.stderr(), "lost the agent") {
				t.Errorf("exit code %d: %s", code, s.stderr())
			}
		})
		t.Run("a killed CLI leaves nothing, and the app goes on", func(t *testing.T) {
			t.Parallel()
			s := begin(t, "deployment/bare", []string{"--steal"}, programs()+"/goprobe", "serve", "8080", "1000000")
			s.expect("listening 8080")
			stop := stream(t, "bare", "killed")
			for range 100 {
				if l := s.line(); !strings.HasPrefix(l, "served GET /killed/") {
					t.Fatalf("the program says %q", l)
				}
			}
			s.collect()
			from := time.Now()
			s.cmd.Process.Signal(syscall.SIGKILL)
			to := time.Now()
			s.end()
			var r result
			for end := to.Add(lease); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
				if r = call("http://bare/b", "10"); strings.Count(r.stdout, "pod bare-") == 10 {
					break
				}
			}
			if strings.Count(r.stdout, "pod bare-") != 10 {
				t.Errorf("a minute later: %s%s", r.stdout, r.stderr)
			}
			tr := stop()
			tr.inFlight(t, event{from, to})
			if tr.program == 0 || tr.app == 0 {
				t.Errorf("%d by the program, %d by the app", tr.program, tr.app)
			}
			goneBy(t, to.Add(lease), "stead.dev/pod-uid="+uidOf(podOf(t, "bare")))
		})
		t.Run("a CLI that is killed while its agent starts leaves nothing", func(t *testing.T) {
			t.Parallel()
			// A registry that is not there: the node takes seconds to see it.
			s := begin(t, "statefulset/db", []string{"--agent-image", "10.88.0.99:5000/none:1", "--agent-label", "stead.dev/test=pull", "--no-incoming"}, "true")
			for end := time.Now().Add(named); ; { // the moment when the Job is there
				if r := kubectl("get", "jobs", "-l", "stead.dev/test=pull", "-o", "name"); r.stdout != "" {
					break
				}
				if time.Now().After(end) {
					t.Fatalf("no Job: %s", s.stderr())
				}
			}
			s.cmd.Process.Signal(syscall.SIGKILL)
			killed := time.Now()
			s.end()
			if s.stderr() != "" {
				t.Errorf("it had ended before: %s", s.stderr())
			}
			goneBy(t, killed.Add(lease), "stead.dev/test=pull")
		})
	})
	nothingLeft(t, soon)
}

// copied waits until further requests below a path have been copied.
func copied(t *testing.T, copies func() []string, path string, count int) {
	t.Helper()
	many := func() int { return strings.Count(strings.Join(copies(), "\n"), "served GET /"+path+"/") }
	want := many() + count
	for end := time.Now().Add(limit); many() < want; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no more copies than %d", many())
		}
	}
}

func uidOf(pod string) string {
	return kubectl("get", "pod", pod, "-o", "jsonpath={.metadata.uid}").stdout
}

// agentOf gives the one agent beside a pod, by its pod's name, and its lease in seconds from its start.
func agentOf(t *testing.T, pod string) (name string, deadline int) {
	t.Helper()
	selector := "stead.dev/pod-uid=" + uidOf(pod)
	names := strings.Fields(kubectl("get", "pods", "-l", selector, "-o", "jsonpath={.items[*].metadata.name}").stdout)
	until := kubectl("get", "jobs", "-l", selector, "-o", "jsonpath={.items[*].spec.activeDeadlineSeconds}").stdout
	deadline, err := strconv.Atoi(until)
	if len(names) != 1 || err != nil {
		t.Fatalf("agents beside %s: %v, until %q", pod, names, until)
	}
	return names[0], deadline
}

// goneBy waits for the end of the agents with a label.
func goneBy(t *testing.T, end time.Time, selector string) {
	t.Helper()
	for {
		r := kubectl("get", "jobs,pods", "-A", "-l", selector, "-o", "name")
		if r.code == 0 && r.stdout == "" {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("left: %s%s", r.stdout, r.stderr)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// running says whether a thread of a process has not ended yet. The first one may end before others.
func running(pid int) bool {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	for _, f := range threads {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		if state := b[bytes.LastIndexByte(b, ')')+2]; state != 'Z' && state != 'X' {
			return true
		}
	}
	return err != nil
}

// killAgent kills the agent beside a pod's container, the process itself, and says when.
func killAgent(t *testing.T, pod, container string) event {
	t.Helper()
	id := kubectl("get", "pod", pod, "-o", `jsonpath={.status.containerStatuses[?(@.name=="`+container+`")].containerID}`).stdout
	_, id, _ = strings.Cut(id, "://")
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil || id == "" {
		t.Fatalf("container %s of %s: %q %v", container, pod, id, err)
	}
	for _, f := range lines {
		if b, _ := os.ReadFile(f); strings.HasPrefix(string(b), "/stead-agent\x00--container-id\x00"+id+"\x00") {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(f)))
			e := event{from: time.Now()}
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			// Its sockets take connections until its last thread has ended.
			for end := time.Now().Add(limit); running(pid); time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("the agent %d is killed and goes on", pid)
				}
			}
			e.to = time.Now()
			return e
		}
	}
	t.Fatalf("no agent beside %s", pod)
	return event{}
}

func TestAnAgentThatIsKilledDuringTrafficIsReplacedAndTheProgramGoesOn(t *testing.T) {
	s := reside(t, "deployment/bare")
	pod := s.stands()
	served(t, s, "http://bare/before", 10)
	stop := stream(t, "bare", "during")
	killed := killAgent(t, pod, "bare")
	s.until("file", "ESTALE")
	s.until(podsOf(t, "bare")[pod], pod, "udp x", "tcp db: x")
	if told := s.stderr(); !strings.Contains(told, "lost the agent beside pod "+pod+" (") || !strings.Contains(told, "another one stands there now") {
		t.Errorf("what is told: %s", told)
	}
	served(t, s, "http://bare/after", 10)
	stop().inFlight(t, killed)
	s.finish("http://bare/end")
}

func TestAKilledAgentThatIsNotToBeReplacedEndsTheProgramWithTheReasonAndTheAppGoesOn(t *testing.T) {
	s := begin(t, "deployment/bare", []string{"--steal", "--follow", "0"}, programs()+"/goprobe", "serve", "8080", "1000")
	s.expect("listening 8080")
	if r := call("http://bare/a", "3"); strings.Count(r.stdout, "go program") != 3 {
		t.Fatalf("%s%s", r.stdout, r.stderr)
	}
	killAgent(t, podOf(t, "bare"), "bare")
	code := s.end()
	if code != 125 || !strings.Contains(s.stderr(), "error: lost the agent beside deployment/bare") || !strings.Contains(s.stderr(), "hint: ") {
		t.Errorf("exit code %d: %s", code, s.stderr())
	}
	if r := call("http://bare/b", "3"); strings.Count(r.stdout, "pod bare-") != 3 {
		t.Errorf("afterwards: %s%s", r.stdout, r.stderr)
	}
	nothingLeft(t, soon)
}

// Clients call all the time while sessions come and go: every call is answered, by the app or by the
// program, but for those that are in flight when a program is ended.
func TestTheServicesClientsLoseNothing(t *testing.T) {
	stop := stream(t, "bare", "steady")
	var ends []event
	for i := range 4 {
		s := begin(t, "deployment/bare", []string{"--steal"}, programs()+"/goprobe", "serve", "8080", "1000000")
		s.expect("listening 8080")
		for range 100 {
			if l := s.line(); !strings.HasPrefix(l, "served GET /steady/") {
				t.Fatalf("the program says %q", l)
			}
		}
		s.collect()
		e := event{from: time.Now()}
		s.cmd.Process.Signal([]syscall.Signal{syscall.SIGINT, syscall.SIGTERM}[i%2])
		s.end()
		e.to = time.Now()
		ends = append(ends, e)
	}
	tr := stop()
	tr.inFlight(t, ends...)
	// The program may have taken one whose answer was lost with its end.
	if tr.program+len(tr.lost) < 400 || tr.app == 0 {
		t.Errorf("%d by the program, %d by the app", tr.program, tr.app)
	}
	nothingLeft(t, soon)
}
