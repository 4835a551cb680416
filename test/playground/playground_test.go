// Package playground holds the playground to what docs/playground.md says: as root, in a user namespace, and
// as an ordinary user. It does so on a machine of its own (test/internal/machine).
package playground

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stead-dev/stead/internal/sys"
	"github.com/stead-dev/stead/test/internal/bed"
	"github.com/stead-dev/stead/test/internal/machine"
)

var stead = filepath.Join(bed.Cache(), "playground", "stead")

func TestMain(m *testing.M) {
	os.Exit(machine.Main(func() error { _, err := bed.Build("playground"); return err }, m.Run))
}

const nobody = 65534

// kinds are the ways in which a playground is made.
var kinds = []struct {
	name string
	up   func(t *testing.T) *bed.Bed
}{
	{"as root", func(t *testing.T) *bed.Bed { return bed.Up(t, stead, "test") }},
	{"in a user namespace", func(t *testing.T) *bed.Bed { return bed.Up(t, stead, "test", "--rootless") }},
	{"as an ordinary user", func(t *testing.T) *bed.Bed {
		readable := "/var/tmp/program"
		if out, err := exec.Command("cp", stead, readable).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		t.Cleanup(func() { os.Remove(readable) }) // after the playground, which it ends
		return bed.UpAs(t, readable, "test", nobody)
	}},
}

func eachKind(t *testing.T, f func(t *testing.T, b *bed.Bed)) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) { f(t, k.up(t)) })
	}
}

func TestEachPodHasNamespacesOfItsOwn(t *testing.T) {
	eachKind(t, func(t *testing.T, b *bed.Bed) {
		st := b.Status()
		whose := map[string]string{}
		look := func(who string, pid int, kinds ...string) {
			for _, kind := range kinds {
				ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
				if err != nil {
					t.Fatal(err)
				}
				if other := whose[ns]; other != "" {
					t.Errorf("%s and %s share %s", who, other, ns)
				}
				whose[ns] = who
			}
		}
		look("laptop", os.Getpid(), "net", "mnt", "uts", "pid", "ipc")
		look("switch", st.PID, "net", "mnt")
		for _, p := range st.Pods {
			look(p.Name, p.PID, "net", "mnt", "uts", "pid", "ipc")
		}
	})
}

// tryFrom is what a pod sees of addresses: "open" or why not.
const tryFrom = `
import socket, sys
for a in sys.argv[1:]:
    if a.startswith("@"):
        s, to = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET), "\0" + a[1:]
    else:
        host, port = a.rsplit(":", 1)
        s, to = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET), (host.strip("[]"), int(port))
    s.settimeout(2)
    try:
        s.connect(to); print(a, "open")
    except OSError as e:
        print(a, "no")
`

func TestLaptopAndPodsDoNotReachEachOther(t *testing.T) {
	// An address of the laptop that is not the loopback's.
	if out, err := exec.Command("ip", "addr", "add", "192.0.2.1/32", "dev", "lo").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := fmt.Sprint(l.Addr().(*net.TCPAddr).Port)
	abstract, err := net.Listen("unixpacket", "@laptop")
	if err != nil {
		t.Fatal(err)
	}
	defer abstract.Close()
	laptop := []string{"192.0.2.1:" + port, "127.0.0.1:" + port, "[::1]:" + port, "@laptop"}
	tried := func(f func(argv ...string) bed.Result, at ...string) string {
		return f(append([]string{"python3", "-c", tryFrom}, at...)...).Stdout
	}
	native := func(argv ...string) (r bed.Result) {
		b, _ := exec.Command(argv[0], argv[1:]...).Output()
		return bed.Result{Stdout: string(b)}
	}
	if got := tried(native, laptop...); strings.Count(got, "open") != len(laptop) {
		t.Fatalf("the laptop does not reach itself: %s", got)
	}
	eachKind(t, func(t *testing.T, b *bed.Bed) {
		pods := []string{"10.244.0.11:8080", "[fd00:244::11]:8080", "10.244.0.12:80", "10.96.0.10:53", "10.244.0.1:53"}
		for _, pod := range []string{"orders", "db", "client"} {
			in := func(argv ...string) bed.Result {
				return b.Run(append([]string{"playground", "exec", pod, "--"}, argv...)...)
			}
			if got := tried(in, laptop...); strings.Count(got, "no\n") != len(laptop) {
				t.Errorf("%s reaches the laptop: %s", pod, got)
			}
			if got := tried(in, pods[:4]...); strings.Count(got, "open") != 4 {
				t.Errorf("%s does not reach the other pods: %s", pod, got)
			}
		}
		if got := tried(native, pods...); strings.Count(got, "no\n") != len(pods) {
			t.Errorf("the laptop reaches the pods: %s", got)
		}
	})
}

