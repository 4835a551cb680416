package agent

import (
	"encoding/binary"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ipv4 is a packet of a client's, without data.
func ipv4(port uint16, flags byte) []byte {
	b := make([]byte, 40)
	b[0], b[9], b[32], b[33] = 0x45, unix.IPPROTO_TCP, 0x50, flags
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	binary.BigEndian.PutUint16(b[20:], port)
	binary.BigEndian.PutUint16(b[22:], 80)
	return b
}

// Each packet is followed by the next before it is done with.
func TestATapEndsWhileItHasAlwaysSomethingToRead(t *testing.T) {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(ends[1])
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	n := uint16(0)
	client := func() {
		n++
		for _, flags := range []byte{flagSYN, flagACK, flagRST} {
			unix.Write(ends[1], ipv4(n, flags))
		}
	}
	busy := make(chan struct{}, 1)
	p := &tap{fd: ends[0], wake: wake, lost: func(uint32) {}, done: make(chan struct{}), ports: map[uint16]bool{80: true}}
	p.found = func(*flow) {
		client()
		select {
		case busy <- struct{}{}:
		default:
		}
	}
	p.asm = *newAssembler()
	client()
	go p.run()
	<-busy
	ended := make(chan struct{})
	go func() { defer close(ended); p.close() }()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("it goes on")
	}
}

// The filter runs in the kernel, on another socket that takes one.
func TestTheTapsFilterPassesWhatSaysSomething(t *testing.T) {
	head := func(ipv6 bool, port uint16, flags byte, options, data int) []byte {
		at := 20
		if ipv6 {
			at = 40
		}
		b := make([]byte, at+20+options+data, at+20+options+data+6)
		if ipv6 {
			b[0], b[6] = 0x60, unix.IPPROTO_TCP
			binary.BigEndian.PutUint16(b[4:], uint16(len(b)-at))
		} else {
			b[0], b[9] = 0x45, unix.IPPROTO_TCP
			binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		}
		binary.BigEndian.PutUint16(b[at+2:], port)
		b[at+12], b[at+13] = byte(20+options)<<2, flags
		return b
	}
	big := func(b []byte, at int) []byte { // longer than the field can say
		b[at], b[at+1] = 0, 0
		return b
	}
	for _, c := range []struct {
		name         string
		packet       []byte
		passes, full bool // without and with empty segments
	}{
		{"data", head(false, 80, flagACK, 12, 5), true, true},
		{"one byte", head(false, 443, flagACK, 0, 1), true, true},
		{"nothing", head(false, 80, flagACK, 12, 0), false, true},
		{"nothing, padded", append(head(false, 80, flagACK, 0, 0), 0, 0, 0, 0, 0, 0), false, true},
		{"SYN", head(false, 80, flagSYN, 20, 0), true, true},
		{"FIN", head(false, 80, flagFIN|flagACK, 12, 0), true, true},
		{"RST", head(false, 80, flagRST, 0, 0), true, true},
		{"big", big(head(false, 80, flagACK, 0, 9), 2), true, true},
		{"another port", head(false, 81, flagACK, 0, 5), false, false},
		{"IPv6, data", head(true, 80, flagACK, 12, 5), true, true},
		{"IPv6, one byte", head(true, 443, flagACK, 40, 1), true, true},
		{"IPv6, nothing", head(true, 80, flagACK, 12, 0), false, true},
		{"IPv6, SYN", head(true, 80, flagSYN, 20, 0), true, true},
		{"IPv6, FIN", head(true, 80, flagFIN|flagACK, 12, 0), true, true},
		{"IPv6, RST", head(true, 80, flagRST, 0, 0), true, true},
		{"IPv6, big", big(head(true, 80, flagACK, 0, 9), 4), true, true},
		{"IPv6, another port", head(true, 81, flagACK, 0, 5), false, false},
		{"no TCP", append([]byte{0x45, 9: unix.IPPROTO_UDP}, make([]byte, 30)...), false, false},
		{"no IP", make([]byte, 60), false, false},
		{"nearly nothing", []byte{0x45}, false, false},
	} {
		for _, empty := range []bool{false, true} {
			ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
			if err != nil {
				t.Fatal(err)
			}
			prog := tapProgram([]uint16{443, 80}, empty)
			if err := unix.SetsockoptSockFprog(ends[1], unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}); err != nil {
				t.Fatal(err)
			}
			_, _ = unix.Write(ends[0], c.packet)
			n, _ := unix.Read(ends[1], make([]byte, 1000))
			want := c.passes
			if empty {
				want = c.full
			}
			if got := n == len(c.packet); got != want {
				t.Errorf("%s, with empty ones %v: passes %v, want %v", c.name, empty, got, want)
			}
			unix.Close(ends[0])
			unix.Close(ends[1])
		}
	}
}
