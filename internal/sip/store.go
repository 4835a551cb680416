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
)

// store keeps copies under a directory of the user's, mode 0700:
//
//	v1/KEY/ORIGINAL   a copy: its original's absolute path below the key of what is in it
//	v1/.tmp/KEY       the one that is being written
//	v1/.lock/KEY      locked (flock) by whoever writes or removes v1/KEY
//
// A copy appears under its name by rename, complete and synced. The kernel drops the lock of a
// process that dies, and the next that has it writes over what was left.
type store struct{ dir string }

// What Clean goes by unless told otherwise.
const (
	DefaultMaxAge  = 30 * 24 * time.Hour
	DefaultMaxSize = 4 << 30
	// A copy is not removed for its size so soon after its last use: its path may have been
	// handed out and not executed yet.
	grace = 10 * time.Minute
	// How old the note of a copy's last use may be.
	useNoted = time.Hour
)

func (s *store) version() string { return filepath.Join(s.dir, fmt.Sprintf("v%d", Version)) }
func (s *store) tmp(key string) string {
	return filepath.Join(s.version(), ".tmp", key)
}

// prepare makes the directories, and takes from others the right to look into them.
func (s *store) prepare() error {
	for _, d := range []string{filepath.Dir(s.tmp("x")), filepath.Join(s.version(), ".lock")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	info, err := os.Lstat(s.dir)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s: not a directory", s.dir)
	}
	if info.Mode().Perm() != 0o700 {
		// Fails where the directory is another user's, as it must.
		return os.Chmod(s.dir, 0o700)
	}
	return nil
}

// get returns the path of the copy of original under key, made by write if it is not there. Of
// any number of processes one writes, the others wait for it.
func (s *store) get(ctx context.Context, key, original string, mode os.FileMode, write func(*os.File) error) (path string, hit bool, err error) {
	entry := filepath.Join(s.version(), key)
	path = filepath.Join(entry, original)
	if s.there(entry, path) {
		return path, true, nil
	}
	if err := s.prepare(); err != nil {
		return "", false, fmt.Errorf("cache of patched copies: %w", err)
	}
	unlock, err := s.lock(ctx, key, true)
	if err != nil {
		return "", false, fmt.Errorf("cache of patched copies: lock %s: %w", key, err)
	}
	defer unlock()
	if s.there(entry, path) {
		return path, true, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", false, fmt.Errorf("cache of patched copies: %w", err)
	}
	return path, false, writeAtomic(s.tmp(key), path, mode, write)
}

// there tells whether a copy is there, and notes that it is in use.
func (s *store) there(entry, path string) bool {
	if info, err := os.Lstat(path); err != nil || !info.Mode().IsRegular() {
		return false
	}
	if info, err := os.Stat(entry); err == nil && time.Since(info.ModTime()) > useNoted {
		now := time.Now()
		os.Chtimes(entry, now, now) // only decides which copy is removed first
	}
	return true
}

// writeAtomic writes a file under a temporary name in the same file system, and gives it its name
// when it is complete and on the disk.
func writeAtomic(tmp, path string, mode os.FileMode, write func(*os.File) error) (err error) {
	defer func() {
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
			err = fault.With(err, "stead sip clean --all, or make room on the disk")
		}
	}()
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

// lock takes the lock of a key. Without wait it returns errLocked where another has it.
func (s *store) lock(ctx context.Context, key string, wait bool) (unlock func(), err error) {
	name := filepath.Join(s.version(), ".lock", key)
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			// The file may have been removed, by one that had the lock, before we got it.
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
			if goes, err = s.remove(ctx, e.key); err != nil {
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

// remove takes a copy away at once, by rename, then deletes it.
func (s *store) remove(ctx context.Context, key string) (done bool, err error) {
	unlock, err := s.lock(ctx, key, false)
	if errors.Is(err, errLocked) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer unlock()
	dead := s.tmp(key + ".dead")
	if err := os.Rename(filepath.Join(s.version(), key), dead); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if err := os.RemoveAll(dead); err != nil {
		return false, err
	}
	return true, os.Remove(filepath.Join(s.version(), ".lock", key))
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
			unlock, err := s.lock(ctx, key, false)
			if errors.Is(err, errLocked) {
				continue
			}
			if err != nil {
				return err
			}
			err = errors.Join(os.RemoveAll(filepath.Join(s.version(), ".tmp", f.Name())), os.Remove(filepath.Join(s.version(), ".lock", key)))
			unlock()
			if err != nil {
				return err
			}
		}
	}
	return nil
}
