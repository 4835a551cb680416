package sip

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/fault"
	"github.com/stead-dev/stead/internal/sip/mapped"
)

// store keeps copies under a directory of the user's, in one of mode 0700:
//
//	v1/KEY/ORIGINAL   a copy: its original's absolute path below the key of what is in it
//	v1/.tmp/KEY       the one that is being written
//	v1/.lock/KEY      locked (flock) by whoever writes or removes v1/KEY
//
// A copy appears under its name by rename, complete and synced. The kernel drops the lock of a
// process that dies, and the next that has it writes over what was left. The time of v1/KEY is
// that of its last use.
type store struct{ dir string }

// What Clean goes by unless told otherwise.
const (
	DefaultMaxAge  = 30 * 24 * time.Hour
	DefaultMaxSize = 4 << 30
	// A copy is not removed for its size so soon after its last use: its path may have been
	// handed out and not executed yet.
	grace = 10 * time.Minute
	// How old the note of a copy's last use may be. Much less than grace: who finds an older note
	// writes a new one with the lock that a remover needs too.
	useNoted = time.Minute
)

func (s *store) version() string { return filepath.Join(s.dir, fmt.Sprintf("v%d", Version)) }
func (s *store) tmp(key string) string {
	return filepath.Join(s.version(), ".tmp", key)
}
func (s *store) lockName(key string) string {
	return filepath.Join(s.version(), ".lock", key)
}

// prepare makes the directories, and takes from others the right to look into them.
func (s *store) prepare() error {
	for _, d := range []string{filepath.Dir(s.tmp("x")), filepath.Dir(s.lockName("x"))} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	// The directory above may be one that the user has for other things too.
	info, err := os.Lstat(s.version())
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s: not a directory", s.version())
	}
	if info.Mode().Perm() != 0o700 {
		// Fails where the directory is another user's, as it must.
		return os.Chmod(s.version(), 0o700)
	}
	return nil
}

// get returns the path of the copy of original under key, made by write if it is not there. Of
// any number of processes one writes, the others wait for it.
func (s *store) get(ctx context.Context, key, original string, mode os.FileMode, write func(*os.File) error) (path string, hit bool, err error) {
	defer func() { err = noRoom(err) }()
	entry := filepath.Join(s.version(), key)
	path = filepath.Join(entry, original)
	if info, err := os.Stat(entry); err == nil && time.Since(info.ModTime()) < useNoted && there(path) {
		return path, true, nil
	}
	if err := s.prepare(); err != nil {
		return "", false, fmt.Errorf("cache of patched copies: %w", err)
	}
	unlock, err := lock(ctx, s.lockName(key), true)
	if err != nil {
		return "", false, fmt.Errorf("cache of patched copies: lock %s: %w", key, err)
	}
	defer unlock()
	if hit = there(path); !hit {
		if err := writeAtomic(s.tmp(key), path, mode, write); err != nil {
			// Directories of which nothing came.
			for d := filepath.Dir(path); d != s.version() && os.Remove(d) == nil; d = filepath.Dir(d) {
			}
			return "", false, err
		}
	}
	now := time.Now()
	if err := os.Chtimes(entry, now, now); err != nil {
		return "", false, fmt.Errorf("cache of patched copies: %w", err)
	}
	return path, hit, nil
}

func there(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.Mode().IsRegular()
}

// noRoom adds advice to the error of a full disk.
func noRoom(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fault.With(err, "make room on the disk; stead sip clean --all removes all patched copies")
	}
	return err
}

// writeAtomic writes a file under a temporary name in the same file system, and gives it its name
// when it is complete and on the disk. The caller has a lock for tmp.
func writeAtomic(tmp, path string, mode os.FileMode, write func(*os.File) error) (err error) {
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("write copy: %w", err)
	}
	defer func() {
		f.Close()
		if err != nil {
			os.Remove(tmp)
		}
	}()
	if err := write(f); err != nil {
		if errors.Is(err, unix.EFAULT) { // the kernel read a mapped file that has been cut
			err = mapped.ErrChanged
		}
		return fmt.Errorf("write copy %s: %w", path, err)
	}
	if err := f.Chmod(mode); err != nil {
		return fmt.Errorf("write copy: %w", err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("write copy: %w", err)
	}
	// Linux does not execute a file that anyone has open for writing, so not before the rename.
	if err := f.Close(); err != nil {
		return fmt.Errorf("write copy: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("write copy: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("write copy: %w", err)
	}
	if d, err := os.Open(filepath.Dir(path)); err == nil {
		d.Sync() // the rename is not what must survive a crash
		d.Close()
	}
	return nil
}

var errLocked = errors.New("locked by another process")

// lock takes the lock that is a file's, which it makes if it is not there. Without wait it returns
// errLocked where another has it.
func lock(ctx context.Context, name string, wait bool) (unlock func(), err error) {
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		// Not for writing: Linux does not execute a file that anyone has open so, and a file that
		// is its own lock may become a program.
		f, err := os.OpenFile(name, os.O_RDONLY|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			// The file may have been removed or renamed, by one that had the lock, before we got it.
			mine, err1 := f.Stat()
			there, err2 := os.Stat(name)
			if err1 == nil && err2 == nil && os.SameFile(mine, there) {
				return func() { f.Close() }, nil
			}
		}
		f.Close()
		if err != nil && !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, err
		}
		if !wait {
			return nil, errLocked
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(pause):
		}
	}
}

