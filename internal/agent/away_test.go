package agent_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stead-dev/stead/internal/session/pod"
	"github.com/stead-dev/stead/internal/tunnel"
	"github.com/stead-dev/stead/internal/wire"
)

// cutOff is a session whose transports can be cut, and that may come back.
type cutOff struct {
	*pod.Conn
	mu         sync.Mutex
	transports []net.Conn
	away       bool
}

func newCutOff(t *testing.T, b *bed, h pod.Handlers) *cutOff {
	t.Helper()
	a := b.startAgent("--resume", "5m")
	c := new(cutOff)
	dial := func(ctx context.Context) (net.Conn, error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.away {
			return nil, errors.New("no way there")
		}
		conn, err := a.Dial(ctx)
		if err == nil {
			c.transports = append(c.transports, conn)
		}
		return conn, err
	}
	tun, err := tunnel.Dial(context.Background(), dial, tunnel.Options{Resume: 5 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	if c.Conn, err = pod.Attach(context.Background(), tun, wire.Hello{Build: "test", Holder: "ann@laptop"}, h); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func (c *cutOff) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.away = true
	for _, t := range c.transports {
		t.Close()
	}
	c.transports = nil
}

func (c *cutOff) mend() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.away = false
}

// While a session is cut off and may come back, the app answers at once; then the session does again.
func TestWhileASessionIsAwayTheAppAnswers(t *testing.T) {
	b := newBed(t)
	c := newCutOff(t, b, pod.Handlers{Incoming: takes("program", nil)})
	subscribe(t, c.Conn, wire.Steal)
	road := b.roads()[0]
	for round := range 3 {
		within(t, "the program answers", func() bool {
			got, _ := ask(road.from, road.to, "x")
			return got == "program: x"
		})
		c.cut()
		// Ten times what one may take that waits for the session in vain.
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		for i := range 30 {
			line := fmt.Sprint("call ", round, i)
			if got, err := ask(road.from, road.to, line); got != "app: "+line || err != nil {
				t.Fatalf("while it is away: %q, %v", got, err)
			}
			if ctx.Err() != nil {
				t.Fatal("calls wait for the session that is away")
			}
		}
		cancel()
		c.mend()
	}
}

func TestWhatIsNotCopiedWhileASessionIsAwayIsTold(t *testing.T) {
	b := newBed(t)
	said, told := make(chan string, 100), make(chan wire.Event, 100)
	c := newCutOff(t, b, pod.Handlers{Incoming: hears(said, nil), Event: func(e wire.Event) { told <- e }})
	subscribe(t, c.Conn, wire.Mirror)
	road := b.roads()[0]
	asked := func(line string) {
		t.Helper()
		if got, err := ask(road.from, road.to, line); got != "app: "+line || err != nil {
			t.Fatal(got, err)
		}
	}
	within(t, "what is missed is told", func() bool { // the agent may see only later that the session is cut off
		c.cut()
		for range 10 {
			asked("away")
		}
		c.mend()
		within(t, "copies come again", func() bool {
			asked("after")
			select {
			case s := <-said:
				return s == "after\n"
			default:
				return false
			}
		})
		select {
		case e := <-told:
			if e.Kind != wire.EventDropped || e.Count == 0 || !strings.Contains(e.Text, fmt.Sprintf("port %d: %d connections were not copied", appPort, e.Count)) {
				t.Errorf("told: %+v", e)
			}
			return true
		default:
			return false
		}
	})
}
