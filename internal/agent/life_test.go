package agent_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stead-dev/stead/internal/agent"
	"github.com/stead-dev/stead/internal/fault"
	"github.com/stead-dev/stead/internal/local/beside"
	"github.com/stead-dev/stead/internal/session/pod"
	"github.com/stead-dev/stead/internal/tunnel"
	"github.com/stead-dev/stead/internal/wire"
)

// sendSum asks for a sum of n random bytes, sends them, and returns the answer to expect.
func sendSum(t *testing.T, s interface {
	io.Writer
	CloseWrite() error
}, n int, who string) string {
	t.Helper()
	h := sha256.New()
	r := rand.NewChaCha8([32]byte{1})
	if _, err := io.WriteString(s, "sum\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.MultiWriter(s, h), io.LimitReader(r, int64(n))); err != nil {
		t.Fatal(err)
	}
	if err := s.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%s: %d %s\n", who, n, hex.EncodeToString(h.Sum(nil)))
}

func gone(t *testing.T, a *beside.Agent, why string) {
	t.Helper()
	select {
	case <-a.Exited():
	case <-time.After(30 * time.Second):
		t.Fatal("the agent goes on after", why)
	}
}

func TestTheAgentEndsWithItsStarter(t *testing.T) {
	b := newBed(t)
	for _, steal := range engines {
		a := b.startAgent("--steal="+steal, "--linger=1h")
		c := b.join(a, "ann@laptop", pod.Handlers{Incoming: takes("program", nil)})
		subscribe(t, c, wire.Steal)
		subscribe(t, c, wire.Mirror)
		a.Close() // closes the control socket; the transport of the session stands
		gone(t, a, "its starter")
		if err := a.Err(); err != nil {
			t.Error(err)
		}
	}
	b.nothingLeft()
}

func TestTheAgentEndsWithItsTargetAndTellsTheSession(t *testing.T) {
	for _, steal := range engines {
		b := newBed(t)
		a := b.startAgent("--steal="+steal, "--linger=1h")
		told := make(chan wire.Event, 10)
		c := b.join(a, "ann@laptop", pod.Handlers{Incoming: takes("program", nil), Event: func(e wire.Event) { told <- e }})
		subscribe(t, c, wire.Steal)
		subscribe(t, c, wire.Mirror)
		b.app.Process.Kill()
		gone(t, a, "its target")
		if e := <-told; e.Kind != wire.EventTargetGone {
			t.Errorf("%+v", e)
		}
	}
}

func TestTheAgentEndsAfterItsLastSession(t *testing.T) {
	b := newBed(t)
	a := b.startAgent("--linger=50ms")
	c, err := attach(a, "ann@laptop", pod.Handlers{})
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	gone(t, a, "its last session")
	if a.Err() != nil {
		t.Error(a.Err())
	}
}

func TestAnAgentOfOneConnectionEndsWithIt(t *testing.T) {
	b := newBed(t)
	ours, theirs, err := beside.Socketpair(syscall.SOCK_STREAM)
	if err != nil {
		t.Fatal(err)
	}
	p := exec.Command("/proc/self/exe", "agent", "serve", "--pid", fmt.Sprint(b.app.Process.Pid), "--conn-fd", "3")
	p.ExtraFiles = []*os.File{theirs}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	defer p.Process.Kill()
	theirs.Close()
	tun, err := tunnel.Dial(context.Background(), func(context.Context) (net.Conn, error) {
		defer ours.Close()
		return net.FileConn(ours)
	}, tunnel.Options{Resume: -1, Lanes: 1})
	if err != nil {
		t.Fatal(err)
	}
	c, err := pod.Attach(context.Background(), tun, wire.Hello{}, pod.Handlers{})
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	end := make(chan error, 1)
	go func() { end <- p.Wait() }()
	select {
	case err := <-end:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		t.Error("it goes on")
	}
}

