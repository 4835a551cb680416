package notify

import (
	"context"
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/inet"
	"github.com/stead-dev/stead/internal/intercept"
	"github.com/stead-dev/stead/internal/sys"
)

// Datagrams with an address. Those without one (a connected socket's send and recv) never come
// here. maxPayload is more than any UDP datagram: what is longer is EMSGSIZE, the kernel's to say.
const (
	maxPayload = 65536
	maxIovecs  = 1024 // UIO_MAXIOV
	maxControl = 4096
)

// msghdr is struct user_msghdr on 64-bit CPUs.
type msghdr struct {
	name       uint64
	namelen    int32
	_          uint32
	iov        uint64
	iovlen     uint64
	control    uint64
	controllen uint64
	flags      uint32
	_          uint32
}

// Sizes and offsets in struct user_msghdr and struct mmsghdr.
const (
	sizeofMsghdr  = int(unsafe.Sizeof(msghdr{}))
	sizeofMmsghdr = uint64(sizeofMsghdr) + 8
	offNamelen    = 8
	offControllen = 40
	offFlags      = 48
	offMsgLen     = uint64(sizeofMsghdr)
)

func readMsghdr(tid int, addr uint64) (m msghdr, ok bool) {
	b := (*[sizeofMsghdr]byte)(unsafe.Pointer(&m))[:]
	n, err := sys.ReadTask(tid, addr, b)
	return m, err == nil && n == len(b)
}

type iovec struct{ base, size uint64 }

// readIovecs returns the vector and the sum of its sizes.
func readIovecs(tid int, addr, count uint64) (v []iovec, total int, ok bool) {
	if count > maxIovecs {
		return nil, 0, false
	}
	v = make([]iovec, count)
	if count == 0 {
		return v, 0, true
	}
	b := unsafe.Slice((*byte)(unsafe.Pointer(&v[0])), int(count)*16)
	if n, err := sys.ReadTask(tid, addr, b); err != nil || n != len(b) {
		return nil, 0, false
	}
	for _, x := range v {
		if x.size > maxPayload || total > maxPayload {
			total = maxPayload + 1
			continue
		}
		total += int(x.size)
	}
	return v, total, true
}

// gather copies what the vector names; false: a page is missing or it is too long for a datagram.
func gather(tid int, v []iovec, total int) ([]byte, bool) {
	if total > maxPayload {
		return nil, false
	}
	b := make([]byte, 0, total)
	for _, x := range v {
		at := len(b)
		b = b[:at+int(x.size)]
		if n, err := sys.ReadTask(tid, x.base, b[at:]); err != nil || n != int(x.size) {
			return nil, false
		}
	}
	return b, true
}

// scatter stores b in the vector.
func scatter(tid int, v []iovec, b []byte) unix.Errno {
	for _, x := range v {
		n := min(int(min(x.size, maxPayload)), len(b))
		if sys.WriteTask(tid, x.base, b[:n]) != nil {
			return unix.EFAULT
		}
		b = b[n:]
	}
	return 0
}

// sendto(fd, buf, len, flags, addr, addrlen), with an address.
func (s *Supervisor) sendto(t *task) {
	a, ok := s.address(t, 4, 5)
	if !ok {
		return
	}
	if a.family != unix.AF_INET && a.family != unix.AF_INET6 || t.args[2] > maxPayload {
		s.l.Continue(t.id)
		return
	}
	sock := s.socket(t)
	if sock == nil {
		return
	}
	if !datagrams(sock) {
		s.stream(t, sock, t.args[3])
		return
	}
	b, ok := gather(t.tid, []iovec{{t.args[1], t.args[2]}}, int(t.args[2]))
	if !ok {
		closeSocket(sock)
		s.l.Continue(t.id) // EFAULT
		return
	}
	s.finish(t, sock, s.h.SendTo(sock, a.ip, intercept.Datagram{Payload: b}))
}

// datagrams says whether each of the socket's messages may have an address of its own.
func datagrams(sock *intercept.Socket) bool {
	return sock.Type == unix.SOCK_DGRAM || sock.Type == unix.SOCK_RAW
}

