package forward

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/stead-dev/stead/internal/tunnel"
	"github.com/stead-dev/stead/internal/wire"
)

// cluster is a target's network in which there are nameservers alone.
type cluster struct {
	session, agent tunnel.Conn
	reply          func(at netip.Addr, network string, q *dns.Msg) *dns.Msg // nil: it says nothing
	work           sync.WaitGroup
}

func newCluster(t *testing.T, reply func(netip.Addr, string, *dns.Msg) *dns.Msg) *cluster {
	c := &cluster{reply: reply}
	c.session, c.agent = tunnel.Pipe()
	t.Cleanup(func() { c.session.Close(); c.agent.Close(); c.work.Wait() })
	return c
}

func (c *cluster) dial(ctx context.Context, d wire.Dial) (tunnel.Stream, wire.Reply, error) {
	st, err := c.session.Open(ctx)
	if err != nil {
		return nil, wire.Reply{}, err
	}
	there, err := c.agent.Accept(ctx)
	if err != nil {
		return nil, wire.Reply{}, err
	}
	c.work.Go(func() {
		defer there.Close()
		for {
			q := make([]byte, 512)
			var n int
			var err error
			if d.Network == "udp" {
				n, _, err = wire.ReadDatagram(there, q)
			} else if _, err = io.ReadFull(there, q[:2]); err == nil {
				n, err = io.ReadFull(there, q[:binary.BigEndian.Uint16(q)])
			}
			m := new(dns.Msg)
			if err != nil || m.Unpack(q[:n]) != nil {
				return
			}
			if m = c.reply(d.To.Addr(), d.Network, m); m == nil {
				continue
			}
			m.RecursionAvailable = true
			b, err := m.Pack()
			if err != nil {
				return
			}
			there.Write(wire.AppendDatagram(nil, b)) // TCP's form is the same
		}
	})
	return st, wire.Reply{}, nil
}

func TestANameWithMoreAddressesThanADatagramHasRoomForIsFound(t *testing.T) {
	c := newCluster(t, func(_ netip.Addr, network string, q *dns.Msg) *dns.Msg {
		m := new(dns.Msg).SetReply(q)
		if q.Question[0].Qtype != dns.TypeA {
			return m
		}
		if network == "udp" {
			m.Truncated = true
			return m
		}
		for i := range byte(200) {
			m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: []byte{10, 0, 0, i}})
		}
		return m
	})
	n := &names{dial: c.dial, servers: []netip.Addr{netip.MustParseAddr("10.96.0.10")}}
	if got, err := n.lookup(t.Context(), "headless.shop.svc.cluster.local"); len(got) != 200 || err != nil {
		t.Errorf("%d addresses, %v", len(got), err)
	}
}

func TestANameserverThatIsSilentIsNotAskedAgain(t *testing.T) {
	first, second := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	c := newCluster(t, func(at netip.Addr, _ string, q *dns.Msg) *dns.Msg {
		if at == first {
			return nil
		}
		return new(dns.Msg).SetReply(q)
	})
	n := &names{dial: c.dial, servers: []netip.Addr{first, second}}
	ask := func(patience time.Duration) error { // as a resolver's attempt
		conn, err := n.nameserver(t.Context(), "udp")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		q, _ := new(dns.Msg).SetQuestion("db.", dns.TypeA).Pack()
		conn.Write(q)
		conn.SetDeadline(time.Now().Add(patience))
		_, err = conn.Read(make([]byte, 512))
		return err
	}
	if err := ask(time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	for range 2 {
		if err := ask(20 * time.Second); err != nil {
			t.Error(err)
		}
	}
}
