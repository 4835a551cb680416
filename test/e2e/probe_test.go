//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// ill is a program that answers every look at its health with an error, and prints who looks.
const ill = `
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"program: GET %s\n" % self.path.encode()
        self.send_response(500 if self.path == "/healthz" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        print(self.path + " " + self.headers["User-Agent"].split("/")[0] + "\n", end="", flush=True) # one write: two probes come at once
    def log_message(self, *args):
        pass
server = http.server.ThreadingHTTPServer(("", 8080), Handler)
print("listening", flush=True)
server.serve_forever()
`

// probed is a target whose kubelet looks every second and would restart it after three failures.
type probed struct {
	t    *testing.T
	pod  string
	then string
}

func probe(t *testing.T) *probed {
	p := &probed{t: t}
	for p.pod = range podsOf(t, "orders") {
		break
	}
	p.then = p.state()
	return p
}

// state is how often the container was started, and whether and since when the pod is ready. The API server
// may be busy for a moment.
func (p *probed) state() string {
	p.t.Helper()
	for end := time.Now().Add(limit); ; time.Sleep(time.Second) {
		r := kubectl("get", "pod", p.pod, "-o", `jsonpath={.status.containerStatuses[0].restartCount} {range .status.conditions[?(@.type=="Ready")]}{.status} {.lastTransitionTime}{end}`)
		if r.code == 0 {
			return r.stdout
		}
		if p.t.Logf("exit code %d: %s", r.code, r.stderr); time.Now().After(end) {
			p.t.FailNow()
		}
	}
}

// stays waits for a multiple of what the kubelet takes to see that something is wrong.
func (p *probed) stays(what string) {
	p.t.Helper()
	for end := time.Now().Add(8 * time.Second); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if now := p.state(); now != p.then || !strings.Contains(now, "True") {
			p.t.Fatalf("%s: before %q, now %q; %s", what, p.then, now, kubectl("events", "--for", "pod/"+p.pod).stdout)
		}
	}
}

func TestProbesOfTheKubeletGoOnBeingAnswered(t *testing.T) {
	script := filepath.Join(work, "ill.py")
	if err := os.WriteFile(script, []byte(ill), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Run("by the app, while the program has its port", func(t *testing.T) {
		p := probe(t)
		s := begin(t, "pod/"+p.pod, []string{"--steal"}, "python3", script)
		s.expect("listening")
		ip := kubectl("get", "pod", p.pod, "-o", "jsonpath={.status.podIP}").stdout
		p.stays("under steal")
		// Nobody but the kubelet is sent to the app, and only for a probe.
		for _, path := range []string{"/x", "/healthz"} {
			if r := call("http://"+ip+":8080"+path, "1"); r.stdout != "program: GET "+path+"\n" {
				t.Errorf("%s is answered by %s%s", path, r.stdout, r.stderr)
			}
			s.expect(path + " Go-http-client") // the first of what it saw: no probe was among it
		}
		s.cmd.Process.Signal(interrupt)
		s.end()
	})
	t.Run("by the app, while the program does not listen", func(t *testing.T) {
		p := probe(t)
		s := begin(t, "pod/"+p.pod, []string{"--steal", "--steal-probes"}, "sh", "-c", "echo here; exec sleep 1000")
		s.expect("here")
		p.stays("before it listens")
		s.cmd.Process.Signal(interrupt)
		s.end()
	})
	t.Run("by the app, while they are mirrored", func(t *testing.T) {
		p := probe(t)
		s := begin(t, "pod/"+p.pod, nil, "python3", script)
		s.expect("listening")
		p.stays("mirrored")
		s.expect("/healthz kube-probe")
		s.cmd.Process.Signal(interrupt)
		s.end()
	})
	t.Run("by the program, where that is wished", func(t *testing.T) {
		p := probe(t)
		s := begin(t, "pod/"+p.pod, []string{"--steal", "--steal-probes"}, programs()+"/goprobe", "serve", "8080", "6")
		s.expect("listening 8080")
		for range 6 {
			if l := s.line(); !strings.HasPrefix(l, "served GET /healthz") {
				t.Errorf("the program saw %q", l)
			}
		}
		s.end()
		p.stays("afterwards")
	})
	nothingLeft(t, soon)
}
