package outgoing

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/inet"
	"github.com/stead-dev/stead/internal/intercept"
)

// listener is where the program's blocking sockets are connected to. Connections that nobody
// expects (another process of the laptop) are closed.
type listener struct {
	ln   net.Listener
	addr netip.AddrPort

	mu   sync.Mutex
	legs map[netip.AddrPort]chan net.Conn // by the program's end; buffered, one connection each
}

// legTimeout bounds the wait of one end of a loopback leg for the other. Both are under way in
// this process, so only a machine at its limits needs any of it.
const legTimeout = 10 * time.Second

func (r *Room) listen(at netip.Addr) (*listener, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	ln, err := lc.Listen(r.ctx, "tcp", netip.AddrPortFrom(at, 0).String())
	if err != nil {
		return nil, err
	}
	l := &listener{ln: ln, addr: ln.Addr().(*net.TCPAddr).AddrPort(), legs: make(map[netip.AddrPort]chan net.Conn)}
	r.work.Add(1)
	go func() {
		defer r.work.Done()
		for {
			c, err := ln.Accept()
			if err != nil {
				if r.ctx.Err() != nil {
					return
				}
				time.Sleep(10 * time.Millisecond) // out of descriptors: the next ones may be closed by then
				continue
			}
			select {
			case l.leg(inet.Unmap(c.RemoteAddr().(*net.TCPAddr).AddrPort())) <- c:
			default: // a stranger's, from a port that another stranger just used
				c.Close()
			}
		}
	}()
	return l, nil
}

func (l *listener) close() { l.ln.Close() }

// leg is the meeting place of the two ends of one connection, whoever comes first.
func (l *listener) leg(from netip.AddrPort) chan net.Conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	ch := l.legs[from]
	if ch == nil {
		ch = make(chan net.Conn, 1)
		l.legs[from] = ch
		time.AfterFunc(legTimeout, func() { l.drop(from, ch) })
	}
	return ch
}

// drop forgets a meeting place, and closes a connection for which nobody came.
func (l *listener) drop(from netip.AddrPort, ch chan net.Conn) {
	l.mu.Lock()
	if l.legs[from] == ch {
		delete(l.legs, from)
	}
	l.mu.Unlock()
	select {
	case c := <-ch:
		c.Close()
	default:
	}
}

// join connects the program's socket to the listener and returns our end.
func (l *listener) join(s *intercept.Socket, target unix.Sockaddr) (net.Conn, unix.Errno) {
	for {
		err := unix.Connect(s.FD, target)
		if err == unix.EINTR {
			continue // the runtime's preemption signal; a second call waits for the first one's result
		}
		if err != nil && err != unix.EINPROGRESS && err != unix.EISCONN {
			return nil, err.(unix.Errno)
		}
		break
	}
	sa, err := unix.Getsockname(s.FD)
	if err != nil {
		return nil, unix.ENOBUFS
	}
	from := inet.Unmap(inet.FromUnix(sa))
	ch := l.leg(from)
	ctx, cancel := context.WithTimeout(context.Background(), legTimeout)
	defer cancel()
	defer l.drop(from, ch)
	select {
	case c := <-ch:
		return c, 0
	case <-ctx.Done():
		return nil, unix.ETIMEDOUT
	}
}
