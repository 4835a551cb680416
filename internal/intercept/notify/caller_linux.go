package notify

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/sys"
)

// With whose rights the tree and this machine's files are looked at: with the calling thread's. It may
// have other ids than we only below root (others have no_new_privs); then the looking thread of ours
// takes them for as long as it looks.

// identity is what the kernel asks for when it decides about a file.
type identity struct {
	uid, gid int
	groups   string
}

// identityOf is thread tid's; real: by its real ids, as access(2) asks.
func identityOf(tid int, real bool) (id identity, errno unix.Errno) {
	st, errno := status(tid, "Uid", "Gid", "Groups")
	if errno != 0 {
		return id, errno
	}
	for i, to := range []*int{&id.uid, &id.gid} {
		f := strings.Fields(st[i]) // real, effective, saved, file system
		if len(f) != 4 {
			return id, unix.EACCES
		}
		which := 3
		if real {
			which = 0
		}
		*to, _ = strconv.Atoi(f[which])
	}
	id.groups = strings.TrimSpace(st[2])
	return id, 0
}

// asCaller runs f with the rights of thread tid, where we are root: its file system ids, or its real ones.
func asCaller(tid int, real bool, f func() result) result {
	own := identity{uid: os.Geteuid(), gid: os.Getegid()}
	if own.uid != 0 {
		return f() // see mayAct
	}
	id, errno := identityOf(tid, real)
	if errno != 0 {
		return fails(errno)
	}
	if id.uid == own.uid && id.gid == own.gid { // as root, other groups change nothing
		return f()
	}
	groups, err := os.Getgroups()
	if err != nil {
		return fails(unix.EACCES)
	}
	own.groups = strings.Trim(fmt.Sprint(groups), "[]")
	runtime.LockOSThread()
	defer func() {
		if become(own) {
			runtime.UnlockOSThread()
		} // else the thread ends with its goroutine
	}()
	if !become(id) {
		return fails(unix.EACCES)
	}
	return f()
}

// mayAct refuses a thread of somebody else's where we cannot act with its rights.
func mayAct(tid int) unix.Errno {
	if os.Geteuid() == 0 {
		return 0
	}
	id, errno := identityOf(tid, false)
	if errno == 0 && (id.uid != os.Geteuid() || id.gid != os.Getegid()) {
		return unix.EACCES
	}
	return errno
}

// become gives the calling thread, which is locked, the ids that files are decided by.
func become(id identity) bool {
	groups := []uint32{}
	for _, g := range strings.Fields(id.groups) {
		n, _ := strconv.ParseUint(g, 10, 32)
		groups = append(groups, uint32(n))
	}
	return sys.SetFileIDs(id.uid, id.gid, groups)
}
