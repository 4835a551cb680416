package agent

import (
	"encoding/binary"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// tracking asks the kernel's connection tracking about single connections of the target's network
// namespace. A service mesh redirects what clients send to the app's port to its proxy, which calls the
// app in a connection of its own: a packet socket sees both, and the first is not the app's.
//
// The library's socket would not do: the kernel gives the one message of an answer the flag of several
// (NLM_F_MULTI) and sends no end.
type tracking struct {
	fd  int
	seq uint32
	buf []byte
}

// newTracking returns nil where the kernel cannot be asked.
func (t *target) newTracking() *tracking {
	c := &tracking{buf: make([]byte, 8<<10)}
	err := t.net.Do(func() (err error) {
		c.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		return err
	})
	if err != nil {
		return nil
	}
	// It answers at once, out of the call that asks; should one be lost for want of memory, nobody waits for it.
	if unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1}) != nil {
		c.close()
		return nil
	}
	return c
}

func (c *tracking) close() {
	if c != nil {
		unix.Close(c.fd)
	}
}

// Of include/uapi/linux/netfilter/nfnetlink_conntrack.h.
const (
	ctNew, ctGet = 0, 1 // IPCTNL_MSG_CT_NEW, which is also what an answer is, and _GET

	ctTupleOrig, ctTupleReply = 1, 2
	ctTupleIP, ctTupleProto   = 1, 2
	ctIPv4Src, ctIPv4Dst      = 1, 2
	ctIPv6Src, ctIPv6Dst      = 3, 4
	ctProtoNum                = 1
	ctSrcPort, ctDstPort      = 2, 3
)

// redirected says whether the connection that a client made to k.to came to another address or port.
// Where connections are not tracked, or this one is not, none is.
func (c *tracking) redirected(k flowKey) bool {
	if c == nil {
		return false
	}
	c.seq++
	if unix.Sendto(c.fd, question(k, c.seq), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}) != nil {
		return false
	}
	for {
		n, _, err := unix.Recvfrom(c.fd, c.buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return false
		}
		b := c.buf[:n]
		if n < unix.SizeofNlMsghdr || binary.NativeEndian.Uint32(b[8:]) != c.seq {
			continue // the answer to an earlier question that was given up
		}
		if binary.NativeEndian.Uint16(b[4:]) != unix.NFNL_SUBSYS_CTNETLINK<<8|ctNew {
			return false // an error: mostly that there is none
		}
		from, ok := replySource(b[unix.SizeofNlMsghdr:])
		return ok && from != k.to
	}
}

// question is the message that asks for the connection with this original tuple.
func question(k flowKey, seq uint32) []byte {
	family, src, dst := byte(unix.AF_INET), uint16(ctIPv4Src), uint16(ctIPv4Dst)
	if k.to.Addr().Is6() {
		family, src, dst = unix.AF_INET6, ctIPv6Src, ctIPv6Dst
	}
	e := netlink.NewAttributeEncoder()
	e.ByteOrder = binary.BigEndian
	e.Nested(ctTupleOrig, func(e *netlink.AttributeEncoder) error {
		e.Nested(ctTupleIP, func(e *netlink.AttributeEncoder) error {
			e.Bytes(src, k.from.Addr().AsSlice())
			e.Bytes(dst, k.to.Addr().AsSlice())
			return nil
		})
		e.Nested(ctTupleProto, func(e *netlink.AttributeEncoder) error {
			e.Uint8(ctProtoNum, unix.IPPROTO_TCP)
			e.Uint16(ctSrcPort, k.from.Port())
			e.Uint16(ctDstPort, k.to.Port())
			return nil
		})
		return nil
	})
	attrs, _ := e.Encode() // these always fit
	b := make([]byte, unix.SizeofNlMsghdr, 128)
	b = append(b, family, unix.NFNETLINK_V0, 0, 0) // struct nfgenmsg
	b = append(b, attrs...)
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint16(b[4:], unix.NFNL_SUBSYS_CTNETLINK<<8|ctGet)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST)
	binary.NativeEndian.PutUint32(b[8:], seq)
	return b
}

// replySource is from where the answers of a connection come.
func replySource(b []byte) (a netip.AddrPort, ok bool) {
	const head = 4 // struct nfgenmsg
	if len(b) < head {
		return a, false
	}
	d, err := netlink.NewAttributeDecoder(b[head:])
	if err != nil {
		return a, false
	}
	d.ByteOrder = binary.BigEndian
	var ip netip.Addr
	var port uint16
	for d.Next() {
		if d.Type() != ctTupleReply {
			continue
		}
		d.Nested(func(d *netlink.AttributeDecoder) error {
			for d.Next() {
				switch d.Type() {
				case ctTupleIP:
					d.Nested(func(d *netlink.AttributeDecoder) error {
						for d.Next() {
							if x := d.Type(); x == ctIPv4Src || x == ctIPv6Src {
								ip, _ = netip.AddrFromSlice(d.Bytes())
							}
						}
						return nil
					})
				case ctTupleProto:
					d.Nested(func(d *netlink.AttributeDecoder) error {
						for d.Next() {
							if d.Type() == ctSrcPort {
								port = d.Uint16()
							}
						}
						return nil
					})
				}
			}
			return nil
		})
	}
	return netip.AddrPortFrom(ip, port), d.Err() == nil && ip.IsValid() && port != 0
}
