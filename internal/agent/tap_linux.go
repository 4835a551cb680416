package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/tunnel"
	"github.com/stead-dev/stead/internal/wire"
)

// tap copies what clients send to some ports of the target's: a packet socket in its network
// namespace sees the packets that come in, those over the loopback included, and assemble.go makes
// streams of them. The kernel never waits for it: what we are too slow for is dropped, which shows
// as a hole in a stream, ends that copy and is told.
type tap struct {
	fd    int
	wake  int
	found func(*flow)  // a connection began
	lost  func(uint32) // the kernel dropped so many packets, which we were too slow for
	done  chan struct{}
	once  sync.Once

	mu    sync.Mutex
	asm   assembler
	ports map[uint16]bool
}

// tapBuffer is what the kernel holds for us: some 50 ms of a fast link.
const tapBuffer = 32 << 20

func newTap(t *target, found func(*flow), lost func(uint32)) (*tap, error) {
	p := &tap{fd: -1, wake: -1, found: found, lost: lost, done: make(chan struct{}), ports: make(map[uint16]bool)}
	p.asm = assembler{flows: make(map[flowKey]*flow), room: new(room)}
	err := t.net.Do(func() (err error) {
		// No protocol yet: nothing arrives before the filter is set.
		p.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open packet socket in the pod: %w", err)
	}
	if unix.SetsockoptInt(p.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, tapBuffer) != nil {
		_ = unix.SetsockoptInt(p.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, tapBuffer)
	}
	// What the target sends is not asked for, and a packet over the loopback comes once.
	err = unix.SetsockoptInt(p.fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
	if err == nil {
		err = p.filter(nil)
	}
	if err == nil {
		const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8
		err = unix.Bind(p.fd, &unix.SockaddrLinklayer{Protocol: all})
	}
	if err == nil {
		p.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC)
	}
	if err != nil {
		unix.Close(p.fd)
		return nil, fmt.Errorf("set up packet socket in the pod: %w", err)
	}
	go p.run()
	return p, nil
}

// watch sets the ports whose connections are copied.
func (p *tap) watch(ports []uint16) {
	p.mu.Lock()
	clear(p.ports)
	for _, n := range ports {
		p.ports[n] = true
	}
	p.mu.Unlock()
	_ = p.filter(ports)
}

func (p *tap) close() {
	p.once.Do(func() {
		unix.Write(p.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
		<-p.done
		unix.Close(p.fd)
		unix.Close(p.wake)
	})
}

// filter makes the kernel drop all but TCP to the ports that is not our own.
func (p *tap) filter(ports []uint16) error {
	prog := tapProgram(ports)
	return unix.SetsockoptSockFprog(p.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]})
}

// maxFiltered bounds the ports that the kernel's filter knows; beyond it user space decides.
const maxFiltered = 100

func tapProgram(ports []uint16) []unix.SockFilter {
	st := func(code uint16, k uint32) unix.SockFilter { return unix.SockFilter{Code: code, K: k} }
	jp := func(code uint16, k uint32, jt, jf uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | code | unix.BPF_K, K: k, Jt: jt, Jf: jf}
	}
	drop := st(unix.BPF_RET|unix.BPF_K, 0)
	if len(ports) == 0 {
		return []unix.SockFilter{drop}
	}
	const mark = 1<<32 - 0x1000 + 20 // SKF_AD_OFF + SKF_AD_MARK: not of the packet, but what the kernel knows of it
	own := []unix.SockFilter{
		0: st(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, mark),
		1: jp(unix.BPF_JEQ, ownMark, 0, 1),
		2: drop,
	}
	f := []unix.SockFilter{ // jumps are relative
		0: st(unix.BPF_LD|unix.BPF_B|unix.BPF_ABS, 0),
		1: st(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, 0xf0),
		2: jp(unix.BPF_JEQ, 0x60, 10-3, 0),
		3: jp(unix.BPF_JEQ, 0x40, 0, 9-4),
		4: st(unix.BPF_LD|unix.BPF_B|unix.BPF_ABS, 9), // IPv4: protocol
		5: jp(unix.BPF_JEQ, unix.IPPROTO_TCP, 0, 9-6),
		6: st(unix.BPF_LDX|unix.BPF_B|unix.BPF_MSH, 0), // X: length of the IP header
		7: st(unix.BPF_LD|unix.BPF_H|unix.BPF_IND, 2),  // destination port
		8: jp(unix.BPF_JA, 14-9, 0, 0),
		9: drop,
		// IPv6 without extension headers in front of TCP, which is all there is in practice.
		10: st(unix.BPF_LD|unix.BPF_B|unix.BPF_ABS, 6),
		11: jp(unix.BPF_JEQ, unix.IPPROTO_TCP, 13-12, 0),
		12: drop,
		13: st(unix.BPF_LD|unix.BPF_H|unix.BPF_ABS, 42),
	}
	keep := st(unix.BPF_RET|unix.BPF_K, 0xffffffff)
	if len(ports) > maxFiltered {
		return slices.Concat(own, f, []unix.SockFilter{keep})
	}
	for i, p := range ports {
		f = append(f, jp(unix.BPF_JEQ, uint32(p), uint8(len(ports)-i), 0))
	}
	return slices.Concat(own, f, []unix.SockFilter{drop, keep})
}

