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
