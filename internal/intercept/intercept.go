// Package intercept is the seam between what catches the program's system calls (notify on Linux,
// a preloaded shim elsewhere) and what answers them (package session): the calls as Go values and
// the Handler that decides.
//
// An interceptor knows nothing of pods or policy. A Handler knows nothing of how a call was caught:
// it gets the program's own socket as a descriptor of ours that shares the open file description,
// acts on it, and says how the call ends. So after connect or accept the kernel moves the
// program's bytes and nobody is asked again.
package intercept

import (
	"context"
	"errors"
	"net/netip"
	"syscall"
	"time"
)

// Socket is the program's socket in a call. It is valid until the call is over; a Handler that
// needs it later asks Again.
type Socket struct {
	FD       int    // ours; the same open file description as the program's
	Cookie   uint64 // SO_COOKIE: stays the same over dup, fork and SCM_RIGHTS, is never used again
	Family   int    // AF_INET or AF_INET6: the socket's, which is what counts, not an address's
	Type     int    // SOCK_STREAM, SOCK_DGRAM, SOCK_RAW
	Protocol int    // IPPROTO_TCP, IPPROTO_UDP, ...
	Nonblock bool

	// Again takes the socket once more, after the call is over. It fails when the program has
	// closed it or moved it to another descriptor. The caller closes the result.
	Again func() (fd int, err error)
}

// Datagram is what one call sends at once.
type Datagram struct {
	Payload []byte
	Segment uint16 // UDP_SEGMENT: several, of that size each, the last one of what is left; 0 for one
}

// Outcome says how a call ends. Exactly one of these holds: Continue, the kernel runs the call as
// it stands; Later, the answer takes time and Later finds it; else the call returns Errno where
// that is not 0, and Value.
type Outcome struct {
	Continue bool
	Errno    syscall.Errno
	Value    int64
	// Later runs on a goroutine of its own with the Socket still valid. Its context ends when the
	// program's thread gets a signal or dies; the call is then restarted or failed by the kernel,
	// so Later must leave nothing half done that a second call of the same kind cannot take up.
	Later func(context.Context) Outcome
}

// Continue lets the kernel run the call.
var Continue = Outcome{Continue: true}

// Fail ends the call with an errno.
func Fail(e syscall.Errno) Outcome { return Outcome{Errno: e} }

// Signalled is why the context of a Later ended (context.Cause, errors.Is) when the program's thread got
// a signal.
var Signalled = errors.New("a signal waits for the thread")

// patience is how long a call is deaf to signals that no kernel would let interrupt it.
const patience = time.Second

// Patient gives a Later the context for such a call: programs do not expect EINTR of it. A signal ends it
// no sooner than after a second, so only a call that waits for a pod far away may be interrupted.
func Patient(ctx context.Context) (context.Context, context.CancelFunc) {
	began := time.Now()
	patient, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		if errors.Is(context.Cause(ctx), Signalled) {
			select {
			case <-time.After(patience - time.Since(began)):
			case <-patient.Done():
			}
		}
		cancel()
	})
	return patient, func() { stop(); cancel() }
}

// Tree is a file system that begins at "/" and is laid beside this machine's own, for programs whose
// path calls are trapped. It shows everything: what belongs to somebody else, and this machine's
// own trees in the places that they keep.
type Tree interface {
	// Other says whether an absolute, clean path is somebody else's. It must not keep the string.
	Other(path string) bool
	// Root is a descriptor of the tree's root directory, valid for as long as the interceptor runs.
	Root() int
}

// Copies is a Tree of ordinary files of this machine's, each of which is made when it is asked for. The
// kernel moves their bytes; what it says of them beside that is corrected, and what would change them
// refused, by the interceptor.
type Copies interface {
	Tree
	// Open is openat2(2) with the root as "/", with the rights of the calling thread; it follows no link
	// (ELOOP). It makes what is on the way and what is opened, if need be, which takes time; with
	// RESOLVE_CACHED it says EAGAIN instead.
	Open(path string, flags, mode, resolve uint64) (fd int, errno syscall.Errno)
	// Doubt forgets what was believed of a path: the next Open asks again.
	Doubt(path string)
	// Known says what the file with these numbers of stat(2)'s is a copy of.
	Known(dev, ino uint64) (path string, a Attr, ok bool)
}

// Attr is what stat(2) is to say of a file, times in nanoseconds since 1970.
type Attr struct {
	Ino, Size, Blocks           uint64
	Mode, Nlink, UID, GID, Rdev uint32
	Atime, Mtime, Ctime         int64
}

// Handler answers the calls. Its methods are called from the interceptor's receiver and must not
// block; what takes time goes into Outcome.Later. Addresses are as the program gave them, a
// v4-mapped one stays v4-mapped.
type Handler interface {
	Bind(s *Socket, at netip.AddrPort) Outcome
	Listen(s *Socket, backlog int) Outcome
	Connect(s *Socket, to netip.AddrPort) Outcome
	// Accepted is told the address from which a connection on the program's listener comes as our
	// kernel sees it, and returns the one that the program is to see.
	Accepted(listener *Socket, from netip.AddrPort) netip.AddrPort
	// PeerName and SockName return what the program is to see. ErrnoOK with an invalid address
	// leaves the answer to the kernel.
	PeerName(s *Socket) (netip.AddrPort, syscall.Errno)
	SockName(s *Socket) (netip.AddrPort, syscall.Errno)
	// SocketError is getsockopt(SO_ERROR): ok false leaves the answer to the kernel.
	SocketError(s *Socket) (errno syscall.Errno, ok bool)
	// SendTo sends a datagram (Type SOCK_DGRAM or SOCK_RAW) to an address. Its payload is only valid during
	// the call.
	SendTo(s *Socket, to netip.AddrPort, d Datagram) Outcome
	// ReceivesFor says whether addresses of datagrams that this socket receives need Source.
	// The first form is asked before the socket is taken: false means none does.
	ReceivesAny() bool
	ReceivesFor(s *Socket) bool
	// Source translates the address from which a datagram came, and learns of it.
	Source(s *Socket, from netip.AddrPort) netip.AddrPort
	// ConnectUnix decides about connect(2) on a unix socket by its path (abstract names begin with @).
	ConnectUnix(path string) Outcome
	// Hostname is the nodename and domain name for uname(2) when Options.Uname is on.
	Hostname() (node, domain string)
	// Trouble tells what went wrong in a way that the program's errno cannot say.
	Trouble(err error)
}
