package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/kube"
)

// laptop looks at this machine.
func laptop() (out []kube.Finding) {
	var u unix.Utsname
	_ = unix.Uname(&u)
	release := unix.ByteSliceToString(u.Release[:])
	var major, minor int
	fmt.Sscanf(release, "%d.%d", &major, &minor)
	if major < 5 || major == 5 && minor < 14 {
		out = append(out, missing("kernel", release+" is older than 5.14", "run stead in a virtual machine with a newer kernel"))
	} else {
		out = append(out, kube.Finding{What: "kernel", Note: release})
	}
	// The kernel says EFAULT where the operation is known: it looked for the filter.
	if _, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, 0); e != unix.EFAULT {
		out = append(out, missing("seccomp user notification", e.Error(), "the kernel, or what confines this process, has none: run stead outside of that container"))
	} else {
		out = append(out, kube.Finding{What: "seccomp user notification", Note: "there"})
	}
	soft := func(f kube.Finding) { f.Soft = true; out = append(out, f) }
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil {
		why, hint := err.Error(), "modprobe fuse; in a container: --device /dev/fuse"
		if errors.Is(err, fs.ErrPermission) {
			hint = "chmod 666 /dev/fuse, as udev does"
		}
		soft(missing("/dev/fuse", why, hint))
	} else {
		f.Close()
		out = append(out, kube.Finding{What: "/dev/fuse", Note: "can be opened"})
	}
	read := func(name string) string {
		b, _ := os.ReadFile("/proc/sys/" + name)
		return strings.TrimSpace(string(b))
	}
	switch v := read("kernel/yama/ptrace_scope"); {
	case v == "2" && os.Geteuid() != 0 || v == "3":
		out = append(out, missing("Yama", "kernel.yama.ptrace_scope is "+v+": stead cannot take the program's sockets", "sysctl kernel.yama.ptrace_scope=1"))
	default:
		out = append(out, kube.Finding{What: "Yama", Note: "ptrace_scope " + orDash(v)})
	}
	switch {
	case os.Geteuid() == 0:
		out = append(out, kube.Finding{What: "mount namespace", Note: "as root"})
	case read("user/max_user_namespaces") == "0":
		soft(missing("mount namespace", "user namespaces are forbidden (user.max_user_namespaces is 0): files are shown by the slower way", "sysctl user.max_user_namespaces=15000"))
	case read("kernel/apparmor_restrict_unprivileged_userns") == "1":
		soft(missing("mount namespace", "AppArmor restricts user namespaces: files are shown by the slower way", "sysctl kernel.apparmor_restrict_unprivileged_userns=0"))
	default:
		out = append(out, kube.Finding{What: "mount namespace", Note: "in a user namespace"})
	}
	return out
}
