package inet

import (
	"encoding/binary"
	"errors"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Row is one socket of the kernel's tables.
type Row struct {
	Port  uint16 // local
	Inode uint64
}

// Sockets calls f for each socket of the calling thread's network namespace, of both families:
// network is "tcp" for those that listen, "udp" for all. A family that the kernel lacks has none.
//
// It asks by netlink (sock_diag(7)): /proc/net/tcp goes through every bucket of the table of
// connections, milliseconds on a machine with some memory, to find the few that listen. Where the
// kernel has no sock_diag it reads that all the same.
func Sockets(network string, f func(Row)) error {
	rows, err := diag(network)
	if err != nil {
		return table(network, f)
	}
	for _, r := range rows {
		f(r)
	}
	return nil
}

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

const listenState = 10 // TCP_LISTEN

func diag(network string) (rows []Row, err error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	q := diagRequest{protocol: unix.IPPROTO_TCP, states: 1 << listenState}
	if network == "udp" {
		q.protocol, q.states = unix.IPPROTO_UDP, ^uint32(0)
	}
	q.header = unix.NlMsghdr{Len: uint32(unsafe.Sizeof(q)), Type: unix.SOCK_DIAG_BY_FAMILY, Flags: unix.NLM_F_REQUEST | unix.NLM_F_DUMP}
	buf := make([]byte, 32<<10)
	for _, q.family = range []uint8{unix.AF_INET, unix.AF_INET6} {
		if err := unix.Sendto(fd, unsafe.Slice((*byte)(unsafe.Pointer(&q)), unsafe.Sizeof(q)), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return nil, err
		}
		for done := false; !done; {
			n, _, err := unix.Recvfrom(fd, buf, 0)
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				return nil, err
			}
			if rows, done, err = parseDiag(buf[:n], rows); err != nil {
				return nil, err
			}
		}
	}
	return rows, nil
}

// parseDiag reads the messages of one answer; done with the dump's last.
func parseDiag(b []byte, rows []Row) (_ []Row, done bool, err error) {
	const head = unix.SizeofNlMsghdr
	for len(b) >= head {
		size := int(binary.NativeEndian.Uint32(b))
		if size < head || size > len(b) {
			break
		}
		body := b[head:size]
		switch binary.NativeEndian.Uint16(b[4:]) {
		case unix.NLMSG_DONE:
			return rows, true, nil
		case unix.NLMSG_ERROR:
			if len(body) >= 4 {
				if e := int32(binary.NativeEndian.Uint32(body)); e != 0 {
					return rows, true, unix.Errno(-e)
				}
			}
			return rows, true, nil
		case unix.SOCK_DIAG_BY_FAMILY:
			var m diagMessage
			if len(body) >= int(unsafe.Sizeof(m)) {
				copy(unsafe.Slice((*byte)(unsafe.Pointer(&m)), unsafe.Sizeof(m)), body)
				rows = append(rows, Row{Port: binary.BigEndian.Uint16(m.id.sport[:]), Inode: uint64(m.inode)})
			}
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	if len(b) > 0 {
		return rows, true, errors.New("sock_diag: an answer that is cut off")
	}
	return rows, false, nil
}

// table reads what the kernel writes into /proc/net.
func table(network string, f func(Row)) error {
	for _, name := range []string{network, network + "6"} {
		b, err := os.ReadFile("/proc/thread-self/net/" + name)
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return err
		}
		for i, line := range strings.Split(string(b), "\n") {
			if r, state, ok := parseRow(line); i > 0 && ok && (network == "udp" || state == listenState) {
				f(r)
			}
		}
	}
	return nil
}

// parseRow reads: number local_address rem_address st queues timer retransmits uid timeout inode.
func parseRow(line string) (r Row, state uint8, ok bool) {
	const local, st, inode = 1, 3, 9
	f := strings.Fields(line)
	if len(f) <= inode {
		return r, 0, false
	}
	_, hex, _ := strings.Cut(f[local], ":")
	port, err1 := strconv.ParseUint(hex, 16, 16)
	s, err2 := strconv.ParseUint(f[st], 16, 8)
	ino, err3 := strconv.ParseUint(f[inode], 10, 64)
	return Row{Port: uint16(port), Inode: ino}, uint8(s), err1 == nil && err2 == nil && err3 == nil
}
