package conformance

import (
	"bufio"
	"context"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stead-dev/stead/test/internal/bed"
	"github.com/stead-dev/stead/test/internal/corpus"
)

func TestStolenAndMirroredRequestsReachProgramsWithTheirRealClient(t *testing.T) {
	t.Parallel()
	b := bed.Up(t, stead, "conformance-serve")
	serve(t, b, programs, "mount", "trap", "copy")
}

// serve lets every program of the corpus serve what the client pod sends: natively on a port of its own,
// then under stead on the app's. by lists the doors for those programs in which they differ; none is the one
// that stead chooses.
func serve(t *testing.T, b *bed.Bed, dir string, by ...string) {
	for _, c := range corpus.Programs(dir) {
		t.Run(c.Name+" serves", func(t *testing.T) {
			ips := addresses(b)
			native := requests(t, b, ips, c, 8081, "playground", "exec", "orders", "--")
			for i, a := range native.answers {
				if !strings.Contains(a, " program: GET /") {
					t.Fatalf("natively: answer %q", a)
				}
				if want := strings.SplitN(a, "GET ", 2)[1]; "served GET "+strings.Replace(want, " from ", " ", 1) != native.lines[i] {
					t.Fatalf("natively it answered %q and said %q", a, native.lines[i])
				}
			}
			doors := []string{"auto"}
			switch c.Name {
			case "python3", "static Go", "bash with children and curl":
				doors = append(doors, by...)
			}
			for _, door := range doors {
				modes := []string{"--steal", "--mirror"}
				if c.Name == "static Go" {
					modes = append(modes, "--quiet") // and neither: mirror
				}
				for _, mode := range modes {
					t.Run(mode+" by "+door, func(t *testing.T) {
						under := requests(t, b, ips, c, 8080, "exec", "--target", "playground/orders", mode, "--files", door, "--")
						want := native
						if mode != "--steal" {
							want.answers = nil
							for _, l := range native.lines {
								want.answers = append(want.answers, "orders-0 (pod): GET "+strings.Fields(l)[2])
							}
						}
						if diff := cmp.Diff(want.lines, under.lines); diff != "" {
							t.Errorf("what it said: - pod + stead:\n%s", diff)
						}
						if diff := cmp.Diff(want.answers, under.answers); diff != "" {
							t.Errorf("what the client got: - pod + stead:\n%s", diff)
						}
					})
				}
			}
		})
	}
	if r := b.Call("http://orders:8080/after"); r.Stdout != "orders-0 (pod): GET /after\n" {
		t.Errorf("after the sessions: %q %s", r.Stdout, r.Stderr)
	}
}

// addresses are the pods' by name.
func addresses(b *bed.Bed) map[string][]netip.Addr {
	b.T.Helper()
	m := make(map[string][]netip.Addr)
	for _, p := range b.Status().Pods {
		for _, ip := range p.IPs {
			m[p.Name] = append(m[p.Name], netip.MustParseAddr(ip))
		}
	}
	return m
}

// exchange is what came of requests: the clients' answers in order and the program's lines, sorted; with
// CLIENT for the port that the client's kernel chose and PORT for the program's.
type exchange struct{ answers, lines []string }

