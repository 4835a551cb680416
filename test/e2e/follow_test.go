//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// resident is a program that lives in a pod's stead: it serves, keeps a connection, a UDP socket and a
// file open, and prints from which address its connections leave and what the pod's /etc/hostname
// says, with what has become of the rest, whenever one of that has changed.
const resident = `
import errno, http.server, os, socket, threading, time, urllib.request

# Names are asked for through a restart of the kubelet, too: the cluster's DNS is away for a moment then.
os.environ["RES_OPTIONS"] = "timeout:6 attempts:5"

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"program: GET %s\n" % self.path.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass

server = http.server.ThreadingHTTPServer(("", 8080), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()

def name(e):
    return errno.errorcode.get(e.errno, repr(e)) if isinstance(e, OSError) and e.errno else repr(e)

def hold():
    s = socket.create_connection(("db", 5432), 30)
    s.settimeout(90)
    return s

big = os.open("/var/data/big.bin", os.O_RDONLY)
os.pread(big, 10, 0)
size = os.stat("/var/data/big.bin").st_size
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.connect(("db", 5433))
udp.settimeout(0.5)
held = hold()
last = first = None
while True:
    try:
        address = urllib.request.urlopen("http://db/", timeout=90).read().decode().rsplit(":", 1)[0]
        with open("/etc/hostname") as f:
            host = f.read().strip()
    except OSError as e:
        print("trouble", name(e), e, flush=True)
        time.sleep(0.2)
        continue
    try:
        udp.send(b"x")
        datagrams = udp.recv(10).decode()
    except OSError as e:
        datagrams = "lost"
    try:
        held.sendall(b"x")
        connection = held.recv(100).decode() or "ended"
    except OSError as e:
        connection = name(e)
    line = "%s %s udp %s tcp %s" % (address, host, datagrams, connection)
    if line != last:
        print(line, flush=True)
    last = line
    if first is None:
        first = host
    elif connection != "db: x":
        try:
            os.pread(big, 10, size - 10)
            print("file goes on", flush=True)
        except OSError as e:
            print("file", name(e), flush=True)
        os.close(big)
        held, big, first = hold(), os.open("/var/data/big.bin", os.O_RDONLY), host
        os.pread(big, 10, 0)
    time.sleep(0.1)
`

// reside starts the resident.
func reside(t *testing.T, target string, flags ...string) *session {
	t.Helper()
	script := filepath.Join(work, "resident.py")
	if err := os.WriteFile(script, []byte(resident), 0o644); err != nil {
		t.Fatal(err)
	}
	return begin(t, target, append([]string{"--steal"}, flags...), "python3", script)
}

// until reads lines up to one that has all the words, and gives those before it.
func (s *session) until(words ...string) (before []string) {
	s.t.Helper()
	for end := time.Now().Add(limit); time.Now().Before(end); {
		l := s.line()
		found := l != ""
		for _, w := range words {
			found = found && strings.Contains(" "+l+" ", " "+w+" ")
		}
		if found {
			return before
		}
		before = append(before, l)
		if l == "" {
			break
		}
	}
	s.t.Fatalf("no line with %q: %q; stderr %s", words, before, s.stderr())
	return nil
}

// podsOf waits for the pods of an app and gives their names with their addresses.
func podsOf(t *testing.T, app string) map[string]string {
	t.Helper()
	if r := kubectl("rollout", "status", "deployment/"+app, "--timeout=120s"); r.code != 0 {
		t.Fatal(r.stderr)
	}
	out := make(map[string]string)
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		clear(out)
		r := kubectl("get", "pods", "-l", "app="+app, "-o", `jsonpath={range .items[*]}{.metadata.name} {.status.podIP} {.metadata.deletionTimestamp}{"\n"}{end}`)
		ending := false
		for _, l := range strings.Split(strings.TrimSpace(r.stdout), "\n") {
			f := strings.Fields(l)
			ending = ending || len(f) != 2
			if len(f) == 2 {
				out[f[0]] = f[1]
			}
		}
		if !ending {
			return out
		}
	}
	t.Fatalf("pods of %s: %v", app, out)
	return nil
}

