package agent

import (
	"encoding/binary"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// tracking asks the kernel's connection tracking about single connections of the target's network namespace.
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
	// Without the module the kernel looks for it at each question. A connection that there is not is the answer
	// of one that can be asked.
	nobody := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 1)
	if _, err := c.ask(flowKey{nobody, nobody}); err != unix.ENOENT {
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

// translated gives the addresses that a connection has for the one who accepts it; not ok where it is not
// tracked.
func (c *tracking) translated(k flowKey) (here, there netip.AddrPort, ok bool) {
	if c == nil {
		return here, there, false
	}
	b, err := c.ask(k)
	if err != nil {
		return here, there, false
	}
	return replyTuple(b)
}

// ask returns what follows the header of the kernel's answer, valid until the next question.
func (c *tracking) ask(k flowKey) ([]byte, error) {
	c.seq++
	if err := unix.Sendto(c.fd, question(k, c.seq), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, err
	}
	for {
		n, _, err := unix.Recvfrom(c.fd, c.buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n < unix.SizeofNlMsghdr || binary.NativeEndian.Uint32(c.buf[8:]) != c.seq {
			continue // the answer to an earlier question that was given up
		}
		kind, body := binary.NativeEndian.Uint16(c.buf[4:]), c.buf[unix.SizeofNlMsghdr:n]
		switch {
		case kind == unix.NFNL_SUBSYS_CTNETLINK<<8|ctNew:
			return body, nil
		case kind == unix.NLMSG_ERROR && len(body) >= 4:
			return nil, unix.Errno(-int32(binary.NativeEndian.Uint32(body)))
		}
		return nil, unix.EPROTO
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

// replyTuple are the ends of a connection's answers: from whom, and to whom.
func replyTuple(b []byte) (from, to netip.AddrPort, ok bool) {
	const head = 4 // struct nfgenmsg
	if len(b) < head {
		return from, to, false
	}
	d, err := netlink.NewAttributeDecoder(b[head:])
	if err != nil {
		return from, to, false
	}
	d.ByteOrder = binary.BigEndian
	var src, dst netip.Addr
	var sport, dport uint16
	each := func(f func(*netlink.AttributeDecoder)) func(*netlink.AttributeDecoder) error {
		return func(d *netlink.AttributeDecoder) error {
			for d.Next() {
				f(d)
			}
			return nil
		}
	}
	each(func(d *netlink.AttributeDecoder) {
		if d.Type() != ctTupleReply {
			return
		}
		d.Nested(each(func(d *netlink.AttributeDecoder) {
			switch d.Type() {
			case ctTupleIP:
				d.Nested(each(func(d *netlink.AttributeDecoder) {
					switch d.Type() {
					case ctIPv4Src, ctIPv6Src:
						src, _ = netip.AddrFromSlice(d.Bytes())
					case ctIPv4Dst, ctIPv6Dst:
						dst, _ = netip.AddrFromSlice(d.Bytes())
					}
				}))
			case ctTupleProto:
				d.Nested(each(func(d *netlink.AttributeDecoder) {
					switch d.Type() {
					case ctSrcPort:
						sport = d.Uint16()
					case ctDstPort:
						dport = d.Uint16()
					}
				}))
			}
		}))
	})(d)
	ok = d.Err() == nil && src.IsValid() && dst.IsValid() && sport != 0 && dport != 0
	return netip.AddrPortFrom(src, sport), netip.AddrPortFrom(dst, dport), ok
}
