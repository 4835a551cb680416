package outgoing

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/intercept"
)

// A ping socket is a datagram socket, too. Sent to a relay on the loopback its echo came back from there.
func TestDatagramsThatAreNotUDPStayOnTheLaptop(t *testing.T) {
	said := 0
	r := &Room{c: Config{Trouble: func(error) { said++ }}}
	s := &intercept.Socket{FD: -1, Family: unix.AF_INET, Type: unix.SOCK_DGRAM, Protocol: unix.IPPROTO_ICMP}
	to := netip.MustParseAddrPort("10.9.9.9:0")
	if o := r.Connect(s, to); !o.Continue {
		t.Errorf("connect: %+v", o)
	}
	if o := r.SendTo(s, to, intercept.Datagram{Payload: []byte("echo")}); !o.Continue {
		t.Errorf("sendto: %+v", o)
	}
	if said != 2 {
		t.Errorf("told %d times", said)
	}
}

// The kernel's table is read while the program goes on, and lacks a socket that is not bound yet.
func TestAnAssociationThatIsYoungerThanTheKernelsTableStays(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		name  string
		since time.Time
		live  map[uint64]bool
		there bool
	}{
		{"came later", now.Add(time.Second), nil, true},
		{"not bound yet", now.Add(-time.Millisecond), nil, true},
		{"open", now.Add(-time.Hour), map[uint64]bool{7: true}, true},
		{"closed", now.Add(-time.Hour), map[uint64]bool{8: true}, false},
	} {
		u := udpTable{byCookie: make(map[uint64]*association)}
		u.addLocked(&association{cookie: 1, inode: 7, since: c.since, stop: func() {}})
		u.giveBack(now, c.live)
		if _, there := u.byCookie[1]; there != c.there || (u.any.Load() == 1) != c.there {
			t.Errorf("%s: there %v, want %v", c.name, there, c.there)
		}
	}
}
