//go:build linux

package incoming

import (
	"context"
	"io"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/inet"
	"github.com/stead-dev/stead/internal/intercept"
	"github.com/stead-dev/stead/internal/session/pod"
	"github.com/stead-dev/stead/internal/tunnel"
	"github.com/stead-dev/stead/internal/wire"
)

// desk gives ports as an agent does, when the test says so.
type desk struct {
	asked  chan wire.Subscribe
	answer chan wire.Reply
	closed chan uint64
}

func (d *desk) Subscribe(_ context.Context, s wire.Subscribe) (*pod.Subscription, wire.Reply, error) {
	d.asked <- s
	r := <-d.answer
	return pod.NewSubscription(r.ID, func() { d.closed <- r.ID }), r, nil
}

func newRoom(t *testing.T) (*Room, *desk) {
	d := &desk{make(chan wire.Subscribe, 10), make(chan wire.Reply, 10), make(chan uint64, 10)}
	r := New(Config{Pod: d, Mode: wire.Steal, Trouble: func(err error) { t.Error(err) }, Notice: func(string) {}})
	t.Cleanup(r.Close)
	return r, d
}

// listens is a listen of the program's on a port that is free; end waits for its outcome.
func listens(t *testing.T, r *Room) (port uint16, end func()) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, inet.ToUnix(unix.AF_INET, netip.MustParseAddrPort("127.0.0.1:0"))); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	o := r.Listen(&intercept.Socket{FD: fd, Family: unix.AF_INET, Type: unix.SOCK_STREAM}, 10)
	done := make(chan intercept.Outcome, 1)
	go func() { done <- o.Later(context.Background()) }()
	return inet.FromUnix(sa).Port(), func() {
		t.Helper()
		if o := <-done; o.Errno != 0 {
			t.Error(o.Errno)
		}
	}
}

func TestAProgramThatEndsWhileItsPortIsAskedForLeavesNoSubscription(t *testing.T) {
	r, d := newRoom(t)
	_, end := listens(t, r)
	<-d.asked
	r.Drain(t.Context())
	d.answer <- wire.Reply{ID: 7}
	end()
	if id := <-d.closed; id != 7 {
		t.Errorf("gave back %d", id)
	}
}

// The kernel's tables are older than what was noted while they were read.
func TestAListenWhileTheProgramsListenersAreLookedForKeepsItsPort(t *testing.T) {
	r, d := newRoom(t)
	d.answer <- wire.Reply{ID: 7}
	var port uint16
	r.sweep(func(network string, f func(inet.Row)) error {
		err := inet.Sockets(network, f)
		if network == "udp" {
			var end func()
			port, end = listens(t, r)
			end()
		}
		return err
	})
	r.sweep(inet.Sockets)
	select {
	case <-d.closed:
		t.Error("the port was given back")
	default:
	}
	if !r.OwnTCP(port) {
		t.Error("the program does not listen on it")
	}
}

// The agent catches connections from the moment that it has the port, which the program is told later.
func TestAConnectionThatComesBeforeTheAnswerReachesTheProgram(t *testing.T) {
	r, d := newRoom(t)
	port, end := listens(t, r)
	<-d.asked
	session, agent := tunnel.Pipe()
	defer agent.Close()
	defer session.Close()
	ours, err := session.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := agent.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		r.Serve(ours, wire.Incoming{Subscription: 7, Local: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.2"), port)})
	}()
	var reply wire.Reply
	if err := wire.Read(theirs, &reply); err != nil || reply.Errno != 0 {
		t.Errorf("%+v, %v", reply, err)
	}
	theirs.Reset(0)
	_, _ = io.Copy(io.Discard, theirs)
	<-served
	d.answer <- wire.Reply{ID: 7}
	end()
	r.release()
	<-d.closed
}
