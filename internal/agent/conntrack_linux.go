package agent

import (
	"encoding/binary"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/inet"
)

// tracking asks the kernel's connection tracking about single connections of the target's network namespace.
type tracking struct{ n *inet.Netlink }

// newTracking returns nil where the kernel cannot be asked.
func (t *target) newTracking() *tracking {
	c := &tracking{}
	err := t.net.Do(func() (err error) {
		c.n, err = inet.OpenNetlink(unix.NETLINK_NETFILTER)
		return err
	})
	if err != nil {
		return nil
	}
	// Without the module the kernel looks for it at each question. A connection that there is not is the answer
	// of one that can be asked.
	nobody := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 1)
	if err := c.ask(flowKey{nobody, nobody}, func([]byte) {}); err != unix.ENOENT {
		c.close()
		return nil
	}
	return c
}

func (c *tracking) close() {
	if c != nil {
		c.n.Close()
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
	err := c.ask(k, func(b []byte) { here, there, ok = replyTuple(b) })
	return here, there, ok && err == nil
}

// ask calls f with the kernel's answer.
func (c *tracking) ask(k flowKey, f func([]byte)) error {
	const subsystem = unix.NFNL_SUBSYS_CTNETLINK << 8
	return c.n.Ask(subsystem|ctGet, 0, question(k), subsystem|ctNew, f)
}

// question asks for the connection with this original tuple.
func question(k flowKey) []byte {
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
	nfgenmsg := []byte{family, unix.NFNETLINK_V0, 0, 0}
	return append(nfgenmsg, attrs...)
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
