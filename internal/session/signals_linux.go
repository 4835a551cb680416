package session

import (
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/launch"
)

// forwardSignals passes on to the program what is sent to us, until stop is called.
//
// What the terminal sends (Ctrl-C, Ctrl-\, Ctrl-Z, a hang-up) reaches the whole foreground process
// group, the program included: passing it on would send it twice. So the keyboard's signals are
// passed on only where the program does not share the terminal's foreground with us.
func forwardSignals(p *launch.Process) (stop func()) {
	ch := make(chan os.Signal, 16)
	signal.Notify(ch, syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM,
		syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGCONT, syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGTTOU)
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
				switch n {
				case syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTSTP:
					if foreground(p.PID) {
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