// gather is how long packets are let come together before they are read, in milliseconds. A copy may
// be that late; the app, whose CPUs we share, is not interrupted for each of its requests.
const gather = 2

// run reads packets until close.
func (p *tap) run() {
	defer close(p.done)
	defer func() {
		p.mu.Lock()
		p.asm.endAll()
		p.mu.Unlock()
	}()
	buf := make([]byte, 640<<10) // the largest packet, merged by GRO (BIG TCP); only what is used is in memory
	fds := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}, {Fd: int32(p.wake), Events: unix.POLLIN}}
	swept := time.Now()
	for {
		n, _, err := unix.Recvfrom(p.fd, buf, unix.MSG_DONTWAIT)
		if err == unix.EAGAIN {
			fds[0].Revents, fds[1].Revents = 0, 0
			if _, err := unix.Poll(fds, int(sweepEvery.Milliseconds())); err != nil && err != unix.EINTR {
				return
			}
			if fds[0].Revents != 0 {
				_, _ = unix.Poll(fds[1:], gather)
			}
			if fds[1].Revents != 0 {
				return
			}
		} else if err != nil && err != unix.EINTR && err != unix.ENETDOWN {
			return
		}
		now := time.Now()
		p.mu.Lock()
		if err == nil {
			if s, ok := parseSegment(buf[:n]); ok && p.ports[s.key.to.Port()] {
				if f := p.asm.take(&s, now); f != nil {
					p.found(f)
				}
			}
		}
		if now.Sub(swept) >= sweepEvery {
			p.asm.sweep(now)
			swept = now
			if st, err := unix.GetsockoptTpacketStats(p.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil && st.Drops > 0 {
				p.lost(st.Drops)
			}
		}
		p.mu.Unlock()
	}
}

// mirrored offers a connection that began to the sessions that mirror its port. It is called from
// the tap's goroutine and must not wait.
func (p *ports) mirrored(f *flow) {
	// p.mu may be held by somebody who waits for the tap: never take it here.
	go func() {
		p.mu.Lock()
		subs := append([]*subscription(nil), p.mirror[f.key.to.Port()]...)
		if !p.closed {
			p.work.Add(len(subs))
		} else {
			subs = nil
		}
		p.mu.Unlock()
		for _, s := range subs {
			c := f.copy()
			go func() {
				defer p.work.Done()
				p.carry(s, f.key, c)
			}()
		}
		f.seal()
	}()
}

// packetsLost tells the sessions that mirror of packets that nobody has seen: a copy that lacks
// them is given up and counted, a connection whose beginning was among them is not copied at all.
// Like mirrored it must not wait; a session that has not read the last such news misses this one.
func (p *ports) packetsLost(n uint32) {
	go func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, subs := range p.mirror {
			for _, s := range subs {
				if p.closed || !s.telling.CompareAndSwap(false, true) {
					continue
				}
				p.work.Go(func() {
					defer s.telling.Store(false)
					_ = wire.Write(s.note, wire.Event{Kind: wire.EventDropped, Count: s.dropped.Load(),
						Text: fmt.Sprintf("port %d: too many packets at once, %d of them were not seen", s.port, n)})
				})
			}
		}
	}()
}