// stream handles an address given to a socket that is no datagram socket. TCP ignores it, but for
// fast open, which is a connect in disguise: programs fall back to connect when it is not there.
func (s *Supervisor) stream(t *task, sock *intercept.Socket, flags uint64) {
	o := intercept.Continue
	if flags&unix.MSG_FASTOPEN != 0 {
		o = intercept.Fail(unix.EOPNOTSUPP)
	}
	s.finish(t, sock, o)
}

// sendmsg(fd, msg, flags).
func (s *Supervisor) sendmsg(t *task) {
	m, ok := readMsghdr(t.tid, t.args[1])
	if !ok || m.name == 0 {
		s.l.Continue(t.id)
		return
	}
	a, _, ok := readSockaddr(t.tid, m.name, uint64(uint32(m.namelen)))
	if !ok || a.family != unix.AF_INET && a.family != unix.AF_INET6 {
		s.l.Continue(t.id)
		return
	}
	sock := s.socket(t)
	if sock == nil {
		return
	}
	if !datagrams(sock) {
		s.stream(t, sock, t.args[2])
		return
	}
	d, _, ok := datagram(t, &m)
	if !ok {
		closeSocket(sock)
		s.l.Continue(t.id)
		return
	}
	s.finish(t, sock, s.h.SendTo(sock, a.ip, d))
}

// datagram reads what a message sends, and what is said beside it: of that only that it is cut into segments
// goes to the pod; the rest is about the network here (an interface, a source address, a type of service).
func datagram(t *task, m *msghdr) (d intercept.Datagram, control []byte, ok bool) {
	v, total, ok := readIovecs(t.tid, m.iov, m.iovlen)
	if !ok {
		return d, nil, false
	}
	if d.Payload, ok = gather(t.tid, v, total); !ok || m.control == 0 || m.controllen > maxControl {
		return d, nil, ok
	}
	control = make([]byte, m.controllen)
	if n, err := sys.ReadTask(t.tid, m.control, control); err != nil || n != len(control) {
		return d, nil, false
	}
	d.Segment = segmentOf(control)
	return d, control, true
}

// segmentOf finds UDP_SEGMENT in control messages, 0 where it is not there.
func segmentOf(control []byte) uint16 {
	for len(control) >= unix.SizeofCmsghdr {
		h, data, rest, err := unix.ParseOneSocketControlMessage(control)
		if err != nil {
			return 0
		}
		if h.Level == unix.SOL_UDP && h.Type == unix.UDP_SEGMENT && len(data) >= 2 {
			return binary.NativeEndian.Uint16(data)
		}
		control = rest
	}
	return 0
}

// sendmmsg(fd, vec, vlen, flags). A batch in which no message has an address is the kernel's.
func (s *Supervisor) sendmmsg(t *task) {
	count := min(t.args[2]&0xffffffff, maxIovecs)
	type message struct {
		m  msghdr
		to netip.AddrPort
	}
	batch := make([]message, 0, min(count, 8))
	addressed := false
	for i := range count {
		m, ok := readMsghdr(t.tid, t.args[1]+i*sizeofMmsghdr)
		if !ok {
			break
		}
		x := message{m: m}
		if m.name != 0 {
			if a, _, ok := readSockaddr(t.tid, m.name, uint64(uint32(m.namelen))); ok {
				x.to = a.ip
			}
		}
		addressed = addressed || x.to.IsValid()
		batch = append(batch, x)
	}
	if !addressed {
		s.l.Continue(t.id)
		return
	}
	sock := s.socket(t)
	if sock == nil {
		return
	}
	if !datagrams(sock) {
		s.stream(t, sock, t.args[3])
		return
	}
	// Each message may take time (the first one to a destination asks the pod), so on a goroutine.
	s.finish(t, sock, intercept.Outcome{Later: func(ctx context.Context) intercept.Outcome {
		for i, x := range batch {
			n, errno := s.sendOne(ctx, t, sock, &x.m, x.to)
			if errno != 0 {
				if i == 0 {
					return intercept.Fail(errno)
				}
				return intercept.Outcome{Value: int64(i)}
			}
			var b [4]byte
			binary.NativeEndian.PutUint32(b[:], uint32(n))
			if !s.l.Valid(t.id) || sys.WriteTask(t.tid, t.args[1]+uint64(i)*sizeofMmsghdr+offMsgLen, b[:]) != nil {
				return intercept.Fail(unix.EFAULT)
			}
		}
		return intercept.Outcome{Value: int64(len(batch))}
	}})
}

