package agent

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/sys"
)

// Files are looked up with the rights of the target's main process, as the program would look them up
// in the pod: its file system ids and groups, and its capabilities that override modes.

// overriding are the capabilities that let read what the mode forbids. To look up and to read, which is
// all that is done here, they are the same: the target may have the one and we the other.
const overriding = 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_DAC_READ_SEARCH

// identity is what the kernel decides about files by, as this process's user namespace names it.
type identity struct {
	uid, gid int
	groups   []uint32
	reads    bool // has one of overriding
	// uids and gids are those over which the capabilities hold, where the process is in another user
	// namespace; its capabilities are none elsewhere.
	uids, gids []idRange
	foreign    bool

	proven atomic.Bool // to be become, and to be left again
}

// idRange is one of ids as this user namespace names them.
type idRange struct{ first, count uint64 }

func contains(all []idRange, id uint32) bool {
	return slices.ContainsFunc(all, func(r idRange) bool { return uint64(id) >= r.first && uint64(id)-r.first < r.count })
}

// owns says whether the capabilities hold for the file fd.
func (i *identity) owns(fd int) bool {
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && contains(i.uids, st.Uid) && contains(i.gids, st.Gid)
}

func (i *identity) equal(o *identity) bool {
	return i.uid == o.uid && i.gid == o.gid && slices.Equal(i.groups, o.groups) && i.reads == o.reads
}

// identityOf reads that of a process; "thread-self" is the calling thread's.
func identityOf(pid string) (*identity, error) {
	b, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		return nil, err
	}
	i := &identity{groups: []uint32{}}
	for _, line := range strings.Split(string(b), "\n") {
		key, value, _ := strings.Cut(line, ":")
		f := strings.Fields(value)
		switch key {
		case "Uid", "Gid": // real, effective, saved, file system
			if len(f) != 4 {
				return nil, fmt.Errorf("%s of process %s: %q", key, pid, value)
			}
			n, err := strconv.Atoi(f[3])
			if err != nil {
				return nil, err
			}
			if key == "Uid" {
				i.uid = n
			} else {
				i.gid = n
			}
		case "Groups":
			for _, g := range f {
				n, _ := strconv.ParseUint(g, 10, 32)
				i.groups = append(i.groups, uint32(n))
			}
		case "CapEff":
			if len(f) == 1 {
				caps, _ := strconv.ParseUint(f[0], 16, 64)
				i.reads = caps&overriding != 0
			}
		}
	}
	return i, nil
}

// idMap reads the ids of a user namespace; they are told as ours.
func idMap(name string) (out []idRange) {
	b, _ := os.ReadFile(name)
	for _, line := range strings.Split(string(b), "\n") {
		var inside uint64
		var r idRange
		if n, _ := fmt.Sscan(line, &inside, &r.first, &r.count); n == 3 {
			out = append(out, r)
		}
	}
	return out
}

// rights are those of the target as they are by now: its main process may start as root and become
// somebody else.
type rights struct {
	pid int

	mu     sync.Mutex
	read   time.Time
	own    *identity
	ownAll uint64 // our capabilities in force
	as     *identity
	unable bool // we may not become somebody else
}

// rightsAge is how long they are believed.
const rightsAge = time.Second

// now returns whom to become, nil for nobody.
func (r *rights) now() *identity {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.unable || time.Since(r.read) < rightsAge {
		return r.as
	}
	r.read = time.Now()
	if r.own == nil {
		var err error
		if r.own, err = identityOf("thread-self"); err == nil {
			r.ownAll, _, err = sys.Capabilities()
		}
		if err != nil {
			r.unable = true
			return nil
		}
	}
	id, err := identityOf(strconv.Itoa(r.pid))
	if err != nil { // it has ended: who it was still holds
		return r.as
	}
	if r.pid != os.Getpid() && sys.OtherUser(r.pid) {
		if id.foreign = id.reads; id.foreign {
			id.uids, id.gids = idMap(fmt.Sprintf("/proc/%d/uid_map", r.pid)), idMap(fmt.Sprintf("/proc/%d/gid_map", r.pid))
		}
		id.reads = false // here
	}
	if r.as != nil && id.equal(r.as) && id.foreign == r.as.foreign {
		return r.as
	}
	r.as = id
	if id.equal(r.own) && !id.foreign {
		r.as = nil
	}
	return r.as
}

// run runs f with the target's rights. Where its capabilities are of another user namespace, which a
// process with threads cannot join, f runs once more with ours when it was refused: by then tells for
// which files they hold.
func (r *rights) run(f func(by *identity) error) (err error) {
	id := r.now()
	if id == nil {
		return f(nil)
	}
	if !r.become(id, func() { err = f(nil) }) {
		return f(nil) // we are somebody who has no more rights than the target
	}
	if err == unix.EACCES && id.foreign && f(id) == nil {
		return nil
	}
	return err
}

// become runs f as id. false: it may not be become.
func (r *rights) become(id *identity, f func()) bool {
	runtime.LockOSThread()
	groups, own := id.groups, r.own.groups
	if slices.Equal(groups, own) {
		groups, own = nil, nil // a user namespace may forbid to set even these
	}
	set := sys.SetFileIDs
	if id.proven.Load() {
		set = sys.SwitchFileIDs
	}
	ok := set(id.uid, id.gid, groups)
	dressed := false
	if ok && (id.uid == 0 || id.reads) { // a user id other than 0 has put them out of force
		caps := r.ownAll
		if !id.reads {
			caps &^= overriding
		}
		dressed = sys.SetEffective(caps) == nil
	}
	if ok {
		f()
	}
	back := set(r.own.uid, r.own.gid, own)
	if dressed || !ok {
		back = sys.SetEffective(r.ownAll) == nil && back
	}
	if back {
		id.proven.Store(ok)
		runtime.UnlockOSThread()
	} // else the thread ends with its goroutine
	if !ok {
		r.mu.Lock()
		r.unable, r.as = true, nil
		r.mu.Unlock()
	}
	return ok
}
