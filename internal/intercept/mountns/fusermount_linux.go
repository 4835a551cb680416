package mountns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ByFusermount is Detached for users who may make no namespace: with fusermount3, the setuid
// program that FUSE's own package installs. It mounts at a directory only, so the tree is for some
// milliseconds at one in the user's cache, and taken off there before anybody is served. Should we be
// killed meanwhile, the device closes, and the fusermount3 that was asked for auto_unmount sees that
// the mount is dead and takes it off.
func ByFusermount() (fuse, root int, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), fusermountTime)
	defer cancel()
	program, err := exec.LookPath("fusermount3")
	if err != nil {
		return -1, -1, &Unavailable{"find fusermount3", err}
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return -1, -1, err
	}
	dir := filepath.Join(cache, "stead", "mnt")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return -1, -1, err
	}
	unlock, err := lockFile(ctx, dir+".lock")
	if err != nil {
		return -1, -1, err
	}
	defer unlock()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, -1, err
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "fusermount"), os.NewFile(uintptr(fds[1]), "fusermount's")
	var said strings.Builder
	c := exec.CommandContext(ctx, program, "-o", "fsname=stead,subtype=stead,nosuid,nodev,noatime,default_permissions,max_read=1048576,auto_unmount", "--", dir)
	c.Env = append(os.Environ(), "_FUSE_COMMFD=3")
	c.ExtraFiles = []*os.File{theirs}
	c.Stderr = &said
	c.WaitDelay = time.Second
	err = c.Start()
	theirs.Close()
	if err != nil {
		ours.Close()
		return -1, -1, &Unavailable{"fusermount3", err}
	}
	fuse, root = -1, -1
	if fuse, err = receiveFD(ours); err == nil {
		root, err = unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	}
	if fuse >= 0 {
		uerr := exec.CommandContext(ctx, program, "-u", "-z", "-q", "--", dir).Run()
		if err == nil && uerr != nil {
			unix.Close(root)
			err = fmt.Errorf("unmount: %w", uerr)
		}
	}
	ours.Close() // now it ends
	_ = c.Wait() // without an unmounting: there is nothing left to unmount
	if err != nil {
		if fuse >= 0 {
			unix.Close(fuse)
		}
		return -1, -1, &Unavailable{"fusermount3", errors.Join(errors.New(strings.TrimSpace(said.String())), err)}
	}
	return fuse, root, nil
}

const fusermountTime = 10 * time.Second

// receiveFD takes the one descriptor that fusermount3 sends.
func receiveFD(from *os.File) (int, error) {
	b, oob := make([]byte, 16), make([]byte, unix.CmsgSpace(4))
	_, oobn, _, _, err := unix.Recvmsg(int(from.Fd()), b, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, err
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(msgs) == 0 {
		return -1, errors.Join(errors.New("it mounted nothing"), err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return -1, errors.Join(errors.New("it sent no device"), err)
	}
	return fds[0], nil
}

// lockFile takes an exclusive lock that ends with the process.
func lockFile(ctx context.Context, name string) (unlock func(), err error) {
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	for {
		err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { unix.Close(fd) }, nil
		}
		select {
		case <-ctx.Done():
			unix.Close(fd)
			return nil, fmt.Errorf("lock %s: %w", name, err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}