// Others read it: its keys are a promise.
func TestStatusHasTheseKeysAndNoOther(t *testing.T) {
	eachKind(t, func(t *testing.T, b *bed.Bed) {
		keys := func() (top []string, pods [][]string) {
			r := b.Run("playground", "status", "-o", "json")
			var st map[string]any
			if err := json.Unmarshal([]byte(r.Stdout), &st); err != nil || r.Code != 0 {
				t.Fatalf("%v: %q %s", err, r.Stdout, r.Stderr)
			}
			if strings.Count(r.Stdout, "\n") != 1 {
				t.Errorf("not one line: %q", r.Stdout)
			}
			for i, x := range st["pods"].([]any) {
				p := x.(map[string]any)
				pods = append(pods, slices.Sorted(maps.Keys(p)))
				if want := []string{"orders", "db", "client"}[i]; p["name"] != want {
					t.Errorf("pod %d is %v, want %s", i, p["name"], want)
				}
				want := []any{fmt.Sprintf("10.244.0.%d", 11+i), fmt.Sprintf("fd00:244::%d", 11+i)}
				if diff := cmp.Diff(want, p["ips"]); diff != "" {
					t.Errorf("addresses of pod %d: -want +got\n%s", i, diff)
				}
				if pid, ok := p["pid"].(float64); !ok || pid <= 1 {
					t.Errorf("pid of pod %d: %v", i, p["pid"])
				}
				if p["restarts"] != 0.0 {
					t.Errorf("restarts of pod %d: %v", i, p["restarts"])
				}
			}
			return slices.Sorted(maps.Keys(st)), pods
		}
		plain := []string{"ips", "name", "pid", "restarts"}
		top, pods := keys()
		if diff := cmp.Diff([]string{"pid", "pods", "rootless"}, top); diff != "" {
			t.Errorf("-want +got\n%s", diff)
		}
		if diff := cmp.Diff([][]string{plain, plain, plain}, pods); diff != "" {
			t.Errorf("-want +got\n%s", diff)
		}
		if r := b.Exec(nil, "true"); r.Code != 0 { // leaves an agent for a moment
			t.Fatal(r.Stderr)
		}
		_, pods = keys()
		if diff := cmp.Diff([][]string{append([]string{"agent"}, plain...), plain, plain}, pods); diff != "" {
			t.Errorf("with an agent: -want +got\n%s", diff)
		}
	})
}

