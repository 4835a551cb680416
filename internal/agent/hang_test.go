package agent_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/local/beside"
	"github.com/stead-dev/stead/internal/podfs"
	"github.com/stead-dev/stead/internal/session/pod"
)

// hang mounts at dir, for this process alone, a volume whose server never answers.
func hang(dir string) int {
	dev, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err == nil {
		err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	}
	if err == nil {
		err = unix.Mount("none", dir, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", dev))
	}
	fmt.Println(err)
	io.Copy(io.Discard, os.Stdin)
	return 0
}

// A volume of the pod's that does not answer, as one of a network may do, holds up who asks for its files
// and nobody else: not the session's other files, not its end, not the agent's.
func TestAVolumeThatHangsHoldsNobodyElseUp(t *testing.T) {
	dir := t.TempDir()
	app := exec.Command("/proc/self/exe", "hang", dir)
	app.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET}
	hold, err := app.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := app.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := app.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { hold.Close(); app.Wait() }()
	if l, err := bufio.NewReader(out).ReadString('\n'); l != "<nil>\n" {
		t.Fatal(l, err)
	}
	a, err := beside.Start(app.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	conn, err := attach(a, "ann@laptop", pod.Handlers{})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	files := podfs.NewClient(conn.Files)
	defer files.Close()
	ctx, cancel := context.WithCancel(t.Context())
	hung := make(chan syscall.Errno)
	for i := range 50 { // more than there are workers
		go func() {
			_, errno := files.Stat(ctx, fmt.Sprintf("%s/%d", dir, i))
			hung <- errno
		}()
	}
	within(t, "each of the calls waits in the kernel", func() bool {
		threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", a.PID))
		return err == nil && len(threads) > 50
	})
	for range 100 {
		done, stop := context.WithTimeout(t.Context(), 30*time.Second)
		if a, errno := files.Stat(done, "/"); errno != 0 || a.Mode&unix.S_IFMT != unix.S_IFDIR {
			t.Fatalf("beside it: %v", errno)
		}
		stop()
	}
	select {
	case errno := <-hung:
		t.Fatalf("the volume answers: %v", errno)
	default:
	}
	cancel()
	for range 50 {
		<-hung
	}
	conn.Close()
	within(t, "the session is gone", func() bool {
		for _, s := range askStatus(t, a).Sessions {
			if strings.HasPrefix(s.Holder, "ann") {
				return false
			}
		}
		return true
	})
	if a.Close(); a.Err() != nil {
		t.Errorf("the agent ended with %v", a.Err())
	}
}
