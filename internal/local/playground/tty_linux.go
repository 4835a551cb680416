package playground

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// terminal is a pseudo-terminal for a command in a pod, as kubectl exec -it gives one: the command is the
// leader of a session of its own with it, so that a shell has job control; ours is raw meanwhile, for what
// is typed means something to the command's terminal and not to ours.
type terminal struct {
	master, slave *os.File
	ours          int // whose settings are changed
	was           *unix.Termios
	resized       chan os.Signal
	stop          *os.File // closed, it ends the copy of what is typed
	stopped       *os.File
	work          sync.WaitGroup
}

// isTerminal says whether fd is one.
func isTerminal(fd int) bool {
	_, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	return err == nil
}

// drainTime is how long the last output of a command is waited for whose terminal others still have open.
const drainTime = 300 * time.Millisecond

// openTerminal makes the terminal, with the size and settings of ours (in), and carries between the two.
func openTerminal(in, out *os.File) (t *terminal, err error) {
	t = &terminal{ours: int(in.Fd()), resized: make(chan os.Signal, 1)}
	defer func() {
		if err != nil {
			t.close()
		}
	}()
	if t.master, t.slave, err = openPair(); err != nil {
		return nil, fmt.Errorf("open a pseudo-terminal: %w", err)
	}
	if t.was, err = unix.IoctlGetTermios(t.ours, unix.TCGETS); err != nil {
		return nil, fmt.Errorf("settings of the terminal: %w", err)
	}
	_ = unix.IoctlSetTermios(int(t.slave.Fd()), unix.TCSETS, t.was)
	t.resize()
	raw := *t.was // cfmakeraw(3)
	raw.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	raw.Oflag &^= unix.OPOST
	raw.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	raw.Cflag = raw.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	if err = unix.IoctlSetTermios(t.ours, unix.TCSETS, &raw); err != nil {
		return nil, fmt.Errorf("settings of the terminal: %w", err)
	}
	if t.stopped, t.stop, err = os.Pipe(); err != nil {
		return nil, err
	}
	signal.Notify(t.resized, unix.SIGWINCH)
	t.work.Add(3)
	go func() { // ends when the signal is no longer asked for
		defer t.work.Done()
		for range t.resized {
			t.resize()
		}
	}()
	go func() { // ends with the last who has the terminal open, or when close is tired of them
		defer t.work.Done()
		_, _ = io.Copy(out, t.master)
	}()
	go func() { defer t.work.Done(); t.typed() }()
	return t, nil
}

// openPair opens a pseudo-terminal of the machine's, which the pods' /dev shows, too.
func openPair() (master, slave *os.File, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	master = os.NewFile(uintptr(fd), "/dev/ptmx")
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		master.Close()
		return nil, nil, err
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		fd, err = unix.Open("/dev/pts/"+strconv.Itoa(n), unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
		slave = os.NewFile(uintptr(fd), "terminal")
	}
	if err != nil {
		master.Close()
		return nil, nil, err
	}
	return master, slave, nil
}

// control runs f on the master without making it blocking, as Fd would.
func (t *terminal) control(f func(fd int)) {
	if raw, err := t.master.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { f(int(fd)) })
	}
}

func (t *terminal) resize() {
	if size, err := unix.IoctlGetWinsize(t.ours, unix.TIOCGWINSZ); err == nil {
		t.control(func(fd int) { _ = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, size) })
	}
}

// typed carries what is typed until stop is closed.
func (t *terminal) typed() {
	b := make([]byte, 4096)
	for {
		p := []unix.PollFd{{Fd: int32(t.ours), Events: unix.POLLIN}, {Fd: int32(t.stopped.Fd()), Events: unix.POLLIN}}
		if _, err := unix.Poll(p, -1); err == unix.EINTR {
			continue
		} else if err != nil || p[1].Revents != 0 {
			return
		}
		n, err := unix.Read(t.ours, b)
		if err == unix.EINTR || err == unix.EAGAIN {
			continue
		}
		if n <= 0 {
			return
		}
		if _, err := t.master.Write(b[:n]); err != nil {
			return
		}
	}
}

// handed is called when the command has the terminal.
func (t *terminal) handed() { t.slave.Close() }

// close shows the last output, and gives our terminal its settings back.
func (t *terminal) close() {
	if t.slave != nil {
		t.slave.Close()
	}
	if t.stop != nil {
		signal.Stop(t.resized)
		close(t.resized)
		t.stop.Close()
		_ = t.master.SetReadDeadline(time.Now().Add(drainTime))
		t.work.Wait()
		t.stopped.Close()
	}
	if t.master != nil {
		t.master.Close()
	}
	if t.was != nil {
		_ = unix.IoctlSetTermios(t.ours, unix.TCSETSW, t.was)
	}
}
