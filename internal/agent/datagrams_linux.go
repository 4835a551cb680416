package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/inet"
	"github.com/stead-dev/stead/internal/tunnel"
	"github.com/stead-dev/stead/internal/wire"
)

// relayUDP carries datagrams between a connected socket and a stream until the stream ends.
func relayUDP(ctx context.Context, c *net.UDPConn, st tunnel.Stream) {
	var wg sync.WaitGroup
	stop := context.AfterFunc(ctx, func() { c.Close(); st.Reset(0) })
	defer stop()
	raw, err := c.SyscallConn()
	if err != nil {
		c.Close()
		st.Close()
		return
	}
	wg.Add(1)
	go func() {
		defer wg.Done()
		var frame []byte
		for {
			err := inet.Receive(raw, func(b []byte, _ unix.Sockaddr) { frame = wire.AppendDatagram(frame[:0], b) }, nil)
			var errno unix.Errno
			switch {
			case err == nil:
			case errors.As(err, &errno):
				frame = wire.AppendErrno(frame[:0], uint16(errno))
			default:
				return
			}
			if _, err := st.Write(frame); err != nil {
				return
			}
			frame = small(frame)
		}
	}()
	in := wire.Datagrams{R: st}
	for {
		b, _, err := in.Next()
		if err != nil {
			break
		}
		// A send tells an earlier datagram's error in place of sending: tell it on, and send.
		for range 2 {
			var errno unix.Errno
			if _, err := c.Write(b); !errors.As(err, &errno) {
				break
			}
			_, _ = st.Write(wire.AppendErrno(nil, uint16(errno)))
			if errno != unix.ECONNREFUSED && errno != unix.EHOSTUNREACH {
				break
			}
		}
	}
	c.Close()
	wg.Wait()
	st.Close()
}

// small lets go of a buffer that a large datagram has made large.
func small(b []byte) []byte {
	if cap(b) > 4<<10 {
		return nil
	}
	return b
}

// packet serves an unconnected UDP socket in the target's network.
func (x *session) packet(ctx context.Context, st tunnel.Stream, o *wire.Open) {
	if o.Packet == nil {
		fail(st, unix.EINVAL)
		return
	}
	c, err := x.s.target.packetConn(o.Packet)
	if err != nil {
		fail(st, err)
		return
	}
	stop := context.AfterFunc(ctx, func() { c.Close(); st.Reset(0) })
	defer stop()
	local, _ := addrPortOf(c.LocalAddr())
	if err := wire.Write(st, wire.Reply{Local: local}); err != nil {
		c.Close()
		return
	}
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		_ = packets(c, st)
	}()
	in := wire.Datagrams{R: st}
	ipv6 := local.Addr().Is6()
	for {
		to, b, _, err := in.NextPacket()
		if err != nil {
			break
		}
		if ipv6 {
			to = inet.Shape(unix.AF_INET6, to)
		}
		// With RECVERR a send first tells an earlier datagram's error, which packets tells with its
		// address, and does not send.
		_, err = c.WriteToUDPAddrPort(b, to)
		if errno := unix.Errno(0); errors.As(err, &errno) {
			if _, err = c.WriteToUDPAddrPort(b, to); errors.As(err, &errno) {
				_, _ = st.Write(wire.AppendPacketErrno(nil, to, uint16(errno)))
			}
		}
	}
	c.Close()
	wg.Wait()
	st.Close()
}

// packets carries what comes in on c, and the errors that its network reports of what was sent, to
// st until either ends.
func packets(c *net.UDPConn, st tunnel.Stream) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var frame []byte
	// An error is told once by the socket, and whom it is about in its queue of errors.
	about := func(fd int) bool {
		frame = appendQueued(frame, fd)
		return len(frame) > 0
	}
	for {
		frame = small(frame)[:0]
		err := inet.Receive(raw, func(b []byte, from unix.Sockaddr) {
			frame = wire.AppendPacket(frame, inet.Unmap(inet.FromUnix(from)), b)
		}, about)
		if errno := unix.Errno(0); errors.As(err, &errno) {
			continue // about is asked next
		}
		if err != nil {
			return err
		}
		if _, err := st.Write(frame); err != nil {
			return err
		}
	}
}

// appendQueued appends all that waits in a socket's queue of errors.
func appendQueued(frame []byte, fd int) []byte {
	b, oob := make([]byte, 1), make([]byte, 512)
	for {
		_, on, _, about, err := unix.Recvmsg(fd, b, oob, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return frame
		}
		if errno := queuedErrno(oob[:on]); errno != 0 && about != nil {
			frame = wire.AppendPacketErrno(frame, inet.Unmap(inet.FromUnix(about)), errno)
		}
	}
}

// queuedErrno reads struct sock_extended_err out of what came with an entry of the error queue.
func queuedErrno(oob []byte) uint16 {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return 0
	}
	for _, m := range msgs {
		v4 := m.Header.Level == unix.SOL_IP && m.Header.Type == unix.IP_RECVERR
		v6 := m.Header.Level == unix.SOL_IPV6 && m.Header.Type == unix.IPV6_RECVERR
		if (v4 || v6) && len(m.Data) >= 4 {
			return uint16(binary.NativeEndian.Uint32(m.Data))
		}
	}
	return 0
}

func (t *target) packetConn(p *wire.Packet) (*net.UDPConn, error) {
	fd, err := t.socket(p.IPv6, unix.SOCK_DGRAM)
	if p.IPv6 && err == unix.EAFNOSUPPORT {
		p.IPv6 = false
		fd, err = t.socket(false, unix.SOCK_DGRAM)
	}
	if err != nil {
		return nil, err
	}
	family := unix.AF_INET
	if p.IPv6 {
		family = unix.AF_INET6
	}
	if err := unix.Bind(fd, inet.ToUnix(family, netip.AddrPortFrom(inet.Any(p.IPv6), p.Bind.Port()))); err != nil {
		if err = unix.Bind(fd, inet.ToUnix(family, netip.AddrPortFrom(inet.Any(p.IPv6), 0))); err != nil {
			unix.Close(fd)
			return nil, err
		}
	}
	// Without these an unconnected socket never hears of a refused port.
	_ = unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_RECVERR, 1)
	if p.IPv6 {
		_ = unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_RECVERR, 1)
	}
	f := os.NewFile(uintptr(fd), "udp socket in the pod")
	defer f.Close()
	c, err := net.FilePacketConn(f)
	if err != nil {
		return nil, err
	}
	return c.(*net.UDPConn), nil
}