// served fails the test unless the program answers all of some calls in a row.
func served(t *testing.T, s *session, url string, count int) {
	t.Helper()
	var r result
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if r = call(url, fmt.Sprint(count)); strings.Count(r.stdout, "program: GET ") == count {
			return
		}
	}
	t.Errorf("of %d calls the program answered %d: %s%s\n%s", count, strings.Count(r.stdout, "program: GET "), r.stdout, r.stderr, s.stderr())
}

// movedTo checks that a session that stood for one pod stands for another: everything that is new is
// the new pod's, what was open through the old one has ended.
func movedTo(t *testing.T, s *session, pods map[string]string, old string) (now string) {
	t.Helper()
	s.until("file", "ESTALE")
	m := regexp.MustCompile(`pod (\S+) ended; now in the stead of pod (\S+)\n`).FindAllStringSubmatch(s.stderr(), -1)
	if len(m) == 0 || m[0][1] != old {
		t.Fatalf("what is told: %s", s.stderr())
	}
	now = m[len(m)-1][2]
	if pods[now] == "" {
		t.Fatalf("it stands for %s, of %v: %s", now, pods, s.stderr())
	}
	s.until(pods[now], now, "udp x", "tcp db: x")
	return now
}

// stands gives the pod that the resident says it stands for.
func (s *session) stands() string {
	s.t.Helper()
	f := strings.Fields(s.line())
	if len(f) < 2 || !strings.HasSuffix(strings.Join(f, " "), "udp x tcp db: x") {
		s.t.Fatalf("line %q; stderr %s", f, s.stderr())
	}
	return f[1]
}

// forget drops what was told until now.
func (s *session) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.errs.Reset()
}

func (s *session) finish(url string) {
	s.t.Helper()
	s.cmd.Process.Signal(interrupt)
	s.collect()
	s.end()
	var r result
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if r = call(url, "10"); strings.Count(r.stdout, "pod ") == 10 {
			nothingLeft(s.t, soon)
			return
		}
	}
	s.t.Errorf("after the session: %s%s", r.stdout, r.stderr)
}

// The pods of the next two end gracefully, so that natively no request is lost: none is with a session,
// but for those that are in flight at one moment.

func TestTheOnlyPodOfADeploymentIsFollowedWhenItIsReplaced(t *testing.T) {
	s := reside(t, "deployment/single")
	old := s.stands()
	served(t, s, "http://single/before", 10)
	for _, c := range []struct{ name, argv string }{
		{"deleted", "delete pod POD --wait=false"},
		{"rolling restart", "rollout restart deployment/single"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s.forget()
			stop := stream(t, "single", "during")
			if r := kubectl(strings.Fields(strings.ReplaceAll(c.argv, "POD", old))...); r.code != 0 {
				t.Fatal(r.stderr)
			}
			old = movedTo(t, s, podsOf(t, "single"), old)
			served(t, s, "http://single/after", 10)
			stop().atMost(t, workers)
		})
	}
	s.finish("http://single/end")
}

func TestOfTwoPodsTheOtherOneIsStoodForWhenOneIsReplaced(t *testing.T) {
	s := reside(t, "deployment/double")
	old := s.stands()
	if first := slicesMin(podsOf(t, "double")); first != old {
		t.Errorf("stands for %s, the first is %s", old, first)
	}
	served(t, s, "http://double/before", 20)
	t.Run("deleted", func(t *testing.T) {
		stop := stream(t, "double", "during")
		if r := kubectl("delete", "pod", old, "--wait=false"); r.code != 0 {
			t.Fatal(r.stderr)
		}
		old = movedTo(t, s, podsOf(t, "double"), old)
		served(t, s, "http://double/after", 20)
		stop().atMost(t, workers)
	})
	t.Run("rolling restart", func(t *testing.T) {
		stop := stream(t, "double", "during")
		if r := kubectl("rollout", "restart", "deployment/double"); r.code != 0 {
			t.Fatal(r.stderr)
		}
		pods := podsOf(t, "double")
		// It may have moved to a second old one before.
		for now := ""; pods[now] == ""; {
			s.until("file", "ESTALE")
			f := strings.Fields(s.line())
			if len(f) < 2 {
				t.Fatalf("%q: %s", f, s.stderr())
			}
			now = f[1]
			if pods[now] != "" && pods[now] != f[0] {
				t.Errorf("files of %s, connections from %s: %v", now, f[0], pods)
			}
		}
		served(t, s, "http://double/after", 20)
		stop().atMost(t, 2*workers) // each of the pods ends
	})
	s.finish("http://double/end")
}

