package session

import (
	"os"
	"os/signal"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/launch"
	"github.com/stead-dev/stead/internal/sys"
)

// passed are the signals that are passed on. What is not here is about this process: its memory, its
// children, its pipes, its own processor time.
var passed = func() []os.Signal {
	all := []os.Signal{
		syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGABRT, syscall.SIGUSR1, syscall.SIGUSR2,
		syscall.SIGALRM, // set before we were executed: alarm(2) outlives execve
		syscall.SIGTERM, syscall.SIGCONT, syscall.SIGTSTP, syscall.SIGWINCH, syscall.SIGIO, syscall.SIGPWR,
	}
	const first, last = 35, 64 // of real time; those before are C libraries' own, Go lets nobody have them
	for n := syscall.Signal(first); n <= last; n++ {
		if n != sys.Interrupting {
			all = append(all, n)
		}
	}
	return all
}()

// keyboard are those that the terminal sends to its foreground.
var keyboard = []syscall.Signal{syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTSTP, syscall.SIGWINCH}

// catchSignals keeps what is sent to us from now on for forwardSignals: it is called before the program
// can run, for what comes in the moment of its start must not end us by Go's defaults. What we ignore
// stays so, as it is inherited.
func catchSignals() chan os.Signal {
	ch := make(chan os.Signal, 16)
	for _, sig := range passed {
		if !signal.Ignored(sig) {
			signal.Notify(ch, sig)
		}
	}
	return ch
}

// forwardSignals passes on to the program what is sent to us, until stop is called.
//
// What the terminal sends (Ctrl-C, Ctrl-\, Ctrl-Z, a new size) reaches the whole foreground process
// group, the program included: passing it on would send it twice. So the keyboard's signals are
// passed on only where the program does not share the terminal's foreground with us.
func forwardSignals(ch chan os.Signal, p *launch.Process) (stop func()) {
	early := len(ch) // of these nobody knows whether the program was there to get them
	signal.Notify(ch, passed...)
	signal.Notify(ch, syscall.SIGTTIN, syscall.SIGTTOU) // ours alone
	done := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-done:
				return
			case sig := <-ch:
				n := sig.(syscall.Signal)
				early--
				if n == syscall.SIGTTIN || n == syscall.SIGTTOU || early < 0 && slices.Contains(keyboard, n) && foreground(p.PID) {
					continue
				}
				p.Signal(n)
			}
		}
	}()
	return func() {
		signal.Stop(ch)
		close(done)
		<-ended
	}
}

// foreground says whether the program's process group is the terminal's foreground and ours too,
// so that it gets the keyboard's signals itself.
func foreground(pid int) bool {
	tty, err := unix.Open("/dev/tty", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return false
	}
	defer unix.Close(tty)
	front, err := unix.IoctlGetInt(tty, unix.TIOCGPGRP)
	if err != nil {
		return false
	}
	pgid, err := unix.Getpgid(pid)
	return err == nil && pgid == front
}