// requests starts a program of the corpus by the command args and sends it one request by each address
// of orders and one by its name. What the program tells of the ends must be what the client's kernel says of
// them, to the port.
func requests(t *testing.T, b *bed.Bed, ips map[string][]netip.Addr, p corpus.Program, port int, args ...string) (x exchange) {
	t.Helper()
	at := strconv.Itoa(port)
	hosts := []string{ips["orders"][0].String(), "[" + ips["orders"][1].String() + "]", "orders"}
	if p.IPv4 {
		hosts[1], hosts[2] = hosts[0], hosts[0]
	}
	cmd := b.Command(append(append(slices.Clone(args), p.Serve...), at, strconv.Itoa(len(hosts)))...)
	server := begin(t, cmd)
	if l := server.line(); l != "listening "+at {
		server.end()
		t.Fatalf("first line %q, stderr %s", l, server.errs.String())
	}
	curl := []string{"playground", "exec", "client", "--", "curl", "-sgS", "--max-time", "60", "-H", "Connection: close", "-w", "%{local_ip} %{local_port}\n"}
	for i, h := range hosts {
		curl = append(curl, "http://"+h+":"+at+"/"+strconv.Itoa(i))
	}
	r := b.Run(curl...)
	said := strings.Split(strings.TrimSpace(r.Stdout), "\n")
	if r.Code != 0 || len(said) != 2*len(hosts) {
		t.Fatalf("the client: exit code %d, %q %s", r.Code, r.Stdout, r.Stderr)
	}
	x.lines = server.end()
	slices.Sort(x.lines) // by path: a mirrored request is served when the client has its answer already
	if len(x.lines) != len(hosts) {
		t.Fatalf("the program said %q, stderr %s", x.lines, server.errs.String())
	}
	for i := range hosts {
		client := strings.Fields(said[2*i+1])
		from := netip.MustParseAddr(client[0])
		own := ips["orders"][0]
		if from.Is6() {
			own = ips["orders"][1]
		}
		if !slices.Contains(ips["client"], from) {
			t.Fatalf("the client's address is %s", from)
		}
		f := strings.Fields(x.lines[i])
		if len(f) < 8 || f[0] != "served" || f[1] != "GET" || f[2] != "/"+strconv.Itoa(i) ||
			!sameEnd(f[3], f[4], from, client[1]) || f[5] != "at" || !sameEnd(f[6], f[7], own, at) ||
			len(f) > 8 && (len(f) != 11 || f[8] != "peer" || f[9] != f[3] && netip.MustParseAddr(f[9]).Unmap() != from || f[10] != f[4]) {
			t.Errorf("the client %s %s sent GET /%d to %s %s, the program says %q", from, client[1], i, own, at, x.lines[i])
		}
		anonymous := func(s string) string {
			return strings.ReplaceAll(strings.ReplaceAll(s+" ", " "+client[1]+" ", " CLIENT "), " "+at+" ", " PORT ")
		}
		x.lines[i] = anonymous(x.lines[i])
		x.answers = append(x.answers, strings.TrimSpace(anonymous(said[2*i])))
		x.lines[i] = strings.TrimSpace(x.lines[i])
	}
	return x
}

// sameEnd compares an end as a program prints it with what it is: a socket that speaks both families shows
// an IPv4 address as a mapped one, Java shows IPv6 in full.
func sameEnd(addr, port string, want netip.Addr, wantPort string) bool {
	a, _, _ := strings.Cut(addr, "%")
	ip, err := netip.ParseAddr(a)
	return err == nil && ip.Unmap() == want && port == wantPort
}

// program is one that goes on beside the test.
type program struct {
	t    *testing.T
	cmd  *exec.Cmd
	out  *bufio.Scanner
	errs strings.Builder // read it after end
}

// begin starts a command, which is ended with the test, or when it takes as long as a hang.
func begin(t *testing.T, c *exec.Cmd) *program {
	t.Helper()
	p := &program{t: t, cmd: c}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.out = bufio.NewScanner(out)
	c.Stderr = &p.errs
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), bed.Limit)
	stop := context.AfterFunc(ctx, func() { c.Process.Kill() })
	t.Cleanup(func() { stop(); cancel(); c.Process.Kill() })
	return p
}

// line is the next that it says, "" at its end.
func (p *program) line() string {
	p.out.Scan()
	return p.out.Text()
}

// end reads what it still says and waits for it.
func (p *program) end() (lines []string) {
	p.t.Helper()
	for p.out.Scan() {
		lines = append(lines, p.out.Text())
	}
	if err := p.cmd.Wait(); err != nil {
		p.t.Errorf("%q: %v, stderr %s", p.cmd.Args, err, p.errs.String())
	}
	return lines
}