// carry brings one copy of a client's bytes to a session.
func (p *ports) carry(s *subscription, k flowKey, c *copyOf) {
	defer c.abandon()
	st, err := s.x.offer(p.ctx, wire.Incoming{Subscription: s.id, Remote: k.from, Local: k.to})
	if errno := unix.Errno(0); err != nil && !errors.As(err, &errno) { // else the program did not want it
		s.missed.Add(1)
	}
	if err != nil {
		return
	}
	if n := s.missed.Swap(0); n > 0 {
		_ = wire.Write(s.note, wire.Event{Kind: wire.EventDropped, Count: s.dropped.Add(n),
			Text: fmt.Sprintf("port %d: %d connections were not copied while the agent could not reach this session", k.to.Port(), n)})
	}
	stop := context.AfterFunc(p.ctx, func() { st.Reset(0) })
	defer stop()
	go func() { // what the program answers goes nowhere; ends with the stream
		_, _ = io.Copy(io.Discard, st)
		c.abandon()
	}()
	go func() { // a stream that takes nothing must not hide that the copy is lost
		select {
		case <-c.lost:
			_ = st.Reset(uint32(unix.ECONNRESET))
		case <-c.abandoned:
		}
	}()
	err = send(st, c)
	select {
	case <-c.lost:
		_ = wire.Write(s.note, wire.Event{Kind: wire.EventDropped, Count: s.dropped.Add(1),
			Text: fmt.Sprintf("port %d: the copy of a connection was given up, the program or the link is too slow for it", k.to.Port())})
	default:
	}
	if err != nil {
		_ = st.Reset(uint32(unix.ECONNRESET))
		return
	}
	_ = st.CloseWrite()
	<-c.abandoned
	st.Close()
}

// send writes the copy to the stream until its end, which is no error.
func send(st tunnel.Stream, c *copyOf) error {
	for {
		b, err := c.next()
		if len(b) > 0 {
			if _, err := st.Write(b); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// segment is one TCP segment from a client.
type segment struct {
	key                flowKey
	seq                uint32
	syn, ack, fin, rst bool
	data               []byte
}

// flowKey names a connection in the direction from the client to the target.
type flowKey struct{ from, to netip.AddrPort }

const (
	flagFIN = 1 << iota
	flagSYN
	flagRST
	_
	flagACK
)

// parseSegment reads an IP packet. Fragments are left out: TCP avoids them.
func parseSegment(b []byte) (s segment, ok bool) {
	if len(b) < 20 {
		return s, false
	}
	var src, dst netip.Addr
	switch b[0] >> 4 {
	case 4:
		head, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
		if b[9] != unix.IPPROTO_TCP || binary.BigEndian.Uint16(b[6:])&0x3fff != 0 || head < 20 {
			return s, false
		}
		if total == 0 || total > len(b) { // 0: larger than 64 KiB by BIG TCP
			total = len(b)
		}
		if head > total {
			return s, false
		}
		src, dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		b = b[head:total]
	case 6:
		if len(b) < 40 || b[6] != unix.IPPROTO_TCP {
			return s, false
		}
		src, dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
		total := 40 + int(binary.BigEndian.Uint16(b[4:]))
		if total == 40 || total > len(b) {
			total = len(b)
		}
		b = b[40:total]
	default:
		return s, false
	}
	if len(b) < 20 {
		return s, false
	}
	head := int(b[12]>>4) * 4
	if head < 20 || head > len(b) {
		return s, false
	}
	s.key = flowKey{
		netip.AddrPortFrom(src, binary.BigEndian.Uint16(b)),
		netip.AddrPortFrom(dst, binary.BigEndian.Uint16(b[2:])),
	}
	s.seq = binary.BigEndian.Uint32(b[4:])
	fl := b[13]
	s.syn, s.ack, s.fin, s.rst = fl&flagSYN != 0, fl&flagACK != 0, fl&flagFIN != 0, fl&flagRST != 0
	s.data = b[head:]
	return s, true
}
