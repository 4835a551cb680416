package launch

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/intercept/mountns"
)

// Place is an empty directory for files of the session's that vanish with it. Best is a file system in
// memory that has no place in any namespace: nobody finds it, and whatever dies, the kernel drops it
// with its last descriptor. Where none can be made it is a directory, which the session removes, the
// guard when the session is killed, and when both are, the next session that needs one.
type Place struct {
	Root int    // descriptor
	dir  string // "" where it has no name
	lock int
}

// Place makes one for this process's session.
func (p *Process) Place() (*Place, error) {
	root, err := memory()
	if err == nil {
		return &Place{Root: root, lock: -1}, nil
	}
	for _, base := range choosePlaces(lookAtPlaces()) {
		sweep(base)
		pl, perr := p.directory(base)
		if perr == nil {
			return pl, nil
		}
		err = errors.Join(err, perr)
	}
	return nil, err
}

// memory makes the nameless one.
func memory() (root int, err error) {
	if Admin() {
		return mountns.Memory()
	}
	uid, gid := os.Getuid(), os.Getgid()
	maps := [][2]syscall.SysProcIDMap{{{ContainerID: uid, HostID: uid, Size: 1}, {ContainerID: gid, HostID: gid, Size: 1}}}
	if uid == 0 { // may be allowed to give its files to any user
		all := syscall.SysProcIDMap{Size: 1<<32 - 1}
		maps = append([][2]syscall.SysProcIDMap{{all, all}}, maps...)
	}
	for _, m := range maps {
		var fds []int
		if fds, err = byMounter("memory", 1, m[0], m[1]); err == nil {
			return fds[0], nil
		}
	}
	return -1, err
}

// base is a directory of this machine's in which a place could be.
type base struct {
	dir    string
	memory bool // a file system in memory
	exec   bool // its files may be executed
	free   uint64
}

// enough is the room that a base should have.
const enough = 256 << 20

// choosePlaces orders bases: secrets are better in memory than on a disk, but not where there is no
// room for them. Of two like ones the earlier is taken.
func choosePlaces(all []base) (dirs []string) {
	for _, good := range []func(b base) bool{
		func(b base) bool { return b.memory && b.exec && b.free >= enough },
		func(b base) bool { return b.memory && !b.exec && b.free >= enough },
		func(b base) bool { return !b.memory && b.free >= enough },
		func(b base) bool { return b.free < enough },
	} {
		for _, b := range all {
			if good(b) {
				dirs = append(dirs, b.dir)
			}
		}
	}
	return dirs
}

func lookAtPlaces() (all []base) {
	for _, dir := range []string{"/dev/shm", os.Getenv("XDG_RUNTIME_DIR"), os.TempDir()} {
		var st unix.Statfs_t
		if !filepath.IsAbs(dir) || unix.Statfs(dir, &st) != nil || unix.Access(dir, unix.W_OK|unix.X_OK) != nil {
			continue
		}
		all = append(all, base{dir, st.Type == unix.TMPFS_MAGIC, st.Flags&unix.ST_NOEXEC == 0, st.Bavail * uint64(st.Bsize)})
	}
	return all
}

// places are named by their user and something that nobody guesses.
func placePrefix() string { return "stead-files-" + strconv.Itoa(os.Getuid()) + "-" }

// directory makes a place in base. The guard knows of it before it is there.
func (p *Process) directory(base string) (*Place, error) {
	for range 10 {
		pl := &Place{dir: filepath.Join(base, placePrefix()+rand.Text()), Root: -1, lock: -1}
		if _, err := p.ctl.Write([]byte(pl.dir)); err != nil {
			return nil, fmt.Errorf("tell the guard of %s: %w", pl.dir, err)
		}
		err := os.Mkdir(pl.dir, 0o700)
		if err != nil {
			return nil, err
		}
		if pl.lock, err = lockPlace(pl.dir); err != nil {
			continue // swept by another session before it was locked
		}
		inner := filepath.Join(pl.dir, "root")
		if err = os.Mkdir(inner, 0o700); err == nil {
			pl.Root, err = unix.Open(inner, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		}
		if err != nil {
			pl.Close()
			return nil, fmt.Errorf("open %s: %w", inner, err)
		}
		return pl, nil
	}
	return nil, fmt.Errorf("make a directory in %s: %w", base, fs.ErrExist)
}

// Close gives the place back.
func (pl *Place) Close() {
	if pl.Root >= 0 {
		unix.Close(pl.Root)
	}
	if pl.dir != "" {
		removePlace(pl.dir)
	}
	if pl.lock >= 0 {
		unix.Close(pl.lock)
	}
}

// lockPlace locks a place for as long as the descriptor is open; it fails when the place is another's
// or gone.
func lockPlace(dir string) (int, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return -1, err
	}
	var held, named unix.Stat_t
	if err = unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err == nil {
		if err = unix.Fstat(fd, &held); err == nil {
			err = unix.Lstat(dir, &named)
		}
		if err == nil && held.Ino != named.Ino {
			err = unix.ENOENT
		}
		if err == nil && held.Uid != uint32(os.Getuid()) {
			err = unix.EPERM
		}
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// sweep removes what sessions of this user's left in base of which session and guard were killed.
func sweep(base string) {
	entries, _ := os.ReadDir(base)
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), placePrefix()) || !e.IsDir() {
			continue
		}
		dir := filepath.Join(base, e.Name())
		if fd, err := lockPlace(dir); err == nil {
			removePlace(dir)
			unix.Close(fd)
		}
	}
}

// removePlace removes a place and what is in it, whatever the modes of its directories.
func removePlace(dir string) {
	_ = filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if d != nil && d.IsDir() && err == nil {
			_ = os.Chmod(name, 0o700) // before it is read
		}
		return nil
	})
	_ = os.RemoveAll(dir)
}
