package session

import (
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/launch"
)

// forwarded are the signals that are passed on to the program.
var forwarded = []os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM,
	syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGCONT, syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGTTOU}

// catchSignals keeps what is sent to us from now on for forwardSignals: it is called before the program
// can run, for what comes in the moment of its start must not end us by Go's defaults. What we ignore
// stays so, as it is inherited.
func catchSignals() chan os.Signal {
	ch := make(chan os.Signal, 16)
	for _, sig := range forwarded {
		if !signal.Ignored(sig) {
			signal.Notify(ch, sig)
		}
	}
	return ch
}

// forwardSignals passes on to the program what is sent to us, until stop is called.
//
// What the terminal sends (Ctrl-C, Ctrl-\, Ctrl-Z, a hang-up) reaches the whole foreground process
// group, the program included: passing it on would send it twice. So the keyboard's signals are
// passed on only where the program does not share the terminal's foreground with us.
func forwardSignals(ch chan os.Signal, p *launch.Process) (stop func()) {
	early := len(ch) // of these nobody knows whether the program was there to get them
	signal.Notify(ch, forwarded...)
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
				switch n {
				case syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTSTP:
					if early < 0 && foreground(p.PID) {
						continue
					}
				case syscall.SIGTTIN, syscall.SIGTTOU:
					continue // ours alone
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