func TestThePodsHaveWhatTheTableSays(t *testing.T) {
	eachKind(t, func(t *testing.T, b *bed.Bed) {
		const certs = "/etc/orders/config.yaml"
		for _, x := range []struct {
			pod  string
			argv []string
			want string
		}{
			{"orders", []string{"hostname"}, "orders-0\n"},
			{"db", []string{"hostname"}, "db-0\n"},
			{"client", []string{"hostname"}, "client-0\n"},
			{"orders", []string{"sh", "-c", `echo "$POD_NAME $DATABASE_URL $GREETING $HOME"`}, "orders-0 tcp://db.shop.svc.cluster.local:5432 hello from the pod /home/pod\n"},
			{"orders", []string{"sh", "-c", `echo $PATH | grep -o /pod/bin`}, "/pod/bin\n"},
			{"orders", []string{"head", "-1", certs}, "name: orders\n"},
			{"orders", []string{"cat", "/var/run/secrets/orders/token"}, "s3cr3t-of-orders-0"},
			{"orders", []string{"cat", "/etc/resolv.conf"}, "nameserver 10.96.0.10\nsearch shop.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"},
			{"orders", []string{"sh", "-c", "cd /var/data && sha256sum -c big.bin.sha256 && stat -c %s big.bin && readlink link && ls many | wc -l && cat many/entry-1999"}, "big.bin: OK\n67108864\nbig.bin\n2000\n/var/data/many/entry-1999\n"},
			{"orders", []string{"sh", "-c", "touch /tmp/x /var/data/new && echo $$ && ls /proc | grep -c '^[0-9]'"}, ""},
			{"db", []string{"sh", "-c", "ls /var/data /var/run/secrets/orders /etc/orders 2>/dev/null | wc -l"}, "0\n"}, // the other pods have none of it
		} {
			r := b.Run(append([]string{"playground", "exec", x.pod, "--"}, x.argv...)...)
			if r.Code != 0 || x.want != "" && r.Stdout != x.want {
				t.Errorf("%s: %q: %d, %q, want %q %s", x.pod, x.argv, r.Code, r.Stdout, x.want, r.Stderr)
			}
		}
		for _, at := range []string{"/run/secrets/orders", "/var/data/new", "/etc/orders"} {
			if _, err := os.Stat(at); err == nil {
				t.Errorf("%s is on the laptop", at)
			}
		}
		for _, x := range []struct{ url, data, want string }{
			{"http://orders:8080/path?q=1", "", "orders-0 (pod): GET /path?q=1\n"},
			{"http://[fd00:244::11]:8080/", "", "orders-0 (pod): GET /\n"},
			{"http://orders.shop.svc.cluster.local:8080/", "", "orders-0 (pod): GET /\n"},
			{"tcp://orders:9000", "echo\nme", "echo\nme"},
			{"udp://orders:9001", "datagram", "datagram"},
			{"udp://[fd00:244::11]:9001", "datagram", "datagram"},
			{"tcp://db:5432", "one\ntwo\n", "db: one\ndb: two\n"},
			{"udp://db:5433", "datagram", "datagram"},
		} {
			if r := b.Call(x.url, "--data", x.data); r.Stdout != x.want || r.Code != 0 {
				t.Errorf("%s: %d, %q, want %q %s", x.url, r.Code, r.Stdout, x.want, r.Stderr)
			}
		}
		for url, want := range map[string]string{"http://10.244.0.12/": "10.244.0.13", "http://[fd00:244::12]/": "fd00:244::13"} {
			r := b.Call(url)
			if a, err := netip.ParseAddrPort(strings.TrimSpace(r.Stdout)); err != nil || a.Addr().Unmap() != netip.MustParseAddr(want) {
				t.Errorf("%s saw %q, want %s %s", url, r.Stdout, want, r.Stderr)
			}
		}
	})
}

// inside gives the network of a pod.
func inside(t *testing.T, pid int) func(ctx context.Context, network, addr string) (net.Conn, error) {
	t.Helper()
	n, err := sys.EnterNetwork(pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	return func(ctx context.Context, network, addr string) (c net.Conn, err error) {
		err = n.Do(func() error { c, err = new(net.Dialer).DialContext(ctx, network, addr); return err })
		return c, err
	}
}

func TestOrdersSpeaksHTTP1AndHTTP2WithoutTLS(t *testing.T) {
	eachKind(t, func(t *testing.T, b *bed.Bed) {
		dial := inside(t, b.Status().Pods[2].PID)
		for version, set := range map[int]func(*http.Protocols){
			1: func(p *http.Protocols) { p.SetHTTP1(true) },
			2: func(p *http.Protocols) { p.SetUnencryptedHTTP2(true) },
		} {
			tr := &http.Transport{DialContext: dial, Protocols: new(http.Protocols)}
			set(tr.Protocols)
			defer tr.CloseIdleConnections()
			resp, err := (&http.Client{Transport: tr, Timeout: bed.Limit}).Post("http://10.244.0.11:8080/x", "text/plain", strings.NewReader("body"))
			if err != nil {
				t.Errorf("HTTP/%d: %v", version, err)
				continue
			}
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.ProtoMajor != version || string(body) != "orders-0 (pod): POST /x\n" || err != nil {
				t.Errorf("HTTP/%d: %s, %q, %v", version, resp.Proto, body, err)
			}
		}
	})
}

func TestTheNameserverKnowsThePodsAndNobodyElse(t *testing.T) {
	eachKind(t, func(t *testing.T, b *bed.Bed) {
		dial := inside(t, b.Status().Pods[0].PID)
		for _, transport := range []string{"udp", "tcp"} {
			r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return dial(ctx, transport, "10.96.0.10:53")
			}}
			for i, name := range []string{"orders", "db", "client"} {
				for network, want := range map[string]string{"ip4": fmt.Sprintf("10.244.0.%d", 11+i), "ip6": fmt.Sprintf("fd00:244::%d", 11+i)} {
					got, err := r.LookupNetIP(context.Background(), network, name+".shop.svc.cluster.local.")
					if err != nil || len(got) != 1 || got[0].Unmap().String() != want {
						t.Errorf("%s by %s, %s: %v, %v; want %s", name, transport, network, got, err, want)
					}
				}
			}
			for _, name := range []string{"none.shop.svc.cluster.local.", "example.com."} {
				_, err := r.LookupNetIP(context.Background(), "ip", name)
				if e := (*net.DNSError)(nil); !errors.As(err, &e) || !e.IsNotFound {
					t.Errorf("%s by %s: %v", name, transport, err)
				}
			}
		}
		// As the programs of a pod ask: by its search list.
		if r := b.Native("getent", "ahostsv4", "db"); !strings.HasPrefix(r.Stdout, "10.244.0.12 ") {
			t.Errorf("%q %s", r.Stdout, r.Stderr)
		}
	})
}

