package outgoing

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/inet"
	"github.com/stead-dev/stead/internal/intercept"
	"github.com/stead-dev/stead/internal/policy"
	"github.com/stead-dev/stead/internal/tunnel"
	"github.com/stead-dev/stead/internal/wire"
)

// sendConnected carries the program's datagrams to the pod, until the relay is closed.
func (r *Room) sendConnected(a *association, relay *net.UDPConn) {
	raw, err := relay.SyscallConn()
	if err != nil {
		return
	}
	var frame []byte
	for {
		err := inet.Receive(raw, func(b []byte, _ unix.Sockaddr) { frame = wire.AppendDatagram(small(frame)[:0], b) }, nil)
		if err != nil {
			if a.ctx.Err() != nil || isClosed(err) {
				return
			}
			continue // ECONNREFUSED: the program's socket is gone or full; the sweep decides
		}
		_, _ = r.udp.streamOf(a).Write(frame) // one that has ended loses it, as a network that is away
	}
}

// receiveConnected carries the far end's datagrams to the program, until the stream ends. It returns
// the relay that is in use then, nil if there can be none.
func (r *Room) receiveConnected(a *association, relay *net.UDPConn, far, at netip.AddrPort) *net.UDPConn {
	in := wire.Datagrams{R: r.udp.streamOf(a)}
	for {
		b, errno, err := in.Next()
		if err != nil {
			return relay
		}
		if errno != 0 {
			relay = r.refuse(a, relay, far, at)
			if relay == nil {
				return nil
			}
			continue
		}
		_, _ = relay.Write(b) // a full socket buffer drops, as UDP does
	}
}

// refuse gives the program the error that the pod's kernel got: with the relay closed for a
// moment, an empty datagram sent through the program's own socket is refused by our kernel, which
// notes ECONNREFUSED on that socket. It returns the relay that takes the old one's place.
func (r *Room) refuse(a *association, relay *net.UDPConn, far, at netip.AddrPort) *net.UDPConn {
	relay.Close() // ends sendConnected
	if fd, err := a.again(); err == nil {
		_ = unix.Sendto(fd, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, nil)
		unix.Close(fd)
	}
	next, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		return nil
	}
	if err := connectUDPConn(next, a.here); err != nil {
		next.Close()
		return nil
	}
	r.udp.mu.Lock()
	defer r.udp.mu.Unlock()
	if a.ctx.Err() != nil {
		next.Close()
		return nil
	}
	a.relays[far] = next
	r.work.Add(1)
	go func() { defer r.work.Done(); r.sendConnected(a, next) }()
	return next
}

// SendTo sends one datagram with an address.
func (r *Room) SendTo(s *intercept.Socket, to netip.AddrPort, b intercept.Datagram) intercept.Outcome {
	if s.Family == unix.AF_INET && !to.Addr().Is4() || r.c.Heard(to) {
		return intercept.Continue
	}
	if other(s) {
		return r.refuseOther(to)
	}
	d := r.network.Load().Policy.Destination(to, r.c.OwnUDP)
	if d.Where == policy.Laptop {
		return intercept.Continue
	}
	// The far end as the program names it, which the source of the answers must be.
	far := inet.Unmap(to)
	r.udp.mu.Lock()
	relay := r.udp.byCookie[s.Cookie].relayTo(far)
	r.udp.mu.Unlock()
	if relay != nil {
		return sendVia(s, relayAddr(relay), b)
	}
	b.Payload = bytes.Clone(b.Payload)
	return intercept.Outcome{Later: func(ctx context.Context) intercept.Outcome {
		ctx, cancel := intercept.Patient(ctx)
		defer cancel()
		at, errno := r.relayTo(ctx, s, to, far, d.To)
		if errno != 0 {
			return intercept.Fail(errno)
		}
		return sendVia(s, at, b)
	}}
}