// sendOne sends one message of a batch.
func (s *Supervisor) sendOne(ctx context.Context, t *task, sock *intercept.Socket, m *msghdr, to netip.AddrPort) (int, unix.Errno) {
	d, control, ok := datagram(t, m)
	if !ok {
		return 0, unix.EFAULT
	}
	o := intercept.Continue
	if to.IsValid() {
		if o = s.h.SendTo(sock, to, d); o.Later != nil {
			o = o.Later(ctx)
		}
	}
	if !o.Continue {
		return int(o.Value), o.Errno
	}
	var sa unix.Sockaddr
	if to.IsValid() {
		sa = inet.ToUnix(sock.Family, to)
	}
	n, err := unix.SendmsgN(sock.FD, d.Payload, control, sa, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
	if err != nil {
		return 0, err.(unix.Errno)
	}
	return n, 0
}

// recvfrom(fd, buf, len, flags, addr, addrlen), with room for an address.
func (s *Supervisor) recvfrom(t *task) {
	s.receive(t, int(int32(t.args[3])), t.args[4] != 0, func(r *received, sock *intercept.Socket) (int64, unix.Errno) {
		n := min(len(r.data), int(min(t.args[2], maxPayload)))
		if sys.WriteTask(t.tid, t.args[1], r.data[:n]) != nil {
			return 0, unix.EFAULT
		}
		if e := writeSockaddr(t.tid, t.args[4], t.args[5], r.name); e != 0 {
			return 0, e
		}
		return int64(r.result(n, int(int32(t.args[3])))), 0
	})
}

// recvmsg(fd, msg, flags).
func (s *Supervisor) recvmsg(t *task) {
	if !s.h.ReceivesAny() {
		s.l.Continue(t.id)
		return
	}
	s.receiveMsg(t, t.args[1], int(int32(t.args[2])), func(n int) (int64, unix.Errno) { return int64(n), 0 })
}

// recvmmsg(fd, vec, vlen, flags, timeout) receives one message: fewer than asked for is allowed.
func (s *Supervisor) recvmmsg(t *task) {
	if !s.h.ReceivesAny() || t.args[2] == 0 {
		s.l.Continue(t.id)
		return
	}
	s.receiveMsg(t, t.args[1], int(int32(t.args[3]))&^unix.MSG_WAITFORONE, func(n int) (int64, unix.Errno) {
		var b [4]byte
		binary.NativeEndian.PutUint32(b[:], uint32(n))
		if sys.WriteTask(t.tid, t.args[1]+offMsgLen, b[:]) != nil {
			return 0, unix.EFAULT
		}
		return 1, 0
	})
}

// receiveMsg receives into the msghdr at addr; done makes the call's result of the length.
func (s *Supervisor) receiveMsg(t *task, addr uint64, flags int, done func(int) (int64, unix.Errno)) {
	m, ok := readMsghdr(t.tid, addr)
	if !ok {
		s.l.Continue(t.id)
		return
	}
	s.receive(t, flags, m.name != 0, func(r *received, sock *intercept.Socket) (int64, unix.Errno) {
		v, total, ok := readIovecs(t.tid, m.iov, m.iovlen)
		if !ok {
			return 0, unix.EFAULT
		}
		n := min(len(r.data), total)
		if e := scatter(t.tid, v, r.data[:n]); e != 0 {
			return 0, e
		}
		flags := r.flags
		if n < len(r.data) {
			flags |= unix.MSG_TRUNC
		}
		control := r.control
		if uint64(len(control)) > m.controllen {
			control, flags = nil, flags|unix.MSG_CTRUNC
		}
		var namelen, word [4]byte
		var size [8]byte
		binary.NativeEndian.PutUint32(namelen[:], uint32(len(r.name)))
		binary.NativeEndian.PutUint32(word[:], uint32(flags))
		binary.NativeEndian.PutUint64(size[:], uint64(len(control)))
		name := r.name[:min(len(r.name), max(int(m.namelen), 0))]
		for _, w := range []struct {
			at uint64
			b  []byte
		}{
			{m.name, name}, {addr + offNamelen, namelen[:]},
			{m.control, control}, {addr + offControllen, size[:]},
			{addr + offFlags, word[:]},
		} {
			if sys.WriteTask(t.tid, w.at, w.b) != nil {
				return 0, unix.EFAULT
			}
		}
		return done(r.result(n, flagsOf(t)))
	})
}

// flagsOf returns the flags argument of a receiving call.
func flagsOf(t *task) int {
	if t.nr == unix.SYS_RECVMSG {
		return int(int32(t.args[2]))
	}
	return int(int32(t.args[3]))
}

// received is one datagram, with the address that the program is to see.
type received struct {
	data    []byte
	control []byte
	name    []byte // encoded
	flags   int
}

// result is the call's value: the length as it was on the wire if the program asks for it.
func (r *received) result(stored, flags int) int {
	if flags&unix.MSG_TRUNC != 0 {
		return len(r.data)
	}
	return stored
}

// receive takes one datagram for the program where its address needs translation, else it lets
// the kernel run the call. store writes it into the program's memory.
func (s *Supervisor) receive(t *task, flags int, named bool, store func(*received, *intercept.Socket) (int64, unix.Errno)) {
	if !named || flags&unix.MSG_ERRQUEUE != 0 || !s.h.ReceivesAny() {
		s.l.Continue(t.id)
		return
	}
	sock := s.socket(t)
	if sock == nil {
		return
	}
	if sock.Type != unix.SOCK_DGRAM || !s.h.ReceivesFor(sock) {
		closeSocket(sock)
		s.l.Continue(t.id)
		return
	}
	// The datagram leaves the socket only when the caller still waits, and is peeked first so that an
	// interrupted call loses nothing. One at a time: what two threads peek at is one datagram.
	take := func() intercept.Outcome {
		s.taking.Lock()
		defer s.taking.Unlock()
		r, errno := s.take(sock, flags)
		if errno != 0 {
			return intercept.Fail(errno)
		}
		if !s.l.Valid(t.id) {
			return intercept.Fail(unix.EINTR)
		}
		n, errno := store(r, sock)
		if errno == 0 && flags&unix.MSG_PEEK == 0 {
			var b [1]byte
			_, _, _ = unix.Recvfrom(sock.FD, b[:], unix.MSG_DONTWAIT)
		}
		return intercept.Outcome{Value: n, Errno: errno}
	}
	o := take()
	if o.Errno == unix.EAGAIN && !sock.Nonblock && flags&unix.MSG_DONTWAIT == 0 {
		o = intercept.Outcome{Later: func(ctx context.Context) intercept.Outcome {
			for {
				if e := waitReadable(ctx, sock.FD); e != 0 {
					return intercept.Fail(e)
				}
				if o := take(); o.Errno != unix.EAGAIN {
					return o
				}
			}
		}}
	}
	s.finish(t, sock, o)
}

// take peeks at the next datagram.
func (s *Supervisor) take(sock *intercept.Socket, flags int) (*received, unix.Errno) {
	data, control := make([]byte, maxPayload), make([]byte, maxControl)
	n, cn, rflags, from, err := unix.Recvmsg(sock.FD, data, control, flags&^unix.MSG_TRUNC|unix.MSG_PEEK|unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, err.(unix.Errno)
	}
	real := inet.FromUnix(from)
	addr := s.h.Source(sock, real)
	name := inet.Append(nil, sock.Family, addr)
	if sa, ok := from.(*unix.SockaddrInet6); ok && addr == real { // a link-local one has a scope
		binary.NativeEndian.PutUint32(name[len(name)-4:], sa.ZoneId)
	}
	return &received{data: data[:n], control: control[:cn], flags: rflags &^ unix.MSG_PEEK, name: name}, 0
}