// meeting is a server in orders that answers when as many requests are there at a time as it was told,
// with what it has got.
const meeting = `
import http.server, sys, threading
all = threading.Barrier(int(sys.argv[1]))
class H(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        b = self.rfile.read(int(self.headers["Content-Length"]))
        all.wait()
        b = ("%s %s %s\n" % (self.headers["Host"], ",".join(self.headers.get_all("X-Test")), b.decode())).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(b))); self.end_headers(); self.wfile.write(b)
    def log_message(self, *a): pass
class S(http.server.ThreadingHTTPServer): request_queue_size = 128
s = S(("0.0.0.0", 8081), H)
print("ready", flush=True)
s.serve_forever()
`

func TestCallSendsAsManyRequestsAtATimeAsItIsTold(t *testing.T) {
	b := bed.Up(t, stead, "test")
	c := b.Command("playground", "exec", "orders", "--", "python3", "-c", meeting, "7")
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { c.Process.Kill(); c.Wait() }()
	if _, err := io.ReadFull(out, make([]byte, len("ready\n"))); err != nil {
		t.Fatal(err)
	}
	r := b.Call("--count", "21", "--concurrency", "7", "--method", "POST", "--data", "body", "--header", "X-Test: one", "--header", "X-Test: two", "--header", "Host: shop.example", "http://orders:8081/")
	if want := strings.Repeat("shop.example one,two body\n", 21); r.Stdout != want || r.Code != 0 || !strings.Contains(r.Stderr, "21 requests in ") || !strings.Contains(r.Stderr, ", 0 failed") {
		t.Errorf("%d, %q %s", r.Code, r.Stdout, r.Stderr)
	}
	if r := b.Call("--count", "3", "http://orders:1/"); r.Code != 1 || strings.Count(r.Stderr, "error: ") != 3 || !strings.Contains(r.Stderr, ", 3 failed") || strings.Count(r.Stderr, "hint: ") != 1 || r.Stdout != "" {
		t.Errorf("where nobody listens: %d, %q %s", r.Code, r.Stdout, r.Stderr)
	}
	for _, flag := range []string{"--count", "--concurrency"} {
		if r := b.Call(flag, "0", "http://orders:8080/"); r.Code != 125 || !strings.Contains(r.Stderr, "hint: ") {
			t.Errorf("%s 0: %d %s", flag, r.Code, r.Stderr)
		}
	}
}

func TestTwiceUpAndTwiceDownAreToldApart(t *testing.T) {
	eachKind(t, func(t *testing.T, b *bed.Bed) {
		st := b.Status()
		if r := b.Run("playground", "up", "--detach"); r.Code != 125 || r.Stderr != "error: the playground is up already\nhint: stead playground down\n" {
			t.Errorf("up again: %d %s", r.Code, r.Stderr)
		}
		if now := b.Status(); now.PID != st.PID {
			t.Error("another playground is up")
		}
		if r := b.Run("playground", "down"); r.Code != 0 || r.Stdout+r.Stderr != "" {
			t.Errorf("down: %d %s", r.Code, r.Stderr)
		}
		for _, again := range []string{"down", "status"} {
			if r := b.Run("playground", again); r.Code != 125 || !strings.HasPrefix(r.Stderr, "error: the playground is not up\nhint: stead playground up") {
				t.Errorf("%s afterwards: %d %s", again, r.Code, r.Stderr)
			}
		}
		if r := b.Run("playground", "up", "--detach"); r.Code != 0 {
			t.Errorf("up once more: %s", r.Stderr)
		}
	})
}

