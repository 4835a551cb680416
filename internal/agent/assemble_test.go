package agent

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
)

var testKey = flowKey{netip.MustParseAddrPort("10.0.0.1:1000"), netip.MustParseAddrPort("10.0.0.2:80")}

func newAssembler() *assembler {
	return &assembler{flows: make(map[flowKey]*flow), room: new(room)}
}

// nobody stands.
func nobody(*flow) answer { return unknown }

// begin is a handshake whose first byte has the number first.
func (a *assembler) begin(first uint32, now time.Time) *copyOf {
	a.take(&segment{key: testKey, seq: first - 1, syn: true}, now)
	f := a.take(&segment{key: testKey, seq: first, ack: true}, now)
	if f == nil {
		return nil
	}
	c := f.copy()
	f.seal()
	return c
}

func rest(c *copyOf) ([]byte, error) {
	var all []byte
	for {
		b, err := c.next()
		all = append(all, b...)
		if err != nil {
			return all, err
		}
	}
}

func TestShuffledRepeatedAndOverlappingSegmentsGiveTheClientsBytes(t *testing.T) {
	now := time.Unix(0, 0)
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		want := make([]byte, r.IntN(20000))
		for i := range want {
			want[i] = byte(r.Uint32())
		}
		first := uint32(0) - uint32(r.IntN(20001)) // the numbers wrap in most
		var segs []segment
		for at := 0; at < len(want); {
			n := min(1+r.IntN(1500), len(want)-at)
			from := max(0, at-r.IntN(100)) // overlaps the one before
			segs = append(segs, segment{seq: first + uint32(from), data: want[from : at+n]})
			at += n
		}
		segs = append(segs, segment{seq: first + uint32(len(want)), fin: true})
		for range r.IntN(5) {
			segs = append(segs, segs[r.IntN(len(segs))])
		}
		r.Shuffle(len(segs), func(i, j int) { segs[i], segs[j] = segs[j], segs[i] })
		a := newAssembler()
		c := a.begin(first, now)
		for _, s := range segs {
			s.key, s.ack = testKey, true
			a.take(&s, now)
		}
		got, err := rest(c)
		if !bytes.Equal(got, want) || err != io.EOF {
			t.Fatalf("seed %d: %d of %d bytes, %v", seed, len(got), len(want), err)
		}
		if len(a.flows) != 0 || a.room.used.Load() != 0 {
			t.Fatalf("seed %d: %d flows, %d bytes are kept", seed, len(a.flows), a.room.used.Load())
		}
	}
}

// The network may deliver a packet twice, and late.
func TestASYNThatComesOnceMoreLaterEndsNothing(t *testing.T) {
	now := time.Unix(0, 0)
	a := newAssembler()
	c := a.begin(101, now)
	a.take(&segment{key: testKey, seq: 101, ack: true, data: []byte("hello, ")}, now)
	a.take(&segment{key: testKey, seq: 100, syn: true}, now)
	a.take(&segment{key: testKey, seq: 108, ack: true, data: []byte("world")}, now)
	a.take(&segment{key: testKey, seq: 113, ack: true, fin: true}, now)
	if got, err := rest(c); string(got) != "hello, world" || err != io.EOF {
		t.Errorf("%q, %v", got, err)
	}
}

func TestWhatCannotBeFollowedIsGivenUpAndFreed(t *testing.T) {
	start := time.Unix(0, 0)
	big := make([]byte, 60000)
	for _, c := range []struct {
		name string
		do   func(a *assembler)
		want error
	}{
		{"a hole that stays", func(a *assembler) {
			a.take(&segment{key: testKey, seq: 200, ack: true, data: big[:10]}, start)
			a.sweep(start.Add(holeAge+time.Second), nobody)
		}, errDropped},
		{"too much behind a hole", func(a *assembler) {
			for i := range 20 {
				a.take(&segment{key: testKey, seq: 200 + uint32(i*len(big)), ack: true, data: big}, start)
			}
		}, errDropped},
		{"too many pieces behind a hole", func(a *assembler) {
			for i := range maxSegments + 2 {
				a.take(&segment{key: testKey, seq: 200 + uint32(2*i), ack: true, data: big[:1]}, start)
			}
		}, errDropped},
		{"a session that takes nothing", func(a *assembler) {
			for i := range 1 + maxCopy/len(big) {
				a.take(&segment{key: testKey, seq: 101 + uint32(i*len(big)), ack: true, data: big}, start)
			}
		}, errDropped},
		{"a reset", func(a *assembler) { a.take(&segment{key: testKey, seq: 101, rst: true}, start) }, errReset},
		{"silence", func(a *assembler) { a.sweep(start.Add(flowAge+time.Second), nobody) }, errReset},
		{"the ports used anew", func(a *assembler) { a.take(&segment{key: testKey, seq: 5000, syn: true}, start) }, errReset},
	} {
		a := newAssembler()
		k := a.begin(101, start)
		c.do(a)
		if _, err := rest(k); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		k.abandon()
		if n := a.room.used.Load(); n != 0 {
			t.Errorf("%s: %d bytes are kept", c.name, n)
		}
	}
}

