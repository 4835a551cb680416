package incoming

import (
	"context"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/intercept"
	"github.com/stead-dev/stead/internal/session/pod"
	"github.com/stead-dev/stead/internal/wire"
)

// slowPod is an agent that answers when it is told to.
type slowPod struct {
	asked, answer chan struct{}
	closed        chan struct{}
}

func newSlowPod() *slowPod {
	return &slowPod{make(chan struct{}), make(chan struct{}), make(chan struct{})}
}

func (p *slowPod) Subscribe(context.Context, wire.Subscribe) (*pod.Subscription, wire.Reply, error) {
	close(p.asked)
	<-p.answer
	return pod.NewSubscription(1, func() { close(p.closed) }), wire.Reply{ID: 1}, nil
}

// socket is a TCP socket of a program's, bound to a port of the loopback.
func socket(t *testing.T) *intercept.Socket {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		t.Cleanup(func() { unix.Close(fd) })
		err = unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	}
	if err != nil {
		t.Fatal(err)
	}
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		t.Fatal(err)
	}
	return &intercept.Socket{FD: fd, Cookie: cookie, Family: unix.AF_INET, Type: unix.SOCK_STREAM}
}

func TestAPortThatIsStillAskedForWhenTheProgramEndsIsGivenBack(t *testing.T) {
	p := newSlowPod()
	r := New(Config{Mode: wire.Steal, Pod: p, Trouble: func(err error) { t.Error(err) }})
	o := r.Listen(socket(t), 1)
	done := make(chan intercept.Outcome)
	go func() { done <- o.Later(context.Background()) }()
	<-p.asked
	r.Drain(context.Background())
	close(p.answer)
	<-done
	<-p.closed
	r.Close()
}
