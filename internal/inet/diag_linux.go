package inet

import (
	"encoding/binary"
	"errors"
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
		header                unix.NlMsghdr
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
type Diag struct {
	fd  int
	seq uint32
	buf []byte
}

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
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, err
	}
	d := &Diag{fd: fd, buf: make([]byte, 32<<10)}
	// It answers at once, out of the call that asks; should one be lost for want of memory, nobody waits for it.
	if err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1}); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

func (d *Diag) Close() { unix.Close(d.fd) }

// ask sends q and calls f for each socket of the answer.
func (d *Diag) ask(q *diagRequest, f func(*diagMessage)) error {
	q.header.Len, q.header.Type = uint32(unsafe.Sizeof(*q)), unix.SOCK_DIAG_BY_FAMILY
	d.seq++
	q.header.Seq, q.header.Flags = d.seq, q.header.Flags|unix.NLM_F_REQUEST
	if err := unix.Sendto(d.fd, unsafe.Slice((*byte)(unsafe.Pointer(q)), unsafe.Sizeof(*q)), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	for {
		n, _, err := unix.Recvfrom(d.fd, d.buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		found := false
		done, err := parseDiag(d.buf[:n], d.seq, func(m *diagMessage) { found = true; f(m) })
		if done || err != nil || found && q.header.Flags&unix.NLM_F_DUMP != unix.NLM_F_DUMP {
			return err
		}
	}
}

// all are the TCP sockets that listen, or all UDP sockets.
func (d *Diag) all(network string) (rows []Row, err error) {
	q := diagRequest{protocol: unix.IPPROTO_TCP, states: 1 << stateListen}
	if network == "udp" {
		q.protocol, q.states = unix.IPPROTO_UDP, ^uint32(0)
	}
	q.header.Flags = unix.NLM_F_DUMP
	for _, q.family = range []uint8{unix.AF_INET, unix.AF_INET6} {
		err := d.ask(&q, func(m *diagMessage) {
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
	err := d.ask(&q, func(m *diagMessage) {
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

// parseDiag reads the messages of one answer to the question seq; done with the dump's last.
func parseDiag(b []byte, seq uint32, f func(*diagMessage)) (done bool, err error) {
	const head = unix.SizeofNlMsghdr
	for len(b) >= head {
		size := int(binary.NativeEndian.Uint32(b))
		if size < head || size > len(b) {
			break
		}
		body := b[head:size]
		switch kind := binary.NativeEndian.Uint16(b[4:]); {
		case binary.NativeEndian.Uint32(b[8:]) != seq: // of an earlier one, whose answer was given up
		case kind == unix.NLMSG_DONE:
			return true, nil
		case kind == unix.NLMSG_ERROR:
			if len(body) >= 4 {
				if e := int32(binary.NativeEndian.Uint32(body)); e != 0 {
					return true, unix.Errno(-e)
				}
			}
			return true, nil
		case kind == unix.SOCK_DIAG_BY_FAMILY:
			var m diagMessage
			if len(body) >= int(unsafe.Sizeof(m)) {
				copy(unsafe.Slice((*byte)(unsafe.Pointer(&m)), unsafe.Sizeof(m)), body)
				f(&m)
			}
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	if len(b) > 0 {
		return true, errors.New("sock_diag: an answer that is cut off")
	}
	return false, nil
}