// Limits of Clean. Zero values are the defaults.
type Limits struct {
	MaxAge  time.Duration // copies not used for so long go
	MaxSize int64         // bytes; the longest unused go until the rest is not more
	All     bool          // everything goes
}

// Cleaned is what Clean did.
type Cleaned struct {
	Removed, Kept           int // copies
	RemovedBytes, KeptBytes int64
}

var keyName = regexp.MustCompile(`^[0-9a-f]{32}$`)

type entry struct {
	key  string
	used time.Time
	size int64
}

// Clean removes copies by age and by size, what a killed process left, and copies of other
// versions. Copies that are being written stay.
func (p *Patcher) Clean(ctx context.Context, l Limits) (Cleaned, error) {
	if l.MaxAge == 0 {
		l.MaxAge = DefaultMaxAge
	}
	if l.MaxSize == 0 {
		l.MaxSize = DefaultMaxSize
	}
	c, err := p.store.clean(ctx, l, time.Now())
	if err != nil {
		return c, fmt.Errorf("clean %s: %w", p.store.dir, err)
	}
	return c, nil
}

func (s *store) clean(ctx context.Context, l Limits, now time.Time) (c Cleaned, err error) {
	versions, err := os.ReadDir(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return c, err
	}
	for _, v := range versions {
		// Nothing that we did not make is touched.
		if n, ok := strings.CutPrefix(v.Name(), "v"); ok && v.IsDir() && strings.Trim(n, "0123456789") == "" && v.Name() != filepath.Base(s.version()) {
			if err := os.RemoveAll(filepath.Join(s.dir, v.Name())); err != nil {
				return c, err
			}
		}
	}
	entries, err := s.entries()
	if err != nil {
		return c, err
	}
	var total int64
	for _, e := range entries {
		total += e.size
	}
	slices.SortFunc(entries, func(a, b entry) int { return cmp.Or(a.used.Compare(b.used), strings.Compare(a.key, b.key)) })
	for _, e := range entries {
		age := now.Sub(e.used)
		goes := l.All || age > l.MaxAge || total > l.MaxSize && age > grace
		if goes {
			if goes, err = s.remove(ctx, e, l.All); err != nil {
				return c, err
			}
		}
		if goes {
			total -= e.size
			c.Removed++
			c.RemovedBytes += e.size
		} else {
			c.Kept++
			c.KeptBytes += e.size
		}
	}
	return c, s.sweep(ctx)
}

func (s *store) entries() (out []entry, err error) {
	list, err := os.ReadDir(s.version())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, d := range list {
		info, err := d.Info()
		if err != nil || !d.IsDir() || !keyName.MatchString(d.Name()) {
			continue
		}
		e := entry{key: d.Name(), used: info.ModTime()}
		filepath.WalkDir(filepath.Join(s.version(), d.Name()), func(_ string, x fs.DirEntry, err error) error {
			if err == nil && x.Type().IsRegular() {
				if i, err := x.Info(); err == nil {
					e.size += i.Size()
				}
			}
			return nil // what cannot be read counts as nothing
		})
		out = append(out, e)
	}
	return out, nil
}

// remove takes a copy away at once, by rename, then deletes it; not one that was used since it was
// looked at, unless it is to go in any case.
func (s *store) remove(ctx context.Context, e entry, anyway bool) (done bool, err error) {
	unlock, err := lock(ctx, s.lockName(e.key), false)
	if errors.Is(err, errLocked) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer unlock()
	if info, err := os.Stat(filepath.Join(s.version(), e.key)); err == nil && !anyway && !info.ModTime().Equal(e.used) {
		return false, nil
	}
	dead := s.tmp(e.key + ".dead")
	if err := os.Rename(filepath.Join(s.version(), e.key), dead); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if err := os.RemoveAll(dead); err != nil {
		return false, err
	}
	return true, os.Remove(s.lockName(e.key))
}

// sweep removes what killed processes left: temporary files and locks that nobody holds.
func (s *store) sweep(ctx context.Context) error {
	for _, d := range []string{".tmp", ".lock"} {
		list, err := os.ReadDir(filepath.Join(s.version(), d))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, f := range list {
			key, _, _ := strings.Cut(f.Name(), ".")
			if !keyName.MatchString(key) {
				continue // not ours
			}
			unlock, err := lock(ctx, s.lockName(key), false)
			if errors.Is(err, errLocked) {
				continue
			}
			if err != nil {
				return err
			}
			err = errors.Join(os.RemoveAll(filepath.Join(s.version(), ".tmp", f.Name())), os.Remove(s.lockName(key)))
			unlock()
			if err != nil {
				return err
			}
		}
	}
	return nil
}
