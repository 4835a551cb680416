package agent_test

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/stead-dev/stead/internal/knock"
	"github.com/stead-dev/stead/internal/session/pod"
	"github.com/stead-dev/stead/internal/tunnel"
	"github.com/stead-dev/stead/internal/wire"
)

// An agent of a cluster tells in its log who came and went, and on which ports.
func TestTheLogTellsWhatItsLevelIsFor(t *testing.T) {
	b := newBed(t)
	const refused, session, connection = "level=ERROR msg=refused", `level=INFO msg="session begins" holder=ann@laptop`, "level=DEBUG msg=\"a connection leaves\" holder=ann@laptop network=tcp to=127.0.0.1:8080"
	info := []string{`msg="agent begins"`, session, `msg="steal begins" port=8080 holder=ann@laptop`, `msg="steal ends" port=8080`, `msg="mirror begins" port=8080`, `msg="session ends"`, `msg="agent ends" why="no session for 300ms"`}
	for _, c := range []struct {
		level     string
		has, lack []string
	}{
		{"error", []string{refused}, []string{"INFO", "DEBUG"}},
		{"", append(info, refused), []string{"DEBUG"}},
		{"info", append(info, refused), []string{"DEBUG"}},
		{"debug", append(info, refused, connection, `msg="a connection goes to the session"`), nil},
	} {
		t.Run("level "+c.level, func(t *testing.T) {
			said := oneSession(t, b, c.level)
			for _, want := range c.has {
				if !strings.Contains(said, want) {
					t.Errorf("no %q in\n%s", want, said)
				}
			}
			for _, not := range c.lack {
				if strings.Contains(said, not) {
					t.Errorf("%q in\n%s", not, said)
				}
			}
		})
	}
}

func TestALogLevelThatIsNoneIsRefused(t *testing.T) {
	out, err := exec.Command("/proc/self/exe", "agent", "serve", "--self", "--listen", "127.0.0.1:0", "--log-level", "loud").CombinedOutput()
	if err == nil || string(out) != "error: --log-level loud: no such level\nhint: --log-level error, info or debug\n" {
		t.Errorf("%v: %s", err, out)
	}
}

// oneSession runs an agent as in a cluster for one session, and gives what it said.
func oneSession(t *testing.T, b *bed, level string) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := ln.Addr().String()
	ln.Close()
	args := []string{"agent", "serve", "--pid", strconv.Itoa(b.app.Process.Pid), "--listen", at, "--linger", "300ms", "--resume", "1s"}
	if level != "" {
		args = append(args, "--log-level", level)
	}
	var said bytes.Buffer
	c := exec.Command("/proc/self/exe", args...)
	c.Env, c.Stderr = []string{"STEAD_AGENT_SECRET=right"}, &said
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Process.Kill(); c.Wait() })
	dial := func(ctx context.Context) (net.Conn, error) {
		for {
			conn, err := new(net.Dialer).DialContext(ctx, "tcp", at)
			if err == nil {
				return conn, knock.Knock(ctx, conn, []byte("right"))
			}
			if ctx.Err() != nil {
				return nil, err
			}
		}
	}
	tun, err := tunnel.Dial(context.Background(), dial, tunnel.Options{Resume: -1})
	if err != nil {
		t.Fatal(err)
	}
	ann, err := pod.Attach(context.Background(), tun, wire.Hello{Build: "test", Holder: "ann@laptop"}, pod.Handlers{Incoming: takes("ann", nil)})
	if err != nil {
		t.Fatal(err)
	}
	if conn, err := net.Dial("tcp", at); err == nil { // somebody who does not know the secret
		knock.Knock(context.Background(), conn, []byte("wrong"))
		conn.Close()
	}
	steal := subscribe(t, ann, wire.Steal)
	if got, err := ask(b.elsewhere, b.roads()[0].to, "x"); got != "ann: x" {
		t.Error(got, err)
	}
	steal.Close()
	mirror := subscribe(t, ann, wire.Mirror)
	s, _, err := ann.Dial(context.Background(), wire.Dial{Network: "tcp", To: netip.MustParseAddrPort("127.0.0.1:8080")})
	if err != nil || s == nil {
		t.Fatal(err)
	}
	s.Close()
	mirror.Close()
	ann.Close()
	if err := c.Wait(); err != nil {
		t.Errorf("the agent: %v", err)
	}
	return said.String()
}
