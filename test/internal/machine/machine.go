// Package machine gives the tests of a package a machine of their own: new pid, mount, network, IPC and
// UTS namespaces, in which nobody else has a process, a mount, a socket or a temporary file. So what a
// test finds there is what it has made, and what it leaves behind is seen whole, whatever other
// sessions and playgrounds the real machine has. However the tests end, all of it ends with them.
//
// It needs root. The file systems are the real machine's, but for /tmp, /var/tmp and /dev/shm.
package machine

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/test/internal/bed"
)

// stage is the variable that tells this executable which of the three processes it is: the one that go
// test started, the first of the new namespaces, or the tests.
const stage = "STEAD_TEST_MACHINE"

// temporary are the directories that are the machine's own.
var temporary = []string{"/tmp", "/var/tmp", "/dev/shm"}

// Main is for TestMain: before runs on the real machine (builds, which may load modules), tests on the
// one of their own. It returns the exit code.
func Main(before func() error, tests func() int) int {
	what := os.Getenv(stage)
	os.Unsetenv(stage)
	var code int
	var err error
	switch what {
	case "":
		if err = before(); err == nil {
			code, err = outside()
		}
	case "first":
		code, err = first()
	default:
		// A goroutine that enters a namespace must not do so on the first thread: /proc/PID is about that.
		runtime.LockOSThread()
		return tests()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "machine for the tests:", err)
		return 1
	}
	return code
}

func again(what string) *exec.Cmd {
	c := exec.Command("/proc/self/exe", os.Args[1:]...)
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.Env = append(os.Environ(), stage+"="+what)
	return c
}

// outside starts the first process and waits for it.
func outside() (int, error) {
	if os.Getuid() != 0 {
		return 1, errors.New("namespaces are made as root: run the test as root")
	}
	runtime.LockOSThread() // Pdeathsig is about the thread
	c := again("first")
	c.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig:  syscall.SIGKILL,
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
	}
	err := c.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() > 0 {
		return exit.ExitCode(), nil // it has said why
	}
	return 0, err
}

// first is process 1: it furnishes the machine, starts the tests, and reaps what falls to it.
func first() (int, error) {
	if err := furnish(); err != nil {
		return 1, err
	}
	c := again("tests")
	if err := c.Start(); err != nil {
		return 1, err
	}
	for {
		var ws unix.WaitStatus
		switch pid, err := unix.Wait4(-1, &ws, 0, nil); {
		case err == unix.EINTR:
		case err != nil:
			return 1, fmt.Errorf("wait: %w", err)
		case pid == c.Process.Pid && ws.Signaled():
			return 1, fmt.Errorf("the tests ended by %v", ws.Signal())
		case pid == c.Process.Pid:
			return ws.ExitStatus(), nil
		}
	}
}

func furnish() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("mounts: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("proc: %w", err)
	}
	// What the tests run may be in one of those directories.
	keep := map[string]*os.File{bed.Root(): nil, bed.Cache(): nil}
	for dir := range keep {
		f, err := os.Open(dir)
		if err != nil {
			return err
		}
		defer f.Close()
		keep[dir] = f
	}
	for _, dir := range temporary {
		if err := unix.Mount("machine", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777"); err != nil {
			return fmt.Errorf("tmpfs on %s: %w", dir, err)
		}
		for at, f := range keep {
			if !strings.HasPrefix(at, dir+"/") {
				continue
			}
			if err := os.MkdirAll(at, 0o755); err != nil {
				return err
			}
			if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), at, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
				return fmt.Errorf("bind %s: %w", at, err)
			}
		}
	}
	wd, err := os.Getwd()
	if err == nil {
		err = os.Chdir(filepath.Clean(wd)) // not the hidden one
	}
	if err != nil {
		return err
	}
	os.Unsetenv("TMPDIR")
	os.Unsetenv("XDG_RUNTIME_DIR")
	return loopbackUp()
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r); err != nil {
		return fmt.Errorf("lo: %w", err)
	}
	return nil
}
