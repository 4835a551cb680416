//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stead-dev/stead/test/internal/bed"
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

func talk(t *testing.T, count int) *session {
	t.Helper()
	script := filepath.Join(work, "talker.py")
	if err := os.WriteFile(script, []byte(talker), 0o644); err != nil {
		t.Fatal(err)
	}
	s := begin(t, "deployment/bare", []string{"--no-incoming"}, "python3", script, strconv.Itoa(count))
	s.expect("0")
	return s
}

// goesOn reads the talker's lines to their end: each number once, in order.
func goesOn(s *session, from, count int) {
	s.t.Helper()
	for i := from; i < count; i++ {
		s.expect(strconv.Itoa(i))
	}
	s.expect("done")
	if code := s.end(); code != 0 {
		s.t.Errorf("exit code %d: %s", code, s.stderr())
	}
}

func TestTheProgramGoesOnThroughARestartOfTheAPIServer(t *testing.T) {
	s := talk(t, 100)
	if _, err := cluster("restart", "apiserver"); err != nil {
		t.Fatal(err)
	}
	goesOn(s, 1, 100)
	ready(t)
	nothingLeft(t, 60*time.Second)
}

func TestTheProgramGoesOnThroughARestartOfTheKubelet(t *testing.T) {
	s := talk(t, 100)
	if _, err := cluster("restart", "kubelet"); err != nil {
		t.Fatal(err)
	}
	goesOn(s, 1, 100)
	ready(t)
	nothingLeft(t, 60*time.Second)
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

func TestAKilledCLILeavesNothing(t *testing.T) {
	s := begin(t, "deployment/bare", []string{"--steal"}, programs()+"/goprobe", "serve", "8080", "1000")
	s.expect("listening 8080")
	if r := call("http://bare/a", "3"); strings.Count(r.stdout, "go program") != 3 {
		t.Fatalf("%s%s", r.stdout, r.stderr)
	}
	s.cmd.Process.Signal(syscall.SIGKILL)
	end := time.Now().Add(60 * time.Second)
	s.end()
	// What is stolen goes back to the app as soon as the transport has ended; the agent waits for the
	// session's return.
	var r result
	for ; time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if r = call("http://bare/b", "1"); strings.HasPrefix(r.stdout, "pod bare-") {
			break
		}
	}
	if !strings.HasPrefix(r.stdout, "pod bare-") {
		t.Errorf("a minute later: %s%s", r.stdout, r.stderr)
	}
	nothingLeft(t, time.Until(end))
}

func TestACLIThatIsKilledWhileItsAgentStartsLeavesNothing(t *testing.T) {
	s := begin(t, "deployment/bare", []string{"--agent-image", "127.0.0.1:1/none:1", "--agent-label", "stead.dev/test=pull"}, "true")
	for range 1000 { // the moment when the Job is there
		if r := kubectl("get", "jobs", "-l", "app.kubernetes.io/managed-by=stead", "-o", "name"); r.stdout != "" {
			break
		}
	}
	s.cmd.Process.Signal(syscall.SIGKILL)
	s.end()
	nothingLeft(t, 60*time.Second) // the lease
}

// killAgent kills the agent beside a pod's container, the process itself.
func killAgent(t *testing.T, pod, container string) {
	t.Helper()
	id := kubectl("get", "pod", pod, "-o", `jsonpath={.status.containerStatuses[?(@.name=="`+container+`")].containerID}`).stdout
	node := kubectl("get", "pod", pod, "-o", "jsonpath={.spec.nodeName}").stdout
	_, id, _ = strings.Cut(id, "://")
	script := `for p in /proc/[0-9]*; do case "$(tr '\0' ' ' < $p/cmdline 2>/dev/null)" in /stead-agent*` + id + `*) kill -9 ${p#/proc/} && echo killed; esac; done`
	c := exec.Command(filepath.Join(bed.Root(), "test/cluster/cluster.sh"), "enter", "bash", "-c", script)
	c.Env = append(os.Environ(), "I="+strings.TrimPrefix(node, "node"))
	if out, err := c.CombinedOutput(); err != nil || string(out) != "killed\n" {
		t.Fatalf("kill the agent beside %s: %v %s", pod, err, out)
	}
}

func TestAnAgentThatIsKilledDuringTrafficIsReplacedAndTheProgramGoesOn(t *testing.T) {
	s := reside(t, "deployment/bare")
	pod := s.stands()
	served(t, s, "http://bare/before", 10)
	stop := stream("http://bare/during")
	killAgent(t, pod, "bare")
	s.until("file", "ESTALE")
	s.until(podsOf(t, "bare")[pod], pod, "udp x", "tcp db: x")
	if told := s.stderr(); !strings.Contains(told, "lost the agent beside pod "+pod+" (") || !strings.Contains(told, "another one stands there now") {
		t.Errorf("what is told: %s", told)
	}
	t.Log(stop())
	served(t, s, "http://bare/after", 10)
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
	nothingLeft(t, 30*time.Second)
}

// TestTheServicesClientsLoseNothing: a client calls all the time while sessions come and go, are
// ended and killed. Every call is answered, by the app or by the program.
func TestTheServicesClientsLoseNothing(t *testing.T) {
	const count = 1500
	answers := make(chan result, 1)
	go func() { answers <- call("http://bare/steady", strconv.Itoa(count)) }()
	for i := range 4 {
		s := begin(t, "deployment/bare", []string{"--steal"}, programs()+"/goprobe", "serve", "8080", "1000000")
		s.expect("listening 8080")
		time.Sleep(500 * time.Millisecond)
		if i%2 == 0 {
			s.cmd.Process.Signal(syscall.SIGINT)
		} else {
			s.cmd.Process.Signal(syscall.SIGTERM)
		}
		go func() { // its lines are many
			for s.out.Scan() {
			}
		}()
		s.end()
	}
	r := <-answers
	ours := strings.Count(r.stdout, "go program: GET /steady")
	apps := len(regexp.MustCompile(`(?m)^pod bare-\S+: GET /steady$`).FindAllString(r.stdout, -1))
	// In flight at the end of a session: at most one each, as the client calls one after the other.
	if lost := count - ours - apps; lost > 4 || r.code != 0 && lost == 0 {
		t.Errorf("of %d calls the program answered %d, the app %d: %s", count, ours, apps, r.stderr)
	} else {
		t.Log(fmt.Sprintf("%d by the program, %d by the app, %d lost", ours, apps, lost))
	}
	nothingLeft(t, 30*time.Second)
}
