//go:build e2e

package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// beside starts a command of stead that goes on beside the test, and gives what matches in the line
// of its standard error by which it says that it is ready.
func beside(t *testing.T, ready string, args ...string) []string {
	t.Helper()
	c := exec.Command(stead, append(args, "-n", namespace)...)
	c.Env, c.Dir = environment(), work
	errs, err := c.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Process.Signal(syscall.SIGINT)
		io.Copy(io.Discard, errs)
		if err := c.Wait(); err != nil {
			t.Errorf("stead %v: %v", args, err)
		}
	})
	var said []string
	for lines := bufio.NewScanner(errs); lines.Scan(); {
		said = append(said, lines.Text())
		if m := regexp.MustCompile(ready).FindStringSubmatch(lines.Text()); m != nil {
			return m
		}
	}
	t.Fatalf("stead %v says %q", args, said)
	return nil
}

func TestPortsAreForwardedThroughTheTarget(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "laptop:", r.URL.Path) }))
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	t.Run("to what the pod reaches", func(t *testing.T) {
		m := beside(t, `(127\.0\.0\.1:\d+)`, "port-forward", "--target", "statefulset/db", "-L", "0:bare:80")
		resp, err := http.Get("http://" + m[1] + "/forwarded")
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if !strings.HasPrefix(string(b), "pod bare-") || !strings.Contains(string(b), "/forwarded") {
			t.Errorf("%q", b)
		}
	})
	t.Run("through a pod that is replaced", func(t *testing.T) {
		m := beside(t, `(127\.0\.0\.1:\d+)`, "port-forward", "--target", "deployment/bare", "-L", "0:db:80")
		from := func() string { // as db sees it
			c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: limit}
			resp, err := c.Get("http://" + m[1] + "/")
			if err != nil {
				return err.Error()
			}
			defer resp.Body.Close()
			b, _ := io.ReadAll(resp.Body)
			ip, _, _ := strings.Cut(string(b), ":")
			return ip
		}
		old := podOf(t, "bare")
		if got, want := from(), podsOf(t, "bare")[old]; got != want {
			t.Errorf("it leaves from %s, not %s", got, want)
		}
		if r := kubectl("delete", "pod", old, "--wait=false"); r.code != 0 {
			t.Fatal(r.stderr)
		}
		want := ""
		for _, want = range podsOf(t, "bare") {
		}
		last := ""
		for end := time.Now().Add(limit); time.Now().Before(end) && last != want; time.Sleep(200 * time.Millisecond) {
			last = from()
		}
		if last != want {
			t.Errorf("it leaves from %s, not %s", last, want)
		}
		for end := time.Now().Add(limit); time.Now().Before(end) && call("http://bare/", "1").code != 0; {
		}
	})
	t.Run("to the laptop", func(t *testing.T) {
		beside(t, "8080", "port-forward", "--target", "deployment/bare", "-R", "8080:"+port)
		if r := call("http://bare/back", "1"); r.stdout != "laptop: /back\n" {
			t.Errorf("%s%s", r.stdout, r.stderr)
		}
	})
	if r := call("http://bare/after", "1"); !strings.HasPrefix(r.stdout, "pod bare-") {
		t.Errorf("afterwards: %s%s", r.stdout, r.stderr)
	}
}

func TestTheWayIsMeasured(t *testing.T) {
	r := tool("diagnose", "latency", "--target", "deployment/bare", "--count", "20", "--to", "db:5432")
	lines := strings.Split(r.stdout, "\n")
	if r.code != 0 || len(lines) != 5 {
		t.Fatalf("exit code %d: %s%s", r.code, r.stdout, r.stderr)
	}
	ip := regexp.QuoteMeta(kubectl("get", "pod", "db-0", "-o", "jsonpath={.status.podIP}").stdout)
	const many = `median (\S+), 90% within (\S+), 99% within (\S+), fastest (\S+), slowest (\S+) \(20\)`
	for i, want := range []string{
		`session with the agent beside deployment/bare: (\S+)`, `there and back: ` + many,
		`name db: (\S+) \[` + ip + `\]`, `connections to db:5432 from the target: ` + many,
	} {
		m := regexp.MustCompile("^" + want + "$").FindStringSubmatch(lines[i])
		if m == nil {
			t.Errorf("%q, want %s", lines[i], want)
			continue
		}
		var d []time.Duration
		for _, s := range m[1:] {
			v, err := time.ParseDuration(s)
			if err != nil || v <= 0 {
				t.Errorf("%q: %s: %v", lines[i], s, err)
			}
			d = append(d, v)
		}
		if len(d) == 5 && !slices.IsSorted([]time.Duration{d[3], d[0], d[1], d[2], d[4]}) {
			t.Errorf("not in order: %s", lines[i])
		}
	}
	if r := tool("diagnose", "latency", "--target", "deployment/bare", "--to", "db:1"); r.code != 125 || !strings.Contains(r.stderr, "connection refused") {
		t.Errorf("a port where nobody listens: exit code %d: %s%s", r.code, r.stdout, r.stderr)
	}
}

func TestWhatReachesTheTargetIsPrinted(t *testing.T) {
	c := exec.Command(stead, "dump", "-n", namespace, "--target", "deployment/bare", "-p", "8080")
	c.Env, c.Dir = environment(), work
	var said strings.Builder
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	errs, err := c.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if l, _ := bufio.NewReader(errs).ReadString('\n'); !strings.Contains(l, "port 8080 of deployment/bare") {
		t.Errorf("it says %q", l)
	}
	client := kubectl("get", "pod", "client", "-o", "jsonpath={.status.podIP}").stdout
	if r := call("http://bare/printed", "2"); strings.Count(r.stdout, "pod bare-") != 2 { // the app answers
		t.Errorf("%s%s", r.stdout, r.stderr)
	}
	ends := 0
	for lines := bufio.NewScanner(out); ends < 2 && lines.Scan(); {
		fmt.Fprintln(&said, lines.Text())
		if strings.HasSuffix(lines.Text(), " ends") {
			ends++
		}
	}
	c.Process.Signal(interrupt)
	if err := c.Wait(); err != nil {
		t.Error(err)
	}
	for _, want := range []string{"GET /printed HTTP/1.1", "Host: bare", "#1 " + client + ":", "#2 " + client + ":", "-> :8080"} {
		if !strings.Contains(said.String(), want) {
			t.Errorf("%q is not printed:\n%s", want, said.String())
		}
	}
}
