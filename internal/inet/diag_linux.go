package inet

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The kernel's structs of include/uapi/linux/inet_diag.h; ports are in network byte order.
type (
	diagID struct {
		sport, dport [2]byte
		src, dst     [16]byte
		iface        uint32
		cookie       [2]uint32
	}
	diagRequest struct {
		family, protocol, ext uint8
		_                     uint8
		states                uint32
		id                    diagID
	}
	diagMessage struct {
		family, state, timer, retrans uint8
		id                            diagID
		expires, rqueue, wqueue, uid  uint32
		inode                         uint32
	}
)

// States of include/net/tcp_states.h.
const (
	stateSynSent    = 2
	stateSynRecv    = 3
	stateClose      = 7
	stateListen     = 10
	stateNewSynRecv = 12
)

// State is how far a TCP connection is.
type State int

const (
	Unknown  State = iota // there is none
	HalfOpen              // its handshake goes on: the last packet is awaited, or the app (TCP_DEFER_ACCEPT, a full queue)
	Standing              // its handshake is over
)

// Diag asks the kernel about the sockets of the network namespace that it was opened in (sock_diag(7)). It
// is for one goroutine at a time.
type Diag struct{ n *Netlink }

// OpenDiag fails where the kernel has no sock_diag for TCP.
func OpenDiag() (*Diag, error) {
	d, err := openDiag()
	if err != nil {
		return nil, err
	}
	if _, err = d.all("tcp"); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

func openDiag() (*Diag, error) {
	n, err := OpenNetlink(unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, err
	}
	return &Diag{n}, nil
}

func (d *Diag) Close() { d.n.Close() }

// ask calls f for each socket of the answer.
func (d *Diag) ask(q *diagRequest, flags uint16, f func(*diagMessage)) error {
	body := unsafe.Slice((*byte)(unsafe.Pointer(q)), unsafe.Sizeof(*q))
	return d.n.Ask(unix.SOCK_DIAG_BY_FAMILY, flags, body, unix.SOCK_DIAG_BY_FAMILY, func(b []byte) {
		var m diagMessage
		if copy(unsafe.Slice((*byte)(unsafe.Pointer(&m)), unsafe.Sizeof(m)), b) == int(unsafe.Sizeof(m)) {
			f(&m)
		}
	})
}

// all are the TCP sockets that listen, or all UDP sockets.
func (d *Diag) all(network string) (rows []Row, err error) {
	q := diagRequest{protocol: unix.IPPROTO_TCP, states: 1 << stateListen}
	if network == "udp" {
		q.protocol, q.states = unix.IPPROTO_UDP, ^uint32(0)
	}
	for _, q.family = range []uint8{unix.AF_INET, unix.AF_INET6} {
		err := d.ask(&q, unix.NLM_F_DUMP, func(m *diagMessage) {
			rows = append(rows, Row{Port: binary.BigEndian.Uint16(m.id.sport[:]), Inode: uint64(m.inode)})
		})
		if err != nil {
			return nil, err
		}
	}
	return rows, nil
}

// Connection says how far the TCP connection between the two addresses is, the first being its end here. device
// is the interface by which its packets come, without which sockets that are bound to one are not found.
func (d *Diag) Connection(here, there netip.AddrPort, device int) (State, error) {
	q := diagRequest{protocol: unix.IPPROTO_TCP, states: ^uint32(0), family: unix.AF_INET}
	if here.Addr().Is6() {
		q.family = unix.AF_INET6
	}
	binary.BigEndian.PutUint16(q.id.sport[:], here.Port())
	binary.BigEndian.PutUint16(q.id.dport[:], there.Port())
	copy(q.id.src[:], here.Addr().AsSlice())
	copy(q.id.dst[:], there.Addr().AsSlice())
	q.id.iface = uint32(device)
	q.id.cookie = [2]uint32{^uint32(0), ^uint32(0)} // INET_DIAG_NOCOOKIE
	state := Unknown
	err := d.ask(&q, 0, func(m *diagMessage) {
		switch m.state {
		case stateClose, stateListen: // without a connection the kernel finds who would get one
		case stateSynSent, stateSynRecv, stateNewSynRecv:
			state = HalfOpen
		default:
			state = Standing
		}
	})
	if err == unix.ENOENT {
		return Unknown, nil
	}
	return state, err
}

func diag(network string) ([]Row, error) {
	d, err := openDiag()
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.all(network)
}
