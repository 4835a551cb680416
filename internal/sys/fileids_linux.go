package sys

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// SetFileIDs gives the calling thread, which is locked, the ids by which the kernel decides about files.
// With a user id other than 0 the capabilities that override files' modes are not in force. The groups
// stay as they are where groups is nil.
func SetFileIDs(uid, gid int, groups []uint32) bool {
	if groups != nil {
		if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(unsafe.SliceData(groups))), 0); e != 0 {
			return false
		}
	}
	return setFileID(unix.SYS_SETFSGID, gid) && setFileID(unix.SYS_SETFSUID, uid)
}

// SwitchFileIDs is SetFileIDs for ids that it has set before: it costs half.
func SwitchFileIDs(uid, gid int, groups []uint32) bool {
	if groups != nil {
		if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(unsafe.SliceData(groups))), 0); e != 0 {
			return false
		}
	}
	unix.RawSyscall(unix.SYS_SETFSGID, uintptr(gid), 0, 0)
	unix.RawSyscall(unix.SYS_SETFSUID, uintptr(uid), 0, 0)
	return true
}

// setFileID is setfsuid(2) or setfsgid(2), which say nothing of a failure.
func setFileID(call uintptr, id int) bool {
	unix.RawSyscall(call, uintptr(id), 0, 0)
	now, _, _ := unix.RawSyscall(call, ^uintptr(0), 0, 0) // no id: changes nothing
	return int(now) == id
}

// Capabilities returns those in force and permitted of the calling thread.
func Capabilities() (effective, permitted uint64, err error) {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var d [2]unix.CapUserData
	if err := unix.Capget(&hdr, &d[0]); err != nil {
		return 0, 0, err
	}
	return uint64(d[1].Effective)<<32 | uint64(d[0].Effective), uint64(d[1].Permitted)<<32 | uint64(d[0].Permitted), nil
}

// SetEffective puts capabilities of the calling thread in force, of those that are permitted to it.
func SetEffective(effective uint64) error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var d [2]unix.CapUserData
	if err := unix.Capget(&hdr, &d[0]); err != nil {
		return err
	}
	d[0].Effective, d[1].Effective = uint32(effective), uint32(effective>>32)
	return unix.Capset(&hdr, &d[0])
}