func slicesMin(m map[string]string) (least string) {
	for k := range m {
		if least == "" || k < least {
			least = k
		}
	}
	return least
}

func TestAContainerThatIsStartedAnewIsFollowed(t *testing.T) {
	s := reside(t, "deployment/shared")
	pod := s.stands()
	if r := kubectl("exec", pod, "-c", "shared", "--", "/app", "kill", "orders"); r.code != 0 {
		t.Fatal(r.stderr)
	}
	s.until("file", "ESTALE")
	s.until(podsOf(t, "shared")[pod], pod, "udp x", "tcp db: x")
	if !strings.Contains(s.stderr(), "the app of pod "+pod+" was started anew; now in the stead of that") {
		t.Errorf("what is told: %s", s.stderr())
	}
	served(t, s, "http://shared/anew", 10)
	s.finish("http://shared/end")
}

func TestAPodThatHasNoSuccessorEndsTheProgramWithTheReason(t *testing.T) {
	r := apply(pod("alone", namespace, "registry.local/e2e:1", "idle") + `
---
{apiVersion: batch/v1, kind: Job, metadata: {name: task, namespace: shop}, spec: {backoffLimit: 0, template: {metadata: {labels: {app: task}}, spec: {restartPolicy: Never, shareProcessNamespace: true, terminationGracePeriodSeconds: 0, containers: [{name: task, image: "registry.local/e2e:1", args: [idle]}]}}}}
`)
	if r.code != 0 {
		t.Fatal(r.stderr)
	}
	t.Cleanup(func() { kubectl("delete", "pod/alone", "job/task", "--wait=false", "--ignore-not-found") })
	for _, p := range []string{"app=task", ""} {
		what := []string{"pod", "-l", p}
		if p == "" {
			what = []string{"pod/alone"}
		}
		if r := kubectl(append([]string{"wait", "--for=condition=Ready", "--timeout=60s"}, what...)...); r.code != 0 {
			t.Fatal(r.stderr)
		}
	}
	task := podOf(t, "task")
	for _, c := range []struct {
		target, name string
		flags, end   []string
	}{
		{"pod/alone", "alone", nil, []string{"delete", "pod", "alone", "--wait=false"}},
		{"job/task", task, nil, []string{"exec", task, "--", "/app", "kill", "idle"}},
		{"deployment/bare", podOf(t, "bare"), []string{"--follow", "0"}, []string{"delete", "pod", podOf(t, "bare"), "--wait=false"}},
	} {
		t.Run(c.target, func(t *testing.T) {
			s := begin(t, c.target, append(c.flags, "--no-incoming"), "sh", "-c", "cat /etc/hostname; exec sleep 1000")
			s.expect(c.name)
			if r := kubectl(c.end...); r.code != 0 {
				t.Fatal(r.stderr)
			}
			if code := s.end(); code != 125 || !strings.Contains(s.stderr(), "error: pod "+c.name+" ended") || !strings.Contains(s.stderr(), "; the program was ended\n") || strings.Count(s.stderr(), "hint: ") != 1 {
				t.Errorf("exit code %d: %s", code, s.stderr())
			}
		})
	}
	podsOf(t, "bare")
	for range 100 { // the Service knows its new pod
		if r := call("http://bare/", "1"); r.code == 0 {
			break
		}
	}
	nothingLeft(t, soon)
}
