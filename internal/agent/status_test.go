package agent_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stead-dev/stead/internal/local/beside"
	"github.com/stead-dev/stead/internal/session/pod"
	"github.com/stead-dev/stead/internal/tunnel"
	"github.com/stead-dev/stead/internal/wire"
)

func askStatus(t *testing.T, a *beside.Agent) (w wire.Status) {
	t.Helper()
	c, err := tunnel.Dial(t.Context(), a.Dial, tunnel.Options{Resume: -1, Lanes: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := c.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := wire.Write(s, wire.Open{Kind: wire.KindStatus}); err != nil {
		t.Fatal(err)
	}
	if err := wire.Read(s, &w); err != nil {
		t.Fatal(err)
	}
	return w
}

func TestTheAgentTellsWhoUsesIt(t *testing.T) {
	b := newBed(t)
	a := b.startAgent()
	subscribe(t, b.join(a, "ann@laptop", pod.Handlers{Incoming: takes("ann", nil)}), wire.Steal)
	bob := b.join(a, "bob@desk", pod.Handlers{Incoming: takes("bob", nil)})
	subscribe(t, bob, wire.Mirror)
	ask := func() map[string][]wire.Subscribe {
		out := make(map[string][]wire.Subscribe)
		for _, s := range askStatus(t, a).Sessions {
			out[s.Holder] = s.Incoming
		}
		return out
	}
	want := map[string][]wire.Subscribe{
		"ann@laptop": {{Network: "tcp", Port: appPort, Mode: wire.Steal}},
		"bob@desk":   {{Network: "tcp", Port: appPort, Mode: wire.Mirror}},
	}
	if diff := cmp.Diff(want, ask()); diff != "" {
		t.Error(diff)
	}
	bob.Close()
	delete(want, "bob@desk")
	within(t, "bob's session is gone", func() bool { return cmp.Equal(want, ask()) })
}

func TestTheNamesOfASessionAreShort(t *testing.T) {
	b := newBed(t)
	a := b.startAgent()
	for range 3 { // together more than a message may have
		b.join(a, strings.Repeat("x", wire.MaxMessage/2), pod.Handlers{})
	}
	status := askStatus(t, a)
	if len(status.Sessions) != 3 {
		t.Errorf("%d sessions", len(status.Sessions))
	}
	for _, s := range status.Sessions {
		if len(s.Holder) > 1000 {
			t.Errorf("a name of %d bytes", len(s.Holder))
		}
	}
}
