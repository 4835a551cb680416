package conformance

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/stead-dev/stead/test/internal/bed"
)

// until starts stead and returns when its standard error has had a line for each of want, with what
// they capture.
func until(t *testing.T, b *bed.Bed, want []string, args ...string) (c *exec.Cmd, out io.Reader, got [][]string) {
	t.Helper()
	c = b.Command(args...)
	errs, err := c.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if out, err = c.StdoutPipe(); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Process.Kill() })
	lines := bufio.NewScanner(errs)
	for _, w := range want {
		if !lines.Scan() {
			t.Fatalf("no line %s", w)
		}
		m := regexp.MustCompile(w).FindStringSubmatch(lines.Text())
		if m == nil {
			t.Fatalf("line %q, want %s", lines.Text(), w)
		}
		got = append(got, m)
	}
	go io.Copy(io.Discard, errs)
	return c, out, got
}

func interrupted(t *testing.T, c *exec.Cmd) {
	t.Helper()
	c.Process.Signal(syscall.SIGINT)
	if err := c.Wait(); err != nil {
		t.Errorf("after Ctrl-C: %v", err)
	}
}

func TestSinglePortsAreCarried(t *testing.T) {
	b := bed.Up(t, stead, "conformance-forward")
	own, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "the laptop's\n") })}
	go server.Serve(own)
	defer server.Close()
	_, port, _ := net.SplitHostPort(own.Addr().String())
	c, _, got := until(t, b, []string{`^stead: (\S+) -> db:5432 as`, `^stead: (\S+) -> db.shop.svc.cluster.local:80 as`, `^stead: (\S+) -> none:1 as`, `^stead: port 8080 of playground/orders -> 127`},
		"port-forward", "-t", "playground/orders", "-L", "0:db:5432", "-L", "0:db.shop.svc.cluster.local:80", "-L", "0:none:1", "-R", "8080:"+port)
	conn, err := net.Dial("tcp", got[0][1])
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(conn, "hello\n")
	conn.(*net.TCPConn).CloseWrite()
	if answer, err := io.ReadAll(conn); string(answer) != "db: hello\n" || err != nil {
		t.Errorf("db answers %q, %v", answer, err)
	}
	if r, err := http.Get("http://" + got[1][1]); err != nil {
		t.Error(err)
	} else if body, _ := io.ReadAll(r.Body); !strings.Contains(string(body), "10.244.0.11") && !strings.Contains(string(body), "fd00:244::11") {
		t.Errorf("db saw %q, not orders", body)
	}
	if conn, err := net.Dial("tcp", got[2][1]); err == nil {
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			t.Error("a name that is not there gives an answer")
		}
	}
	if r := b.Call("http://orders:8080/x"); r.Stdout != "the laptop's\n" {
		t.Errorf("orders answers %q %s", r.Stdout, r.Stderr)
	}
	server.Close() // nobody listens: the app does
	if r := b.Call("http://orders:8080/y"); r.Stdout != "orders-0 (pod): GET /y\n" {
		t.Errorf("without a listener on the laptop: %q %s", r.Stdout, r.Stderr)
	}
	interrupted(t, c)
	if r := b.Call("http://orders:8080/z"); r.Stdout != "orders-0 (pod): GET /z\n" {
		t.Errorf("afterwards: %q %s", r.Stdout, r.Stderr)
	}
}

func TestDumpPrintsWhatReachesTheTarget(t *testing.T) {
	b := bed.Up(t, stead, "conformance-dump")
	c, out, _ := until(t, b, []string{`^stead: what reaches port 8080`, `^stead: what reaches port 9000`}, "dump", "-t", "playground/orders", "-p", "8080,9000")
	if r := b.Call("--header", "X-Mark: seen", "http://orders:8080/dumped"); r.Stdout != "orders-0 (pod): GET /dumped\n" {
		t.Errorf("the app answers %q %s", r.Stdout, r.Stderr)
	}
	if r := b.Run("playground", "exec", "client", "--", "python3", "-c",
		"import socket; c = socket.create_connection(('orders', 9000)); c.sendall(bytes(range(32))); c.shutdown(1); print(len(c.recv(100)))"); r.Stdout != "32\n" {
		t.Fatalf("orders' echo: %q %s", r.Stdout, r.Stderr)
	}
	var text strings.Builder
	for lines := bufio.NewScanner(out); lines.Scan(); {
		text.WriteString(lines.Text() + "\n")
		if strings.Contains(lines.Text(), "#2 ") && strings.HasSuffix(lines.Text(), " ends") {
			break
		}
	}
	interrupted(t, c)
	for _, want := range []string{`(?m)^#1 \S+ -> :8080 \S+ begins$`, `(?m)^GET /dumped HTTP/1.1\r?$`, `(?m)^X-Mark: seen\r?$`, `(?m)^#2 \S+ -> :9000 \S+ 32 bytes$`,
		`(?m)^00000010  10 11 12 13 14 15 16 17  18 19 1a 1b 1c 1d 1e 1f`} {
		if !regexp.MustCompile(want).MatchString(text.String()) {
			t.Errorf("no %s in\n%s", want, text.String())
		}
	}
}

func TestLatencyIsMeasuredAndBadInputExplained(t *testing.T) {
	b := bed.Up(t, stead, "conformance-latency")
	r := b.Run("diagnose", "latency", "-t", "playground/orders", "--count", "20", "--to", "db:5432")
	if !regexp.MustCompile(`(?s)^session with .*\nthere and back: median .* \(20\)\nname db: .*\nconnections to db:5432 from the target: median .* \(20\)\n$`).MatchString(r.Stdout) || r.Code != 0 || r.Stderr != "" {
		t.Errorf("exit code %d: %s%s", r.Code, r.Stdout, r.Stderr)
	}
	for _, c := range []struct{ args, says string }{
		{"port-forward -t playground/orders", "no port to carry"},
		{"port-forward -L 1:a:2", "no target"},
		{"port-forward -t playground/orders -L 5432", "-L 5432: want [BIND:]PORT:HOST:PORT"},
		{"port-forward -t playground/orders -L 99999:db:1", `"99999" is no port`},
		{"port-forward -t playground/orders -R 8080:x:y", `"y" is no port`},
		{"port-forward -t playground/orders -L 203.0.113.1:1:db:1", "listen on 203.0.113.1:1"},
		{"dump -t playground/orders", "no port"},
		{"dump -t playground/orders -p 0", "-p 0: no port"},
		{"diagnose", "nothing to measure"},
		{"diagnose latency -t playground/orders --to db", "--to db: want HOST:PORT"},
		{"diagnose latency -t playground/orders --to none:1", "the target knows no host none"},
		{"diagnose latency -t playground/orders --count 0", "--count 0"},
	} {
		r := b.Run(strings.Fields(c.args)...)
		if r.Code != 125 && r.Code != 1 || !strings.Contains(r.Stderr, c.says) || strings.Count(r.Stderr, "error: ") != 1 || strings.Count(r.Stderr, "\nhint: ") != 1 {
			t.Errorf("%s: exit code %d: %s", c.args, r.Code, r.Stderr)
		}
	}
}
