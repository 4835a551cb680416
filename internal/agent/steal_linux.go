package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/inet"
)

// catcher takes a stolen connection and the address that its client called. It must not wait.
type catcher func(c net.Conn, called netip.AddrPort)

// newStealer makes the engine for mode: "sk_lookup", "nft", or "auto" for the first that this
// kernel and our capabilities allow, found by trying.
func newStealer(t *target, mode string, caught catcher) (_ stealer, by string, _ error) {
	var tried error
	for _, e := range []struct {
		name string
		make func(*target, catcher) (stealer, error)
	}{
		{"sk_lookup", newSKLookup},
		{"nft", newNFT},
	} {
		if mode != "auto" && mode != "" && mode != e.name {
			continue
		}
		s, err := e.make(t, caught)
		if err == nil {
			return s, e.name, nil
		}
		tried = errors.Join(tried, fmt.Errorf("steal by %s: %w", e.name, err))
	}
	if tried == nil {
		tried = fmt.Errorf("steal by %q: %w", mode, unix.EINVAL)
	}
	return nil, "", tried
}

func familyOf(a netip.AddrPort) int {
	if a.Addr().Is6() {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// listen opens a TCP listener in the target's network namespace. An IPv6 one is for IPv6 alone. A
// transparent one takes, by tproxy, connections to addresses other than its own; so do those sockets.
func (t *target) listen(at netip.AddrPort, transparent bool) (*net.TCPListener, error) {
	fd, err := t.socket(at.Addr().Is6(), unix.SOCK_STREAM)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "listener in the pod")
	defer f.Close()
	// Stolen connections carry the app's port: without this on them (they have it from here) an app
	// that is restarted could not bind it while they last.
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err == nil && at.Addr().Is6() {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	if err == nil && transparent {
		if at.Addr().Is6() {
			err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_TRANSPARENT, 1)
		} else {
			err = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TRANSPARENT, 1)
		}
	}
	if err == nil {
		err = unix.Bind(fd, inet.ToUnix(familyOf(at), at))
	}
	if err == nil {
		err = unix.Listen(fd, unix.SOMAXCONN)
	}
	if err != nil {
		return nil, err
	}
	l, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	return l.(*net.TCPListener), nil
}

// listenBoth opens a listener of each family that the pod has, on the loopback, where nobody else reaches
// it; the second may be nil.
func (t *target) listenBoth(transparent bool) (lns [2]*net.TCPListener, err error) {
	lns[0], err = t.listen(netip.AddrPortFrom(inet.Loopback(false), 0), transparent)
	if err != nil {
		return lns, fmt.Errorf("listen in the pod: %w", err)
	}
	lns[1], err = t.listen(netip.AddrPortFrom(inet.Loopback(true), 0), transparent)
	if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EADDRNOTAVAIL) {
		lns[0].Close()
		return lns, fmt.Errorf("listen in the pod: %w", err)
	}
	return lns, nil
}

// acceptPause is how long accepting rests when the process is out of descriptors or memory.
const acceptPause = 20 * time.Millisecond

// acceptAll hands every connection of ln to f until ln is closed. The local address of a stolen one is
// that which its client called; connections that somebody made to ln itself are closed.
func acceptAll(ln *net.TCPListener, f catcher) {
	own := ln.Addr().(*net.TCPAddr).AddrPort().Port()
	for {
		c, err := ln.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			if !errors.Is(err, unix.ECONNABORTED) {
				time.Sleep(acceptPause)
			}
			continue
		}
		at, ok := addrPortOf(c.LocalAddr())
		if !ok || at.Port() == own {
			c.Close()
			continue
		}
		f(c, at)
	}
}

// ownMark is the mark of our connections to the app: no nft engine steals them, and no tap takes them
// for a client's, that of another agent beside the same pod neither.
const ownMark = 0x57ead001

// appTimeout bounds the connection to the app: it is on this host.
const appTimeout = 10 * time.Second

// dialApp connects to the app past our own stealing. mark makes the socket known as ours before it
// connects; undo is called when the connection stands or has failed.
func (t *target) dialApp(ctx context.Context, to netip.AddrPort, mark func(fd int) (undo func(), err error)) (net.Conn, error) {
	fd, err := t.socket(to.Addr().Is6(), unix.SOCK_STREAM)
	if err != nil {
		return nil, err
	}
	undo, err := mark(fd)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	defer undo()
	err = unix.Connect(fd, inet.ToUnix(familyOf(to), to))
	if err != nil && err != unix.EINPROGRESS {
		unix.Close(fd)
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "connection to the app")
	defer f.Close()
	if err == unix.EINPROGRESS {
		if err := connected(ctx, f, time.Now().Add(appTimeout)); err != nil {
			return nil, err
		}
	}
	return net.FileConn(f)
}