// sendVia sends through the program's own socket, so that it is bound as by its own call.
func sendVia(s *intercept.Socket, at netip.AddrPort, b intercept.Datagram) intercept.Outcome {
	n, err := unix.SendmsgN(s.FD, b.Payload, segments(b.Segment), inet.ToUnix(s.Family, at), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	if err != nil {
		return intercept.Fail(err.(unix.Errno))
	}
	return intercept.Outcome{Value: int64(n)}
}

// segments is the control message UDP_SEGMENT, nil for 0.
func segments(size uint16) []byte {
	if size == 0 {
		return nil
	}
	b := make([]byte, unix.CmsgSpace(2))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = unix.SOL_UDP, unix.UDP_SEGMENT
	h.SetLen(unix.CmsgLen(2))
	binary.NativeEndian.PutUint16(b[unix.CmsgLen(0):], size)
	return b
}

// relayTo finds or makes the relay of a socket for one far end that it is not connected to; there is where
// its datagrams really go (a nameserver of the laptop is replaced by the pod's).
func (r *Room) relayTo(ctx context.Context, s *intercept.Socket, to, far, there netip.AddrPort) (netip.AddrPort, unix.Errno) {
	r.udp.mu.Lock()
	a := r.udp.packetsLocked(s.Cookie)
	r.udp.mu.Unlock()
	if a == nil {
		ask := wire.Packet{IPv6: s.Family == unix.AF_INET6, Bind: r.bound(s)}
		stream, reply, err := r.c.Pod.Packet(ctx, ask)
		switch {
		case err != nil && ctx.Err() != nil:
			return netip.AddrPort{}, unix.EINTR
		case err != nil:
			r.trouble(wire.Dial{Network: "udp", To: there}, err)
			return netip.AddrPort{}, errLost
		case reply.Errno != 0:
			return netip.AddrPort{}, unix.Errno(reply.Errno)
		}
		fresh, err := newAssociation(r, s)
		if err != nil {
			stream.Close()
			return netip.AddrPort{}, unix.EBADF
		}
		fresh.stream, fresh.local = stream, reply.Local
		r.udp.mu.Lock()
		if a = r.udp.packetsLocked(s.Cookie); a == nil { // two threads may send at once
			a = fresh
			r.udp.addPacketsLocked(a)
			r.work.Add(1)
			r.live.Add(1)
			go func() {
				defer r.work.Done()
				defer r.live.Add(-1)
				for on := true; on; on = r.renew(a, func(ctx context.Context) (tunnel.Stream, wire.Reply, error) { return r.c.Pod.Packet(ctx, ask) }) {
					r.receivePackets(a)
				}
			}()
			fresh = nil
		}
		r.udp.mu.Unlock()
		if fresh != nil {
			fresh.stop()
			stream.Close()
		}
	}
	relay, err := openRelay(s, to)
	if err != nil {
		return netip.AddrPort{}, unix.EADDRNOTAVAIL
	}
	at := relayAddr(relay)
	r.udp.mu.Lock()
	defer r.udp.mu.Unlock()
	if a.ctx.Err() != nil {
		relay.Close()
		return netip.AddrPort{}, unix.EINTR
	}
	if other := a.relays[far]; other != nil { // another thread's, which came first
		relay.Close()
		return relayAddr(other), 0
	}
	r.addRelayLocked(a, relay, far, there)
	return at, 0
}

// addRelayLocked enters a relay and starts its way to the pod.
func (r *Room) addRelayLocked(a *association, relay *net.UDPConn, far, there netip.AddrPort) {
	if len(a.relays) >= maxRelays {
		for old, c := range a.relays {
			delete(a.far, relayAddr(c))
			delete(a.relays, old)
			c.Close()
			break
		}
	}
	a.relays[far], a.far[relayAddr(relay)] = relay, far
	r.work.Add(1)
	go func() { defer r.work.Done(); r.sendPackets(a, relay, there) }()
}

// sendPackets carries what the program sends to one far end.
func (r *Room) sendPackets(a *association, relay *net.UDPConn, there netip.AddrPort) {
	raw, err := relay.SyscallConn()
	if err != nil {
		return
	}
	var frame []byte
	for {
		var from netip.AddrPort
		err := inet.Receive(raw, func(b []byte, sa unix.Sockaddr) {
			from = inet.FromUnix(sa)
			frame = wire.AppendPacket(small(frame)[:0], there, b)
		}, nil)
		if err != nil {
			if a.ctx.Err() != nil || isClosed(err) {
				return
			}
			continue
		}
		r.udp.mu.Lock()
		a.here = inet.Unmap(from)
		stream := a.stream
		r.udp.mu.Unlock()
		a.write.Lock()             // the relays of one socket share its stream
		_, _ = stream.Write(frame) // one that has ended loses it
		a.write.Unlock()
	}
}

// receivePackets carries what far ends send to the program. One that the program never wrote to
// (a server that answers from another port) gets a relay of its own, once the program has one.
func (r *Room) receivePackets(a *association) {
	in := wire.Datagrams{R: r.udp.streamOf(a)}
	for {
		from, b, errno, err := in.NextPacket()
		if err != nil {
			return
		}
		if errno != 0 {
			continue // an unconnected socket is told only with IP_RECVERR
		}
		r.udp.mu.Lock()
		relay, here := a.relayForLocked(r, from), a.here
		r.udp.mu.Unlock()
		if relay != nil && here.IsValid() {
			if to := relayAddr(relay).Addr(); to.Is4() != here.Addr().Is4() {
				here = netip.AddrPortFrom(to, here.Port()) // one socket, both families
			}
			_, _ = relay.WriteToUDPAddrPort(b, here)
		}
	}
}

func (a *association) relayForLocked(r *Room, from netip.AddrPort) *net.UDPConn {
	if c := a.relays[from]; c != nil {
		return c
	}
	// A nameserver that stands in for the laptop's answers under the name that the program used.
	if from.Port() == 53 {
		for far, c := range a.relays {
			if far.Port() == 53 && far.Addr().IsLoopback() {
				return c
			}
		}
	}
	if a.ctx.Err() != nil || !a.here.IsValid() {
		return nil
	}
	at := netip.AddrPortFrom(a.here.Addr(), 0)
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		return nil
	}
	r.addRelayLocked(a, c, from, from)
	return c
}

// small lets go of a buffer that a large datagram has made large.
func small(b []byte) []byte {
	if cap(b) > 4<<10 {
		return nil
	}
	return b
}

func isClosed(err error) bool { return errors.Is(err, net.ErrClosed) }
