package mountns

import (
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"
)

// Detached makes the pod's tree as a mount that is nowhere: it has no place in any mount namespace,
// is reached through the descriptor root alone, and is gone with the last descriptor of it. fuse is
// its device, to be served. Both are close-on-exec and the caller's.
//
// It needs CAP_SYS_ADMIN over the caller's mount namespace. Where that comes from a user namespace,
// others leaves out all but uid: the kernel lets nobody in from outside the namespace but its
// owner, and only where the mount does not claim to be for others.
func Detached(uid, gid int, others bool) (fuse, root int, err error) {
	step := func(what string, err error) error { return &Unavailable{what, err} }
	fuse, err = unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, -1, step("open /dev/fuse", err)
	}
	defer func() {
		if err != nil {
			unix.Close(fuse)
		}
	}()
	ctx, err := unix.Fsopen("fuse", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, -1, step("fsopen fuse", err)
	}
	defer unix.Close(ctx)
	for _, o := range [][2]string{
		{"source", "stead"}, {"subtype", "stead"},
		{"fd", strconv.Itoa(fuse)}, {"rootmode", "40000"},
		{"user_id", strconv.Itoa(uid)}, {"group_id", strconv.Itoa(gid)},
		{"max_read", "1048576"},
	} {
		if err = unix.FsconfigSetString(ctx, o[0], o[1]); err != nil {
			return -1, -1, step(fmt.Sprintf("set %s=%s", o[0], o[1]), err)
		}
	}
	flags := []string{"default_permissions"}
	if others {
		flags = append(flags, "allow_other")
	}
	for _, f := range flags {
		if err = unix.FsconfigSetFlag(ctx, f); err != nil {
			return -1, -1, step("set "+f, err)
		}
	}
	if err = unix.FsconfigCreate(ctx); err != nil {
		return -1, -1, step("make the file system", err)
	}
	root, err = unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOATIME)
	if err != nil {
		return -1, -1, step("mount it", err)
	}
	return fuse, root, nil
}

// Memory makes an empty file system in memory that is nowhere, as Detached does.
func Memory() (root int, err error) {
	step := func(what string, err error) error { return &Unavailable{what, err} }
	ctx, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, step("fsopen tmpfs", err)
	}
	defer unix.Close(ctx)
	for _, o := range [][2]string{{"source", "stead"}, {"mode", "755"}} {
		if err = unix.FsconfigSetString(ctx, o[0], o[1]); err != nil {
			return -1, step(fmt.Sprintf("set %s=%s", o[0], o[1]), err)
		}
	}
	if err = unix.FsconfigCreate(ctx); err != nil {
		return -1, step("make a file system in memory", err)
	}
	if root, err = unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOATIME); err != nil {
		return -1, step("mount it", err)
	}
	return root, nil
}
