package launch

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/fault"
	"github.com/stead-dev/stead/internal/intercept/mountns"
)

// DetachedTree makes the pod's tree without a place in any namespace (mountns.Detached): by
// ourselves where we have the right, else by a helper that makes a user namespace, mounts there,
// hands over what it has and ends; or where that is forbidden, by fusermount3.
func DetachedTree() (fuse, root int, err error) {
	if Admin() {
		return mountns.Detached(os.Getuid(), os.Getgid(), true)
	}
	fuse, root, err = treeByMounter()
	var un *mountns.Unavailable
	if !errors.As(err, &un) {
		return fuse, root, err
	}
	fuse, root, ferr := mountns.ByFusermount()
	if ferr != nil {
		return -1, -1, errors.Join(err, ferr)
	}
	return fuse, root, nil
}

func treeByMounter() (fuse, root int, err error) {
	fds, err := byMounter("fuse", 2, syscall.SysProcIDMap{ContainerID: os.Getuid(), HostID: os.Getuid(), Size: 1},
		syscall.SysProcIDMap{ContainerID: os.Getgid(), HostID: os.Getgid(), Size: 1})
	if err != nil {
		return -1, -1, err
	}
	return fds[0], fds[1], nil
}

// byMounter lets a helper in a user namespace with these ids mount what, and takes its descriptors.
func byMounter(what string, count int, uids, gids syscall.SysProcIDMap) (fds []int, err error) {
	ours, theirs, err := socketpair("mounter")
	if err != nil {
		return nil, err
	}
	defer ours.Close()
	pid, err := spawn(wordMounter, &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{uids},
		GidMappings: []syscall.SysProcIDMap{gids},
		AmbientCaps: []uintptr{unix.CAP_SYS_ADMIN},
	}, int(theirs.Fd()))
	theirs.Close()
	if err != nil {
		return nil, &mountns.Unavailable{Step: "make namespaces", Err: err}
	}
	_, _ = ours.Write([]byte(what)) // one that is gone does not answer either
	defer func() {
		unix.Kill(pid, unix.SIGKILL) // it has said all that it had to say
		var ws unix.WaitStatus
		for {
			if _, err := unix.Wait4(pid, &ws, 0, nil); err != unix.EINTR {
				break
			}
		}
	}()
	ours.SetDeadline(time.Now().Add(startTimeout))
	raw, err := ours.SyscallConn()
	if err != nil {
		return nil, err
	}
	b, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(8))
	var n, oobn, flags int
	rerr := raw.Read(func(fd uintptr) bool {
		n, oobn, flags, _, err = unix.Recvmsg(int(fd), b, oob, unix.MSG_CMSG_CLOEXEC)
		return err != unix.EAGAIN
	})
	if err = errors.Join(rerr, err); err != nil {
		return nil, fmt.Errorf("mounter: %w", err)
	}
	fds = rights(oob[:oobn])
	switch {
	case flags&unix.MSG_CTRUNC != 0: // there was no number for one of them
		closeAll(fds)
		return nil, &mountns.Unavailable{Step: "take the mounts", Err: unix.EMFILE}
	case len(fds) == count:
		return fds, nil
	case len(fds) > 0:
		closeAll(fds)
		return nil, fmt.Errorf("mounter: %d descriptors instead of %d", len(fds), count)
	case n < 4:
		return nil, errors.New("mounter: no answer")
	}
	errno := unix.Errno(b[0]) | unix.Errno(b[1])<<8
	return nil, &mountns.Unavailable{Step: string(b[4:n]), Err: errno}
}

// rights are the descriptors that came with a message.
func rights(oob []byte) (fds []int) {
	msgs, _ := unix.ParseSocketControlMessage(oob)
	for i := range msgs {
		got, _ := unix.ParseUnixRights(&msgs[i])
		fds = append(fds, got...)
	}
	return fds
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// mounterMain is the helper: its descriptor is the socket to the session.
func mounterMain(args []string) (code int, err error) {
	fds, err := descriptors(args, 1)
	if err != nil {
		return fault.ExitOurs, err
	}
	what := make([]byte, 16)
	n, err := unix.Read(fds[0], what)
	if err != nil {
		return fault.ExitOurs, nil
	}
	var made []int
	if string(what[:n]) == "memory" {
		made = []int{-1}
		made[0], err = mountns.Memory()
	} else {
		made = []int{-1, -1}
		made[0], made[1], err = mountns.Detached(os.Getuid(), os.Getgid(), false)
	}
	if err != nil {
		var un *mountns.Unavailable
		var errno unix.Errno
		step := err.Error()
		if errors.As(err, &un) {
			step = un.Step
		}
		errors.As(err, &errno)
		unix.Write(fds[0], append([]byte{byte(errno), byte(errno >> 8), 0, 0}, step...))
		return fault.ExitOurs, nil
	}
	if err := unix.Sendmsg(fds[0], []byte{0, 0, 0, 0}, unix.UnixRights(made...), nil, 0); err != nil {
		return fault.ExitOurs, nil
	}
	return 0, nil
}
