package agent_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/local/beside"
	"github.com/stead-dev/stead/internal/podfs"
	"github.com/stead-dev/stead/internal/session/pod"
)

// lookAt prints what the kernel says of files to this process, a line for each.
func lookAt(names []string) {
	for _, name := range names {
		var st unix.Stat_t
		stat := unix.Lstat(name, &st)
		if stat == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
			entries, err := os.ReadDir(name)
			fmt.Println(name, errno(stat), len(entries), errno(err))
			continue
		}
		text := make([]byte, 100)
		fd, err := unix.Open(name, unix.O_RDONLY|unix.O_NOFOLLOW, 0)
		n := 0
		if err == nil {
			n, _ = unix.Read(fd, text)
			unix.Close(fd)
		}
		fmt.Println(name, errno(stat), string(text[:n]), errno(err))
	}
	fmt.Println("end")
}

func errno(err error) string {
	var e syscall.Errno
	if pe, ok := err.(*os.PathError); ok {
		err = pe.Err
	}
	if err != nil {
		e = err.(syscall.Errno)
	}
	return unix.ErrnoName(e)
}

// What the target's process may not read, nobody reads through the agent, though that is root's; and
// what it may, is.
func TestFilesAreSeenWithTheRightsOfTheTarget(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("this test becomes other users: run it as root")
	}
	dir, err := os.MkdirTemp("/var/tmp", "stead-rights")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	os.Chmod(dir, 0o755)
	const app, group = 65532, 2000
	var names []string
	for _, f := range []struct {
		name     string
		mode     os.FileMode
		uid, gid int
		dir      bool
	}{
		{"all", 0o644, 0, 0, false},
		{"roots", 0o600, 0, 0, false},
		{"own", 0o600, app, app, false},
		{"own-none", 0, app, app, false},
		{"groups", 0o640, 0, app, false},
		{"fsgroup", 0o640, 0, group, false},
		{"others", 0o600, 1000, 1000, false},
		{"closed", 0o700, 0, 0, true},
		{"closed/in", 0o644, 0, 0, false},
		{"closed/own", 0o644, app, app, false},
		{"search", 0o711, 0, 0, true},
		{"search/in", 0o644, 0, 0, false},
		{"list", 0o744, 0, 0, true},
		{"list/in", 0o644, 0, 0, false},
		{"fs", 0o2770, 0, group, true},
		{"fs/in", 0o640, 0, group, false},
	} {
		name := filepath.Join(dir, f.name)
		if f.dir {
			err = os.Mkdir(name, 0o700)
		} else {
			err = os.WriteFile(name, []byte(f.name), 0o600)
		}
		if err == nil {
			err = os.Lchown(name, f.uid, f.gid)
		}
		if err == nil {
			err = syscall.Chmod(name, uint32(f.mode))
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
	}
	names = append(names, filepath.Join(dir, "none"), filepath.Join(dir, "closed/none"))
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, target := range []struct {
		name string
		argv []string
		attr *syscall.SysProcAttr
	}{
		{"root", []string{exe}, nil},
		{"an ordinary user with a group more", []string{"/proc/self/exe"}, &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: app, Gid: app, Groups: []uint32{group}}}},
		{"an ordinary user without", []string{"/proc/self/exe"}, &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: app, Gid: app}}},
		{"root without capabilities", []string{"setpriv", "--bounding-set=-dac_override,-dac_read_search", exe}, nil},
		{"an ordinary user that may read everything", []string{"setpriv", "--reuid", "65532", "--regid", "65532", "--clear-groups", "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search", exe}, nil},
		{"root of a user namespace", []string{"/proc/self/exe"}, &syscall.SysProcAttr{
			Cloneflags:                 syscall.CLONE_NEWUSER,
			UidMappings:                []syscall.SysProcIDMap{{ContainerID: 0, HostID: app, Size: 1}},
			GidMappings:                []syscall.SysProcIDMap{{ContainerID: 0, HostID: app, Size: 1}},
			GidMappingsEnableSetgroups: true,
			Credential:                 &syscall.Credential{Uid: 0, Gid: 0},
		}},
	} {
		t.Run(target.name, func(t *testing.T) {
			argv := append(append(target.argv, "look"), names...)
			c := exec.Command(argv[0], argv[1:]...)
			c.SysProcAttr, c.Dir, c.Stderr = target.attr, "/", os.Stderr
			hold, err := c.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			out, err := c.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { hold.Close(); c.Wait() }()
			native := ""
			for lines := bufio.NewScanner(out); lines.Scan() && lines.Text() != "end"; {
				native += lines.Text() + "\n"
			}
			a, err := beside.Start(c.Process.Pid)
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			conn, err := attach(a, "nobody@laptop", pod.Handlers{})
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			files := podfs.NewClient(conn.Files)
			defer files.Close()
			for range 3 {
				if diff := cmp.Diff(native, seen(files, names)); diff != "" || len(native) < 100 {
					t.Fatalf("- target's process + agent:\n%s", diff)
				}
			}
			if conn.Target().Hostname == "" || len(conn.Target().Env) == 0 { // from /proc
				t.Errorf("the target is %+v", conn.Target())
			}
		})
	}
}

// seen is lookAt by the agent.
func seen(files *podfs.Client, names []string) (out string) {
	ctx := context.Background()
	name := func(e syscall.Errno) string { return unix.ErrnoName(e) }
	for _, n := range names {
		a, stat := files.Stat(ctx, n)
		if stat == 0 && a.Mode&unix.S_IFMT == unix.S_IFDIR {
			entries, e := files.List(ctx, n)
			out += fmt.Sprintln(n, name(stat), len(entries), name(e))
			continue
		}
		text := make([]byte, 100)
		h, e := files.Open(ctx, n)
		got := 0
		if e == 0 {
			got, _ = files.Read(ctx, h, text, 0)
			files.Release(h)
		}
		out += fmt.Sprintln(n, name(stat), string(text[:got]), name(e))
	}
	return out
}

func TestThePodsProcSysAndDevAreServedByNoSpelling(t *testing.T) {
	b := newBed(t)
	conn := b.join(b.startAgent(), "ann@laptop", pod.Handlers{})
	files := podfs.NewClient(conn.Files)
	defer files.Close()
	for _, name := range []string{"/proc/version", "/sys/kernel/uevent_seqnum", "/dev/null"} {
		for _, before := range []string{"", ".", "/", "/.", "/etc/..", "/proc/..", "//./"} {
			if a, e := files.Stat(context.Background(), before+name); e != syscall.ENOENT {
				t.Errorf("%s: %+v, %v", before+name, a, e)
			}
		}
	}
	for _, name := range []string{"/proc", "/sys", "/dev"} { // places for the laptop's own
		if a, e := files.Stat(context.Background(), name); e != 0 || a.Mode&unix.S_IFMT != unix.S_IFDIR {
			t.Errorf("%s: %+v, %v", name, a, e)
		}
	}
}