func TestTwoPlaygroundsOfOneUserAreApart(t *testing.T) {
	one, two := bed.Up(t, stead, "one"), bed.Up(t, stead, "two")
	if a, b := one.Status(), two.Status(); a.PID == b.PID || a.Pods[0].PID == b.Pods[0].PID {
		t.Errorf("%+v, %+v", a, b)
	}
	one.Native("touch", "/var/data/of-one")
	if r := two.Native("ls", "/var/data/of-one"); r.Code == 0 {
		t.Error("what is written in the one is in the other")
	}
	one.Run("playground", "down")
	if r := two.Call("http://orders:8080/"); r.Stdout != "orders-0 (pod): GET /\n" {
		t.Errorf("%q %s", r.Stdout, r.Stderr)
	}
}

func TestAnAppThatDiesIsStartedAgainInTheSamePod(t *testing.T) {
	eachKind(t, func(t *testing.T, b *bed.Bed) {
		before := b.Status().Pods[0]
		ns, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", before.PID))
		if err := syscall.Kill(before.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		bed.Eventually(t, "it is started again", func() bool { return b.Status().Pods[0].Restarts == 1 })
		now := b.Status().Pods[0]
		if again, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", now.PID)); again != ns || now.PID == before.PID {
			t.Errorf("%+v in %s, before %+v in %s", now, again, before, ns)
		}
		if r := b.Call("http://orders:8080/"); r.Stdout != "orders-0 (pod): GET /\n" {
			t.Errorf("%q %s", r.Stdout, r.Stderr)
		}
	})
}

// all is everything on the machine.
func all(t *testing.T) []string {
	return slices.Concat(machine.In(t, "laptop", os.Getpid()), machine.Files(t), machine.Processes(t))
}

func TestNothingIsLeftOfAPlaygroundHoweverItEnds(t *testing.T) {
	for _, k := range kinds {
		for _, how := range []string{"down", "kill -9 of the daemon", "SIGTERM"} {
			t.Run(k.name+", "+how, func(t *testing.T) {
				b := k.up(t)
				before := func() []string { // what the test itself has there
					return slices.DeleteFunc(all(t), func(x string) bool {
						return strings.HasPrefix(x, "process ") || strings.Contains(x, "stead-playground")
					})
				}()
				// Something runs in it: a command, an agent.
				c := b.Command("playground", "exec", "orders", "--", "sh", "-c", "setsid sleep 1000 & echo; exec sleep 1000")
				out, err := c.StdoutPipe()
				if err != nil {
					t.Fatal(err)
				}
				if err := c.Start(); err != nil {
					t.Fatal(err)
				}
				io.ReadFull(out, make([]byte, 1))
				if r := b.Exec(nil, "true"); r.Code != 0 {
					t.Fatal(r.Stderr)
				}
				if n := len(machine.Processes(t)); n < 8 {
					t.Fatalf("%d processes only", n)
				}
				pid := b.Status().PID
				switch how {
				case "down":
					b.Run("playground", "down")
				case "SIGTERM":
					syscall.Kill(pid, syscall.SIGTERM)
				default:
					syscall.Kill(pid, syscall.SIGKILL)
				}
				out.Close()
				c.Wait()
				var left []string
				for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
					left = slices.DeleteFunc(all(t), func(x string) bool { return slices.Contains(before, x) })
					if len(left) == 0 {
						return
					}
				}
				t.Errorf("left:\n%s", strings.Join(left, "\n"))
			})
		}
	}
}

// The playground writes to nothing of the machine's, whatever the pods do.
func TestWhatAPodWritesIsGoneWithIt(t *testing.T) {
	eachKind(t, func(t *testing.T, b *bed.Bed) {
		for _, at := range []string{"/etc/written", "/usr/written", "/var/lib/written", "/root-written", "/opt/written"} {
			b.Native("sh", "-c", "echo x > "+at)
			if _, err := os.Stat(at); err == nil {
				os.Remove(at)
				t.Errorf("%s is on the laptop", at)
			}
		}
	})
}
