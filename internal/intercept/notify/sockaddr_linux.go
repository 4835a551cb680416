package notify

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/inet"
	"github.com/stead-dev/stead/internal/sys"
)

// sockaddr is what a call says of an address: an IP address and port, a unix path, or a family
// that is none of our business. AF_UNSPEC has neither.
type sockaddr struct {
	family uint16
	ip     netip.AddrPort
	path   string
}

// readSockaddr copies the address at addr. It answers with EFAULT or EINVAL as the kernel would;
// a length that the kernel would refuse is left to it (ok false, errno 0: let the call run).
func readSockaddr(tid int, addr, size uint64) (a sockaddr, errno unix.Errno, ok bool) {
	var raw [unix.SizeofSockaddrUnix]byte
	n := int(int32(size))
	if addr == 0 || n < 2 || n > 128 { // 128: sizeof(struct sockaddr_storage)
		return a, 0, false
	}
	b := raw[:min(n, len(raw))]
	if got, err := sys.ReadTask(tid, addr, b); err != nil || got != len(b) {
		if err == unix.EPERM {
			return a, unix.EACCES, false
		}
		return a, 0, false
	}
	a, ok = parseSockaddr(b)
	return a, 0, ok
}

// parseSockaddr decodes what the kernel's ABI calls a sockaddr; ok is false when it is too short
// for its family.
func parseSockaddr(b []byte) (a sockaddr, ok bool) {
	if len(b) < 2 {
		return a, false
	}
	a.family = binary.NativeEndian.Uint16(b)
	switch a.family {
	case unix.AF_INET, unix.AF_INET6:
		a.ip, ok = inet.Parse(b)
		return a, ok
	case unix.AF_UNIX:
		p := b[2:]
		if len(p) > 0 && p[0] == 0 {
			a.path = "@" + string(p[1:])
			break
		}
		for i, c := range p {
			if c == 0 {
				p = p[:i]
				break
			}
		}
		a.path = string(p)
	}
	return a, true
}

// writeSockaddr stores an address as getsockname does: as much as fits in the room that *size
// names, and the full length told back.
func writeSockaddr(tid int, addr, size uint64, raw []byte) unix.Errno {
	var room [4]byte
	if n, err := sys.ReadTask(tid, size, room[:]); err != nil || n != 4 {
		return unix.EFAULT
	}
	fit := int(int32(binary.NativeEndian.Uint32(room[:])))
	if fit < 0 {
		return unix.EINVAL
	}
	fit = min(fit, len(raw))
	if sys.WriteTask(tid, addr, raw[:fit]) != nil {
		return unix.EFAULT
	}
	binary.NativeEndian.PutUint32(room[:], uint32(len(raw)))
	if sys.WriteTask(tid, size, room[:]) != nil {
		return unix.EFAULT
	}
	return 0
}
