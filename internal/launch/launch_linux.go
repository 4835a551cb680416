// Package launch starts the program under the filter, as a tree of processes that cannot outlive
// the session, and tells what becomes of it.
//
// Three processes:
//
//	session        the `stead exec` that the user started; subreaper
//	  guard        subreaper and parent of the program; reports its states
//	    program
//
// One thread of the guard, the launcher, enters the namespaces and installs the filter, both of which
// are a thread's own, and starts the program, which has them from it. From then on that thread only
// waits: its path calls would be answered by the session, or not at all when that is gone.
//
// Who dies, and what follows: when the session dies, even by SIGKILL, the guard reads the end of
// its socket, kills every process below it and ends. When the guard dies, the program's main
// process dies with it (PDEATHSIG), its other processes fall to the session, which kills them. A
// program that daemonizes falls to the guard and is found there. The guard's being the parent is
// what makes this exact: a tree is found by parentage, not by guessing.
//
// The program keeps everything of the caller's: standard streams, process group, session and
// terminal, every inherited descriptor under its number (make's job server, socket activation).
// Our own descriptors get numbers that are free among those and never reach it.
package launch

import (
	"encoding/gob"
	"errors"
	"fmt"
	"os"
	"slices"
	"sort"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/fault"
)

// Hidden words: the first argument that makes this executable one of our helpers.
const (
	wordGuard   = "__guard"
	wordMounter = "__mounter"
)

// Main runs this process as one of the package's helpers if args (without the program's name) ask
// for it; handled is false when they do not. A command line calls it before anything else, and ends with
// code; err is for it to print: a helper that could not begin has said nothing, one that fails later has
// told its session.
func Main(args []string) (code int, handled bool, err error) {
	if len(args) == 0 {
		return 0, false, nil
	}
	if args[0] == wordGuard || args[0] == wordMounter {
		if len(args) < 2 || args[1] != protocol {
			return fault.ExitOurs, true, fault.With(errors.New("stead was built with another version's helper"), "make build")
		}
		args = append(args[:1:1], args[2:]...)
	}
	switch args[0] {
	case wordGuard:
		code, err = guardMain(args[1:])
		return code, true, err
	case wordMounter:
		code, err = mounterMain(args[1:])
		return code, true, err
	}
	return 0, false, nil
}

// descriptors parses the numbers that a helper was started with.
func descriptors(args []string, n int) ([]int, error) {
	if len(args) != n {
		return nil, fmt.Errorf("helper wants %d descriptors, got %q", n, args)
	}
	fds := make([]int, n)
	for i, a := range args {
		fd, err := strconv.Atoi(a)
		if err != nil {
			return nil, err
		}
		fds[i] = fd
		unix.CloseOnExec(fd)
	}
	return fds, nil
}

// inherited returns the descriptors above the standard streams that a child of ours would get:
// those that are not close-on-exec. Everything that Go opens is.
func inherited() []int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil
	}
	var fds []int
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil || fd <= 2 {
			continue
		}
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if err == nil && flags&unix.FD_CLOEXEC == 0 {
			fds = append(fds, fd)
		}
	}
	sort.Ints(fds)
	return fds
}

// none is a place in a table that stays empty.
const none = ^uintptr(0)

// table lays out a child's descriptors: the standard streams and the inherited ones have their own numbers,
// ours the lowest that are left, which it returns. It ends with the last that is needed: what is inherited
// beyond it is so without a word.
func table(ours ...int) (files []uintptr, numbers []string) {
	keep := inherited()
	extend := func(to int) {
		for n := len(files); n <= to; n++ {
			files = append(files, none)
			if n <= 2 && isOpen(n) || slices.Contains(keep, n) { // a closed stdin stays closed
				files[n] = uintptr(n)
			}
		}
	}
	extend(2)
	for _, fd := range ours {
		n := len(files)
		for slices.Contains(keep, n) {
			n++
		}
		extend(n)
		files[n] = uintptr(fd)
		numbers = append(numbers, strconv.Itoa(n))
	}
	for _, n := range keep {
		if first, last := moved(files); n >= first && n < last {
			extend(n)
		}
	}
	return files, numbers
}

func isOpen(fd int) bool {
	_, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	return err == nil
}

// moved are the numbers that ForkExec uses in the child for what it moves out of the way: above the table and
// what is in it, for its pipe and for each descriptor at most.
func moved(files []uintptr) (first, last int) {
	first, n := len(files), 1
	for _, f := range files {
		if f != none {
			first, n = max(first, int(f)+1), n+1
		}
	}
	return first, first + n + 1 // it skips one
}

// helperName is argv[0] of a helper.
const helperName = "stead"

func procFD(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// spawn starts a helper with our descriptors.
func spawn(word string, sys *syscall.SysProcAttr, ours ...int) (pid int, err error) {
	files, numbers := table(ours...)
	argv := append([]string{helperName, word, protocol}, numbers...)
	// Not higher than needed: a larger table of descriptors costs a process with threads a grace period of
	// RCU, 5 to 15 ms.
	_, last := moved(files)
	name, done := helper(last)
	defer done()
	// The runtime's own settings only: the user's environment is the program's.
	return syscall.ForkExec(name, argv, &syscall.ProcAttr{Env: []string{"GOMAXPROCS=1", "GOGC=off"}, Files: files, Sys: sys})
}

// newConfig makes an anonymous file, in which a helper reads its configuration with getConfig.
func newConfig() (*os.File, error) {
	fd, err := unix.MemfdCreate("stead-config", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	return os.NewFile(uintptr(fd), "stead-config"), nil
}

func getConfig(fd int, v any) error {
	if _, err := unix.Seek(fd, 0, 0); err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "stead-config")
	defer f.Close()
	return gob.NewDecoder(f).Decode(v)
}
