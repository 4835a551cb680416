package outgoing

import (
	"context"
	"maps"
	"net"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/tunnel"
)

// Drain is called when the program has ended, and returns when what it wrote before is delivered, or
// with ctx. A kernel does the same for a process that writes to a socket and exits.
//
// The program's sockets are closed by then: TCP relays come to their end by themselves, as soon as
// the far end has closed too. A UDP socket's end is not seen, so each is ended after the last
// datagram that waits.
func (r *Room) Drain(ctx context.Context) {
	r.ending.Store(true)
	for stream, relays := range r.udp.open() {
		for _, c := range relays {
			for waiting(c) && pause(ctx) {
			}
		}
		pause(ctx) // the one that was read last is written by now
		_ = stream.CloseWrite()
	}
	for r.live.Load() > 0 && pause(ctx) {
	}
}

// open gives the streams of all sockets, with the relays that write to them.
func (u *udpTable) open() map[tunnel.Stream][]*net.UDPConn {
	u.mu.Lock()
	defer u.mu.Unlock()
	out := make(map[tunnel.Stream][]*net.UDPConn)
	for _, a := range u.byCookie {
		for ; a != nil; a = a.beside {
			if a.stream != nil {
				out[a.stream] = slices.Collect(maps.Values(a.relays))
			}
		}
	}
	return out
}

// pause rests for a moment; false when ctx has ended.
func pause(ctx context.Context) bool {
	select {
	case <-time.After(time.Millisecond):
		return true
	case <-ctx.Done():
		return false
	}
}

// waiting says whether a datagram waits to be read.
func waiting(c *net.UDPConn) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	n := 0
	_ = raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.SIOCINQ) })
	return n > 0
}
