package wire

import (
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
)

// Datagrams on a stream: a length (uint16, big endian) and the payload. A UDP payload has at most
// 65,527 bytes (over IPv6; 20 fewer over IPv4), so the lengths above are free: errnoMark is followed by
// an errno (uint16) instead, which tells of an ICMP error that the pod's kernel reported on the socket
// (a refused port).
const (
	MaxDatagram = 65527
	errnoMark   = 0xffff
)

// AppendDatagram appends one framed payload to b.
func AppendDatagram(b, payload []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(payload)))
	return append(b, payload...)
}

// AppendErrno appends a framed errno to b.
func AppendErrno(b []byte, errno uint16) []byte {
	b = binary.BigEndian.AppendUint16(b, errnoMark)
	return binary.BigEndian.AppendUint16(b, errno)
}

// ReadDatagram reads one datagram into buf, which must have room for MaxDatagram bytes, and
// returns its length, or the errno that came in its place.
func ReadDatagram(r io.Reader, buf []byte) (n int, errno uint16, err error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, 0, err
	}
	n = int(binary.BigEndian.Uint16(head[:]))
	if n == errnoMark {
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return 0, 0, noEOF(err)
		}
		return 0, binary.BigEndian.Uint16(head[:]), nil
	}
	if n > len(buf) {
		return 0, 0, fmt.Errorf("datagram of %d bytes, more than %d", n, len(buf))
	}
	if _, err := io.ReadFull(r, buf[:n]); err != nil {
		return 0, 0, noEOF(err)
	}
	return n, 0, nil
}

// Datagrams reads the datagrams of R with no more memory than they take: most are small.
type Datagrams struct {
	R   io.Reader
	buf []byte
}

// keepDatagram is how large a buffer is kept between two datagrams.
const keepDatagram = 4 << 10

// Next reads one datagram, or the errno that came in its place. The payload is valid until the next
// call.
func (d *Datagrams) Next() (payload []byte, errno uint16, err error) {
	var head [2]byte
	if _, err := io.ReadFull(d.R, head[:]); err != nil {
		return nil, 0, err
	}
	n := int(binary.BigEndian.Uint16(head[:]))
	if n == errnoMark {
		if _, err := io.ReadFull(d.R, head[:]); err != nil {
			return nil, 0, noEOF(err)
		}
		return nil, binary.BigEndian.Uint16(head[:]), nil
	}
	if n > MaxDatagram {
		return nil, 0, fmt.Errorf("datagram of %d bytes, more than %d", n, MaxDatagram)
	}
	b := d.buf
	if n > len(b) {
		b = make([]byte, max(n, 512))
	}
	if len(b) <= keepDatagram {
		d.buf = b
	}
	if _, err := io.ReadFull(d.R, b[:n]); err != nil {
		return nil, 0, noEOF(err)
	}
	return b[:n], 0, nil
}

// NextPacket is Next for addressed datagrams.
func (d *Datagrams) NextPacket() (addr netip.AddrPort, payload []byte, errno uint16, err error) {
	var head [18]byte
	if _, err := io.ReadFull(d.R, head[:]); err != nil {
		return addr, nil, 0, err
	}
	a := netip.AddrFrom16([16]byte(head[:16])).Unmap()
	addr = netip.AddrPortFrom(a, binary.BigEndian.Uint16(head[16:]))
	payload, errno, err = d.Next()
	return addr, payload, errno, noEOF(err)
}

// AppendPacket appends an addressed datagram: 16 bytes of address (IPv4 as v4-mapped), the port
// (uint16, big endian), then the datagram.
func AppendPacket(b []byte, addr netip.AddrPort, payload []byte) []byte {
	a := addr.Addr().As16()
	b = append(b, a[:]...)
	b = binary.BigEndian.AppendUint16(b, addr.Port())
	return AppendDatagram(b, payload)
}

// ReadPacket reads one addressed datagram. An errno comes with the address that it is about.
func ReadPacket(r io.Reader, buf []byte) (addr netip.AddrPort, n int, errno uint16, err error) {
	var head [18]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return addr, 0, 0, err
	}
	a := netip.AddrFrom16([16]byte(head[:16])).Unmap()
	addr = netip.AddrPortFrom(a, binary.BigEndian.Uint16(head[16:]))
	n, errno, err = ReadDatagram(r, buf)
	return addr, n, errno, noEOF(err)
}

// AppendPacketErrno appends an errno about addr.
func AppendPacketErrno(b []byte, addr netip.AddrPort, errno uint16) []byte {
	a := addr.Addr().As16()
	b = append(b, a[:]...)
	b = binary.BigEndian.AppendUint16(b, addr.Port())
	return AppendErrno(b, errno)
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
