package cli

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/kube"
	"github.com/stead-dev/stead/internal/launch"
	"github.com/stead-dev/stead/internal/sys"
)

// machine is what of this machine matters to a session.
type machine struct {
	release  string // of the kernel
	filter   error  // why a filter with a listener cannot be installed
	fuse     error  // why /dev/fuse cannot be opened
	root     bool
	ptrace   string // kernel.yama.ptrace_scope, "" where there is no Yama
	userNS   string // user.max_user_namespaces
	apparmor string // kernel.apparmor_restrict_unprivileged_userns
}

// laptop looks at this machine.
func laptop() []kube.Finding {
	var u unix.Utsname
	_ = unix.Uname(&u)
	read := func(name string) string {
		b, _ := os.ReadFile("/proc/sys/" + name)
		return strings.TrimSpace(string(b))
	}
	m := machine{
		release: unix.ByteSliceToString(u.Release[:]), filter: sys.TryFilter(), root: os.Geteuid() == 0,
		ptrace: read("kernel/yama/ptrace_scope"), userNS: read("user/max_user_namespaces"), apparmor: read("kernel/apparmor_restrict_unprivileged_userns"),
	}
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if m.fuse = err; err == nil {
		f.Close()
	}
	return m.judge()
}

// judge says of each thing whether it is there, and what helps.
func (m *machine) judge() (out []kube.Finding) {
	good := func(what, note string) { out = append(out, kube.Finding{What: what, Note: note}) }
	bad := func(what, why, hint string) { out = append(out, missing(what, why, hint)) }
	worse := func(what, why, hint string) { // stead works, less well
		f := missing(what, why, hint)
		f.Soft = true
		out = append(out, f)
	}
	var major, minor int
	fmt.Sscanf(m.release, "%d.%d", &major, &minor)
	if major < 5 || major == 5 && minor < 14 {
		bad("kernel", m.release+" is older than 5.14", "run stead in a virtual machine with a newer kernel")
	} else {
		good("kernel", m.release)
	}
	if m.filter == nil {
		good("seccomp user notification", "there, and nobody else listens")
	} else {
		out = append(out, kube.Finding{What: "seccomp user notification", Err: cmp.Or(launch.FilterFault(m.filter), m.filter)})
	}
	switch {
	case m.fuse == nil:
		good("/dev/fuse", "can be opened")
	case errors.Is(m.fuse, fs.ErrPermission):
		worse("/dev/fuse", m.fuse.Error(), "chmod 666 /dev/fuse, as udev does")
	default:
		worse("/dev/fuse", m.fuse.Error(), "modprobe fuse; in a container: --device /dev/fuse")
	}
	switch {
	case m.ptrace == "2" && !m.root || m.ptrace == "3":
		bad("Yama", "kernel.yama.ptrace_scope is "+m.ptrace+": stead cannot take the program's sockets", "sysctl kernel.yama.ptrace_scope=1")
	case m.ptrace == "":
		good("Yama", "not in this kernel")
	default:
		good("Yama", "ptrace_scope "+m.ptrace)
	}
	switch {
	case m.root:
		good("mount namespace", "as root")
	case m.userNS == "0":
		worse("mount namespace", "user namespaces are forbidden (user.max_user_namespaces is 0): files are shown by the slower way", "sysctl user.max_user_namespaces=15000")
	case m.apparmor == "1":
		worse("mount namespace", "AppArmor restricts user namespaces: files are shown by the slower way", "sysctl kernel.apparmor_restrict_unprivileged_userns=0")
	default:
		good("mount namespace", "in a user namespace")
	}
	return out
}
