package outgoing

import (
	"testing"
	"time"
)

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
