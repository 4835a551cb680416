// Package mountns makes the mount namespace in which the program's path calls need no interceptor:
// the pod's files, a FUSE file system that the session serves, are the root, and the trees that
// stay on the laptop are bound over it.
//
// Enter runs on a locked thread that has a mount namespace of its own, before the seccomp filter.
// Everything it mounts is private to that and is gone with the last process in it; nothing is made on
// the laptop's own file systems.
//
// The device must be opened inside the user namespace that mounts it: the kernel refuses one
// opened in another (EINVAL).
package mountns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Plan says what the namespace shows. It is passed to the guard as gob, whose strings may be of any bytes, as paths are.
type Plan struct {
	Binds   []Bind
	WorkDir string
	UID     int
	GID     int
}

// Bind lays a tree over the pod's: the laptop's at Path, or, where Pod is set, the pod's own at a
// path below one of the laptop's. Parents come before children; each Path exists in the pod's tree
// (the session's overlay sees to that) and has no symbolic link in it.
type Bind struct {
	Path string
	Pod  bool
}

// Unavailable is the failure to enter: this machine gives no such namespace here.
type Unavailable struct {
	Step string
	Err  error
}

func (e *Unavailable) Error() string { return fmt.Sprintf("%s: %v", e.Step, e.Err) }
func (e *Unavailable) Unwrap() error { return e.Err }

// mountPoints are where the pod's tree is mounted while it is furnished; whichever is there.
var mountPoints = []string{"/mnt", "/tmp", "/var", "/home", "/usr"}

// Enter makes the pod's tree the root of this process. announce hands the FUSE device to the
// session and returns when it is being served.
func Enter(p *Plan, announce func(fuse int) error) error {
	step := func(what string, err error) error { return &Unavailable{what, err} }
	// Nothing of ours reaches the laptop's own mount table; what is mounted there still comes here.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return step("make mounts private", err)
	}
	at := ""
	for _, m := range mountPoints {
		if st, err := os.Lstat(m); err == nil && st.IsDir() {
			at = m
			break
		}
	}
	if at == "" {
		return step("find a directory to mount on", unix.ENOENT)
	}
	// The sources are opened before anything is mounted over them.
	sources := make([]int, len(p.Binds))
	for i, b := range p.Binds {
		sources[i] = -1
		if b.Pod {
			continue
		}
		fd, err := unix.Open(b.Path, unix.O_PATH|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		if err != nil {
			return step("open "+b.Path, err)
		}
		defer unix.Close(fd)
		sources[i] = fd
	}
	fuse, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return step("open /dev/fuse", err)
	}
	if err := mountFUSE(fuse, at, p); err != nil {
		return step("mount the pod's files", err)
	}
	if err := announce(fuse); err != nil {
		return err
	}
	unix.Close(fuse)
	prefetch(at, p.Binds)
	for i, b := range p.Binds {
		if !b.Pod {
			continue
		}
		fd, err := unix.Open(at+b.Path, unix.O_PATH|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		if err != nil {
			return step("open "+b.Path+" of the pod", err)
		}
		defer unix.Close(fd)
		sources[i] = fd
	}
	for i, b := range p.Binds {
		from := fmt.Sprintf("/proc/self/fd/%d", sources[i])
		if err := unix.Mount(from, at+b.Path, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return step("bind "+b.Path, err)
		}
	}
	if err := pivot(at); err != nil {
		return step("change root", err)
	}
	if err := unix.Chdir(p.WorkDir); err != nil {
		return fmt.Errorf("working directory %s: %w", p.WorkDir, err)
	}
	return nil
}

// prefetch lists the directories in which several trees are bound: as long as the tree is furnished
// that is those names alone. The kernel takes them along (READDIRPLUS), which saves asking the session
// for each of them.
func prefetch(at string, binds []Bind) {
	count := map[string]int{}
	for _, b := range binds {
		count[filepath.Dir(b.Path)]++
	}
	for dir, n := range count {
		if n > 1 {
			_, _ = os.ReadDir(at + dir) // what fails here, fails again where it matters
		}
	}
}

func mountFUSE(fd int, at string, p *Plan) error {
	options := []string{
		fmt.Sprintf("fd=%d", fd), "rootmode=40000",
		fmt.Sprintf("user_id=%d", p.UID), fmt.Sprintf("group_id=%d", p.GID),
		// Processes of the program may have other ids; the mode bits decide for them.
		"allow_other", "default_permissions",
		"max_read=1048576",
	}
	return unix.Mount("stead", at, "fuse.stead", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOATIME, strings.Join(options, ","))
}

// pivot makes the tree mounted at dir the root and lets go of the old one.
func pivot(dir string) error {
	if err := unix.Chdir(dir); err != nil {
		return err
	}
	err := unix.PivotRoot(".", ".")
	if err == nil {
		// Both are stacked on "." now, the old one on top.
		if err = unix.Unmount(".", unix.MNT_DETACH); err == nil {
			err = unix.Chdir("/")
		}
		return err
	}
	if !errors.Is(err, unix.EINVAL) {
		return err
	}
	// The initial ramdisk cannot be pivoted away.
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return err
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return unix.Chdir("/")
}
