package agent_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stead-dev/stead/internal/session/pod"
	"github.com/stead-dev/stead/internal/tunnel"
	"github.com/stead-dev/stead/internal/wire"
)

// While a session is cut off and may come back, the app answers at once; then the session does again.
func TestWhileASessionIsAwayTheAppAnswers(t *testing.T) {
	b := newBed(t)
	a := b.startAgent("--resume", "5m")
	var mu sync.Mutex
	var transports []net.Conn
	cut := false
	dial := func(ctx context.Context) (net.Conn, error) {
		mu.Lock()
		defer mu.Unlock()
		if cut {
			return nil, errors.New("no way there")
		}
		c, err := a.Dial(ctx)
		if err == nil {
			transports = append(transports, c)
		}
		return c, err
	}
	tun, err := tunnel.Dial(context.Background(), dial, tunnel.Options{Resume: 5 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	c, err := pod.Attach(context.Background(), tun, wire.Hello{Build: "test", Holder: "ann@laptop"}, pod.Handlers{Incoming: takes("program", nil)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	subscribe(t, c, wire.Steal)
	road := b.roads()[0]
	for round := range 3 {
		within(t, "the program answers", func() bool {
			got, _ := ask(road.from, road.to, "x")
			return got == "program: x"
		})
		mu.Lock()
		cut = true
		for _, c := range transports {
			c.Close()
		}
		transports = nil
		mu.Unlock()
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
		mu.Lock()
		cut = false
		mu.Unlock()
	}
}