// An app that defers its accept until a client speaks (TCP_DEFER_ACCEPT) leaves it half open for as long.
func TestAHandshakeThatIsDeferredIsWaitedFor(t *testing.T) {
	a, now := newAssembler(), time.Unix(0, 0)
	state := halfOpen
	ask := func(*flow) answer { return state }
	a.take(&segment{key: testKey, seq: 9, syn: true}, now)
	for range 60 {
		now = now.Add(time.Second)
		if a.silent(now, ask) != nil {
			t.Fatal("it stands")
		}
		a.sweep(now, ask)
	}
	f := a.take(&segment{key: testKey, seq: 10, ack: true, data: []byte("late")}, now)
	if f == nil {
		t.Fatal("it was given up")
	}
	c := f.copy()
	a.take(&segment{key: testKey, seq: 14, ack: true, fin: true}, now)
	if got, err := rest(c); string(got) != "late" || err != io.EOF {
		t.Errorf("%q, %v", got, err)
	}
	// One that the kernel does not know any more is.
	state = unknown
	a.take(&segment{key: testKey, seq: 9, syn: true}, now)
	for range 12 {
		now = now.Add(time.Second)
		a.silent(now, ask)
		a.sweep(now, ask)
	}
	if len(a.flows) != 0 || len(a.begun) != 0 {
		t.Errorf("left: %d flows, %d begun", len(a.flows), len(a.begun))
	}
}

// However many begin at once, each is asked about in time, and never too many in a row.
func TestAllThatBeginAreAskedAbout(t *testing.T) {
	a, now := newAssembler(), time.Unix(0, 0)
	for i := range maxFlows {
		k := flowKey{netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 16), byte(i >> 8)}), uint16(i)), testKey.to}
		a.take(&segment{key: k, syn: true}, now)
	}
	first := map[*flow]bool{}
	for range 2 * askFirst * maxFlows / maxAsked / time.Millisecond {
		now = now.Add(time.Millisecond)
		asked := 0
		a.silent(now, func(f *flow) answer { asked++; first[f] = true; return unknown })
		if asked > maxAsked {
			t.Fatalf("%d at once", asked)
		}
	}
	if len(first) != maxFlows {
		t.Errorf("%d of %d were asked about", len(first), maxFlows)
	}
	// Where the kernel does not answer, it is asked again later.
	asked := 0
	now = now.Add(askLast)
	a.silent(now, func(*flow) answer { asked++; return unanswered })
	if asked != 1 {
		t.Errorf("%d questions without an answer", asked)
	}
}

func TestAFloodOfSYNsIsForgottenAndBeginsNothing(t *testing.T) {
	a, now := newAssembler(), time.Unix(0, 0)
	for i := range maxFlows + 1000 {
		k := flowKey{netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 16), byte(i >> 8)}), uint16(i)), testKey.to}
		if a.take(&segment{key: k, syn: true}, now) != nil {
			t.Fatal("a SYN began a connection")
		}
	}
	if len(a.flows) > maxFlows {
		t.Errorf("%d flows", len(a.flows))
	}
	a.sweep(now.Add(handshakeAge+time.Second), nobody)
	if len(a.flows) != 0 {
		t.Errorf("%d flows are left", len(a.flows))
	}
}

func FuzzSegment(f *testing.F) {
	v4 := make([]byte, 44)
	v4[0], v4[9], v4[32] = 0x45, 6, 0x50
	binary.BigEndian.PutUint16(v4[2:], 44)
	v6 := make([]byte, 64)
	v6[0], v6[6], v6[52] = 0x60, 6, 0x50
	binary.BigEndian.PutUint16(v6[4:], 24)
	for _, b := range [][]byte{v4, v6, v4[:30], v6[:50], {0x4f}, nil} {
		f.Add(b)
	}
	a := newAssembler()
	f.Fuzz(func(t *testing.T, b []byte) {
		s, ok := parseSegment(b)
		if !ok {
			return
		}
		if len(s.data) > len(b) {
			t.Errorf("%d bytes out of %d", len(s.data), len(b))
		}
		if fl := a.take(&s, time.Unix(0, 0)); fl != nil {
			fl.copy().abandon()
			fl.seal()
		}
	})
}

// FuzzAssemble follows one connection whose segments come as the bytes say: two for the place, one for the
// length, one for what else happens.
func FuzzAssemble(f *testing.F) {
	f.Add(uint32(101), []byte{0, 0, 10, 0, 0, 10, 10, 0})
	f.Add(uint32(1<<32-5), []byte{0, 5, 10, 0, 0, 0, 5, 0, 0, 0, 255, 0, 0, 14, 2, 1})
	f.Add(uint32(0), []byte{0, 200, 9, 0, 0, 100, 9, 2, 0, 0, 255, 3, 0, 0, 255, 0, 3, 0, 0, 1})
	all := make([]byte, 1024)
	rand.NewChaCha8([32]byte{}).Read(all)
	f.Fuzz(func(t *testing.T, first uint32, script []byte) {
		script = script[:min(len(script), 4*maxHole/256)] // less than what is given up
		a, now := newAssembler(), time.Unix(0, 0)
		c := a.begin(first, now)
		came := make([]bool, len(all)+1)
		complete := 0
		for ; len(script) >= 4; script = script[4:] {
			from := int(binary.BigEndian.Uint16(script)) % len(all)
			to := min(len(all), from+int(script[2]))
			s := segment{key: testKey, seq: first + uint32(from), ack: true, data: all[from:to]}
			switch script[3] {
			case 1: // the end, with the last bytes
				s = segment{key: testKey, seq: first + uint32(from), ack: true, fin: true, data: all[from:]}
				to = len(all)
			case 2:
				a.take(&segment{key: testKey, seq: first - 1, syn: true}, now)
			case 3:
				a.sweep(now.Add(holeAge), nobody)
			}
			a.take(&s, now)
			for i := from; i < to; i++ {
				came[i] = true
			}
			for came[complete] {
				complete++
			}
		}
		if got := c.buf; !bytes.Equal(got, all[:complete]) {
			t.Errorf("%d bytes of %d that came, or others", len(got), complete)
		}
		a.endAll()
		c.abandon()
		if n := a.room.used.Load(); n != 0 || len(a.flows) != 0 {
			t.Errorf("%d bytes, %d flows are kept", n, len(a.flows))
		}
	})
}
