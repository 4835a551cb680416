package sys

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// Namespaces runs functions inside the network namespace of a process. A socket keeps the
// namespace that it was made in, so only its making needs this. One OS thread lives in the
// namespace for as long as the value does; functions run on it one after another and must be short.
type Namespaces struct {
	calls chan func()
	once  sync.Once
	done  chan struct{}
}

// EnterNetwork starts a thread in the network namespace of process pid. It needs CAP_SYS_ADMIN in
// the user namespace that owns it, or that it is our own.
func EnterNetwork(pid int) (*Namespaces, error) {
	n := &Namespaces{calls: make(chan func()), done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := setns("/proc/"+strconv.Itoa(pid)+"/ns/net", unix.CLONE_NEWNET)
		started <- err
		if err != nil {
			return
		}
		for {
			select {
			case f := <-n.calls:
				f()
			case <-n.done:
				return
			}
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("enter network namespace of process %d: %w", pid, err)
	}
	return n, nil
}

// setns joins the namespace at path, unless the thread is in it.
func setns(path string, kind int) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	var a, b unix.Stat_t
	if unix.Fstat(int(f.Fd()), &a) == nil && unix.Stat("/proc/thread-self/ns/net", &b) == nil && a.Ino == b.Ino && kind == unix.CLONE_NEWNET {
		return nil // joining one's own needs a capability that staying in it does not
	}
	return unix.Setns(int(f.Fd()), kind)
}

// Do runs f inside and returns when it has run.
func (n *Namespaces) Do(f func() error) error {
	res := make(chan error, 1)
	select {
	case n.calls <- func() { res <- f() }:
		return <-res
	case <-n.done:
		return unix.ESRCH
	}
}

// Close ends the thread.
func (n *Namespaces) Close() { n.once.Do(func() { close(n.done) }) }

// Hostname returns nodename and domain name of the UTS namespace of process pid.
func Hostname(pid int) (node, domain string, err error) {
	type answer struct {
		node, domain string
		err          error
	}
	ch := make(chan answer, 1)
	go func() {
		runtime.LockOSThread() // the thread is of no use to others afterwards
		var a answer
		defer func() { ch <- a }()
		f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/ns/uts")
		if err != nil {
			a.err = err
			return
		}
		defer f.Close()
		var own, other unix.Stat_t
		same := unix.Stat("/proc/thread-self/ns/uts", &own) == nil && unix.Fstat(int(f.Fd()), &other) == nil && own.Ino == other.Ino
		if !same {
			if a.err = unix.Setns(int(f.Fd()), unix.CLONE_NEWUTS); a.err != nil {
				return
			}
		}
		var u unix.Utsname
		if a.err = unix.Uname(&u); a.err == nil {
			a.node, a.domain = unix.ByteSliceToString(u.Nodename[:]), unix.ByteSliceToString(u.Domainname[:])
		}
	}()
	a := <-ch
	if a.err != nil {
		return "", "", fmt.Errorf("host name of process %d: %w", pid, a.err)
	}
	return a.node, a.domain, nil
}