func TestABadTransportOrGreetingHurtsNobodyElse(t *testing.T) {
	b := newBed(t)
	a := b.startAgent()
	c := b.join(a, "ann@laptop", pod.Handlers{})
	for _, junk := range []string{"", "\x00", "GET / HTTP/1.1\r\n\r\n", strings.Repeat("\xff", 100000)} {
		x, err := a.Dial(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		x.SetDeadline(time.Now().Add(5 * time.Second))
		go io.WriteString(x, junk)
		if len(junk) > 1000 { // more than a greeting: an answer, or the end
			io.Copy(io.Discard, x)
		}
		x.Close()
	}
	tun, err := tunnel.Dial(context.Background(), a.Dial, tunnel.Options{Resume: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer tun.Close()
	for _, o := range []any{wire.Open{Kind: wire.KindDial}, wire.Open{Kind: "nonsense"}, "nonsense", 1 << 40, wire.Open{Kind: wire.KindControl}} {
		s, err := tun.Open(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		s.SetDeadline(time.Now().Add(5 * time.Second))
		wire.Write(s, o)
		if b, err := io.ReadAll(s); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%v: %q, no end", o, b)
		}
		s.Close()
	}
	old := wire.Hello{Build: "v0"}
	s, _ := tun.Open(context.Background())
	wire.Write(s, wire.Open{Kind: wire.KindControl, Hello: &wire.Hello{Version: 0, MinVersion: 0, Build: old.Build}})
	var w wire.Welcome
	if err := wire.Read(s, &w); err != nil || !strings.Contains(w.Error, "protocol") || w.Hint == "" {
		t.Errorf("an old session: %+v, %v", w, err)
	}
	for _, sub := range []wire.Subscribe{{}, {Network: "udp", Port: 1, Mode: wire.Steal}, {Network: "tcp", Port: 1, Mode: "x"}} {
		if got, r, err := c.Subscribe(context.Background(), sub); got != nil || err != nil || r.Errno == 0 {
			t.Errorf("%+v: %+v, %v", sub, r, err)
		}
	}
}

// The program must not take what it has for all. The connection is the agent's by then.
func TestAKilledAgentsConnectionsEndWithAReset(t *testing.T) {
	b := newBed(t)
	a := b.startAgent()
	c := b.join(a, "ann@laptop", pod.Handlers{})
	to := netip.AddrPortFrom(elseIP, elsePort)
	ln := b.listenElsewhere("tcp", to)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		io.Copy(c, c)
	}()
	s, r, err := c.Dial(t.Context(), wire.Dial{Network: "tcp", To: to})
	if err != nil || s == nil {
		t.Fatalf("%+v, %v", r, err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	leg, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	relayed := make(chan struct{})
	go func() { defer close(relayed); tunnel.Relay(context.Background(), leg, s) }()
	client.SetDeadline(time.Now().Add(30 * time.Second))
	talk, before := make([]byte, 64<<10), descriptors(a.PID)
	within(t, "the connection is handed to the agent", func() bool {
		client.Write(talk)
		io.ReadFull(client, talk)
		return descriptors(a.PID) >= before+2
	})
	client.Write(talk)
	io.ReadFull(client, talk)
	syscall.Kill(a.PID, syscall.SIGKILL)
	if _, err := client.Read(talk); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client reads %v", err)
	}
	<-relayed
}

// Who holds a port is told to others, from other goroutines: it is said once.
func TestASessionIntroducesItselfOnce(t *testing.T) {
	b := newBed(t)
	a := b.startAgent()
	tun, err := tunnel.Dial(context.Background(), a.Dial, tunnel.Options{Resume: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer tun.Close()
	answers := make(chan error, 8)
	for i := range cap(answers) {
		go func() {
			s, err := tun.Open(context.Background())
			if err == nil {
				s.SetDeadline(time.Now().Add(20 * time.Second))
				hello := &wire.Hello{Version: wire.Version, MinVersion: wire.MinVersion, Holder: fmt.Sprint("ann", i)}
				wire.Write(s, wire.Open{Kind: wire.KindControl, Hello: hello})
				var w wire.Welcome
				if err = wire.Read(s, &w); err == nil && w.Error != "" {
					err = errors.New(w.Error)
				}
			}
			answers <- err
		}()
	}
	welcome := 0
	for range cap(answers) {
		if err := <-answers; err == nil {
			welcome++
		} else if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
	}
	if welcome != 1 {
		t.Errorf("%d of %d are welcome", welcome, cap(answers))
	}
}

func TestATargetThatIsNotThereOrForbiddenIsSaidInOneLineWithAHint(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	err = agent.Run(context.Background(), agent.Config{PID: 1 << 22, Listener: ln})
	if !errors.Is(err, syscall.ESRCH) || fault.Hint(err) == "" || strings.Contains(err.Error(), "\n") {
		t.Error(err)
	}
}

func TestRunLeavesNoGoroutineAndNoDescriptor(t *testing.T) {
	b := newBed(t)
	before, fds := 0, 0
	for round := range 6 {
		for _, steal := range engines {
			runOnce(t, b, steal)
		}
		if round == 0 { // what is made once for all is there now
			before, fds = runtime.NumGoroutine(), descriptors(os.Getpid())
		}
	}
	within(t, "all goroutines and descriptors are gone", func() bool {
		return runtime.NumGoroutine() <= before+1 && descriptors(os.Getpid()) <= fds+1
	})
}

func runOnce(t *testing.T, b *bed, steal string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	end := make(chan error, 1)
	go func() {
		end <- agent.Run(ctx, agent.Config{PID: b.app.Process.Pid, Listener: ln, Secret: []byte("s"), Steal: steal, Resume: -1})
	}()
	tun, err := tunnel.Dial(ctx, func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", ln.Addr().String())
	}, tunnel.Options{Resume: -1})
	if err != nil {
		t.Fatal(err)
	}
	c, err := pod.Attach(ctx, tun, wire.Hello{Secret: []byte("s")}, pod.Handlers{Incoming: takes("program", nil)})
	if err != nil {
		t.Fatal(err)
	}
	subscribe(t, c, wire.Steal)
	subscribe(t, c, wire.Mirror)
	if got, err := ask(b.elsewhere, b.roads()[0].to, "x"); got != "program: x" {
		t.Error(got, err)
	}
	cancel()
	if err := <-end; err != nil {
		t.Error(err)
	}
	c.Close()
}
