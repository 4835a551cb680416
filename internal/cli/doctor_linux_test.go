package cli

import (
	"bytes"
	"io/fs"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Every line that doctor can say of the laptop.
func TestTheLaptopIsJudged(t *testing.T) {
	const (
		kernel = "ok    kernel: 6.1.0\n"
		filter = "ok    seccomp user notification: there, and nobody else listens\n"
		fuse   = "ok    /dev/fuse: can be opened\n"
		yama   = "ok    Yama: ptrace_scope 1\n"
		mounts = "ok    mount namespace: in a user namespace\n"
	)
	for _, c := range []struct {
		name string
		m    machine
		bad  int
		want string
	}{
		{"all is well", machine{}, 0, kernel + filter + fuse + yama + mounts},
		{"an old kernel", machine{release: "5.10.0-9-amd64"}, 1,
			"FAIL  kernel: 5.10.0-9-amd64 is older than 5.14\n      hint: run stead in a virtual machine with a newer kernel\n" + filter + fuse + yama + mounts},
		{"another listener", machine{filter: syscall.EBUSY}, 1,
			kernel + "FAIL  seccomp user notification: another supervisor listens to this process tree already (device or resource busy)\n" +
				"      hint: grep Seccomp /proc/self/status (2: somebody filters already; run stead outside of another stead exec, of such a container, of WSL2's mirrored networking: networkingMode=nat in .wslconfig)\n" + fuse + yama + mounts},
		{"no filters", machine{filter: syscall.EPERM}, 1,
			kernel + "FAIL  seccomp user notification: seccomp filters are forbidden here: operation not permitted\n      hint: docker run --security-opt seccomp=unconfined ... (a container's own filter forbids it)\n" + fuse + yama + mounts},
		{"no notification", machine{filter: syscall.EINVAL}, 1,
			kernel + "FAIL  seccomp user notification: the kernel has no seccomp user notification: invalid argument\n      hint: uname -r: Linux 5.14 or newer is needed\n" + fuse + yama + mounts},
		{"something else", machine{filter: syscall.ENOMEM}, 1,
			kernel + "FAIL  seccomp user notification: cannot allocate memory\n" + fuse + yama + mounts},
		{"no FUSE", machine{fuse: &fs.PathError{Op: "open", Path: "/dev/fuse", Err: syscall.ENOENT}}, 0,
			kernel + filter + "warn  /dev/fuse: open /dev/fuse: no such file or directory\n      hint: modprobe fuse; in a container: --device /dev/fuse\n" + yama + mounts},
		{"FUSE for root alone", machine{fuse: &fs.PathError{Op: "open", Path: "/dev/fuse", Err: syscall.EACCES}}, 0,
			kernel + filter + "warn  /dev/fuse: open /dev/fuse: permission denied\n      hint: chmod 666 /dev/fuse, as udev does\n" + yama + mounts},
		{"Yama forbids it", machine{ptrace: "2"}, 1,
			kernel + filter + fuse + "FAIL  Yama: kernel.yama.ptrace_scope is 2: stead cannot take the program's sockets\n      hint: sysctl kernel.yama.ptrace_scope=1\n" + mounts},
		{"Yama forbids it to all but root, as root", machine{ptrace: "2", root: true}, 0,
			kernel + filter + fuse + "ok    Yama: ptrace_scope 2\n" + "ok    mount namespace: as root\n"},
		{"Yama forbids it to root, too", machine{ptrace: "3", root: true}, 1,
			kernel + filter + fuse + "FAIL  Yama: kernel.yama.ptrace_scope is 3: stead cannot take the program's sockets\n      hint: sysctl kernel.yama.ptrace_scope=1\nok    mount namespace: as root\n"},
		{"no Yama", machine{ptrace: "-"}, 0, kernel + filter + fuse + "ok    Yama: not in this kernel\n" + mounts},
		{"no user namespaces", machine{userNS: "0"}, 0,
			kernel + filter + fuse + yama + "warn  mount namespace: user namespaces are forbidden (user.max_user_namespaces is 0): files are shown by the slower way\n      hint: sysctl user.max_user_namespaces=15000\n"},
		{"AppArmor", machine{apparmor: "1"}, 0,
			kernel + filter + fuse + yama + "warn  mount namespace: AppArmor restricts user namespaces: files are shown by the slower way\n      hint: sysctl kernel.apparmor_restrict_unprivileged_userns=0\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.m.release == "" {
				c.m.release = "6.1.0"
			}
			switch c.m.ptrace {
			case "":
				c.m.ptrace = "1"
			case "-":
				c.m.ptrace = ""
			}
			var out bytes.Buffer
			a := &app{stdout: &out}
			if bad := a.tell(c.m.judge()); bad != c.bad {
				t.Errorf("%d are bad, want %d", bad, c.bad)
			}
			if diff := cmp.Diff(c.want, out.String()); diff != "" {
				t.Error(diff)
			}
		})
	}
}
