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
	wg.Add(1)
	go func() {
		defer wg.Done()
		buf := make([]byte, wire.MaxDatagram)
		frame := make([]byte, 0, 2048)
		for {
			n, err := c.Read(buf)
			var errno unix.Errno
			switch {
			case err == nil:
				frame = wire.AppendDatagram(frame[:0], buf[:n])
			case errors.As(err, &errno):
				frame = wire.AppendErrno(frame[:0], uint16(errno))
			default:
				return
			}
			if _, err := st.Write(frame); err != nil {
				return
			}
		}
	}()
	buf := make([]byte, wire.MaxDatagram)
	for {
		n, _, err := wire.ReadDatagram(st, buf)
		if err != nil {
			break
		}
		// A send tells an earlier datagram's error in place of sending: tell it on, and send.
		for range 2 {
			var errno unix.Errno
			if _, err := c.Write(buf[:n]); !errors.As(err, &errno) {
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
	buf := make([]byte, wire.MaxDatagram)
	ipv6 := local.Addr().Is6()
	for {
		to, n, _, err := wire.ReadPacket(st, buf)
		if err != nil {
			break
		}
		if ipv6 {
			to = inet.Shape(unix.AF_INET6, to)
		}
		// With RECVERR a send first tells an earlier datagram's error, which packets tells with its
		// address, and does not send.
		_, err = c.WriteToUDPAddrPort(buf[:n], to)
		if errno := unix.Errno(0); errors.As(err, &errno) {
			if _, err = c.WriteToUDPAddrPort(buf[:n], to); errors.As(err, &errno) {
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
	buf, oob := make([]byte, wire.MaxDatagram), make([]byte, 512)
	frame := make([]byte, 0, 2048)
	for {
		frame = frame[:0]
		err := raw.Read(func(fd uintptr) bool {
			for {
				n, from, err := unix.Recvfrom(int(fd), buf, unix.MSG_DONTWAIT)
				if err == nil {
					frame = wire.AppendPacket(frame, inet.Unmap(inet.FromUnix(from)), buf[:n])
					return true
				}
				// An error is told once here, and whom it is about in the queue of errors.
				_, on, _, about, qerr := unix.Recvmsg(int(fd), buf, oob, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
				if qerr == nil {
					if errno := queuedErrno(oob[:on]); errno != 0 && about != nil {
						frame = wire.AppendPacketErrno(frame, inet.Unmap(inet.FromUnix(about)), errno)
						return true
					}
				} else if err == unix.EAGAIN {
					return false
				}
			}
		})
		if err != nil {
			return err
		}
		if _, err := st.Write(frame); err != nil {
			return err
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
