// Package session is one run of a program in a pod's stead, from start to end: it greets the
// agent, starts the program under the interceptor, answers what the interceptor asks from its
// rooms (outgoing, incoming, the pod's files), and ends with the program.
//
// Who owns what: Run owns everything and gives it back in reverse order before it returns. When the
// pod ends, another one's agent takes its place (package seats), under what the program has open; when
// there is none, the program is ended, for half of what it sees would be a lie. When
// this process is killed, the guard ends the program (package launch), the kernel closes our
// sockets, and the agent, seeing the tunnel end, gives the pod's connections back.
package session

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"time"

	"github.com/stead-dev/stead/internal/fault"
	"github.com/stead-dev/stead/internal/intercept"
	"github.com/stead-dev/stead/internal/intercept/mountns"
	"github.com/stead-dev/stead/internal/intercept/notify"
	"github.com/stead-dev/stead/internal/launch"
	"github.com/stead-dev/stead/internal/podfs"
	"github.com/stead-dev/stead/internal/policy"
	"github.com/stead-dev/stead/internal/session/incoming"
	"github.com/stead-dev/stead/internal/session/outgoing"
	"github.com/stead-dev/stead/internal/session/seats"
	"github.com/stead-dev/stead/internal/sys"
	"github.com/stead-dev/stead/internal/wire"
)

// Run runs the program and returns its exit code. An error means that stead failed, whatever the
// program did.
func Run(ctx context.Context, o Options) (int, error) {
	path, err := launch.LookPath(o.Argv[0], getenv(o.Env, "PATH"), o.Dir)
	if err != nil {
		return 0, err
	}
	s := &run{o: o, move: make(chan struct{}, 1)}
	defer s.close()
	// What this machine does for the program goes on while the pod is asked.
	begun, planned := make(chan error, 1), make(chan *files, 1)
	go func() { begun <- s.begin(s.o.Files.Door) }()
	go func() { planned <- planFiles(s, path) }()
	err = s.attach(ctx)
	berr := <-begun
	s.files = <-planned
	if err = errors.Join(berr, err); err != nil {
		return 0, err
	}
	if err := s.rooms(); err != nil {
		return 0, err
	}
	if err := s.files.open(); err != nil {
		return 0, err
	}
	signals := catchSignals()
	defer signal.Stop(signals)
	if err := s.start(ctx, path); err != nil {
		return 0, err
	}
	return s.wait(ctx, signals)
}

// run is the state of one Run. Only its goroutine touches the fields; the rooms and the
// supervisor have their own locks.
type run struct {
	o     Options
	pods  *seats.Room
	first *wire.Target  // the pod as the program was started with it
	move  chan struct{} // another pod is stood for
	in    *incoming.Room
	out   *outgoing.Room
	files *files
	sup   *notify.Supervisor
	proc  *launch.Process
}

// close gives back what was taken, in reverse order.
func (s *run) close() {
	if s.proc != nil {
		s.proc.Kill()
	}
	if s.sup != nil {
		s.sup.Close()
	}
	if s.in != nil {
		s.in.Close()
	}
	if s.out != nil {
		s.out.Close()
	}
	if s.files != nil {
		s.files.close()
	}
	if s.pods != nil {
		s.pods.Close()
	}
}

// attach reaches the agent, and those beside the target's other pods.
func (s *run) attach(ctx context.Context) error {
	s.in = incoming.New(incoming.Config{Mode: s.o.Incoming, Probes: s.o.Probes, PodAddr: s.podAddr, Trouble: s.trouble, Notice: s.notice})
	s.pods = seats.New(seats.Config{
		Target: s.o.Target, Hello: wire.Hello{Build: s.o.Build, Secret: s.o.Secret}, Wait: s.o.Follow,
		Incoming: s.in.Serve, Event: s.event, Notice: s.tell, Trouble: s.trouble, Moved: s.moved,
	})
	s.in.SetPod(s.pods)
	if err := s.pods.Begin(ctx, s.o.Pod, s.o.Dial); err != nil {
		return err
	}
	s.first = s.pods.Target()
	if s.o.Pods != nil {
		s.pods.Follow(ctx, s.o.Pods, s.o.All && s.o.Incoming != "")
	}
	return nil
}

// podAddr says whether an address is the pod's, or that of the one whose environment the program has.
func (s *run) podAddr(a netip.Addr) bool {
	return slices.Contains(s.first.Addrs, a) || slices.Contains(s.pods.Target().Addrs, a)
}

// moved is told that another pod is stood for. What is open goes on as long as the old one does.
func (s *run) moved() {
	select {
	case s.move <- struct{}{}:
	default: // it is known already
	}
}

// network is what of the pod the outgoing connections need to know.
func (s *run) network() outgoing.Network {
	t := s.pods.Target()
	return outgoing.Network{Policy: policy.Network{Laptop: s.o.Laptop, Nameservers: t.Nameservers}, Addrs: t.Addrs}
}

func (s *run) rooms() (err error) {
	s.out, err = outgoing.New(outgoing.Config{
		Pod:     s.pods,
		Network: s.network(),
		OwnTCP:  s.in.OwnTCP,
		OwnUDP:  s.in.OwnUDP,
		Heard:   s.in.Heard,
		Trouble: s.trouble,
	})
	return err
}

// begin starts the processes that become the program through door, while we find out what it is to
// see.
func (s *run) begin(door Door) (err error) {
	admin := launch.Admin()
	ns := launch.Namespaces{UTS: admin && door != DoorNone}
	if door == DoorMount || door == DoorAuto {
		ns = launch.Namespaces{Mount: true, UTS: true, User: !admin}
	}
	s.proc, err = launch.Begin(ns)
	return err
}

func (s *run) start(ctx context.Context, path string) (err error) {
	t := s.first
	h := &handler{in: s.in, out: s.out, node: t.Hostname, nis: t.Domain, trouble: s.trouble}
	spec := launch.Spec{
		Path: path, Argv: s.o.Argv, Env: policy.Environment(s.o.Env, t.Env, s.files.paths),
		Hostname: t.Hostname, Domain: t.Domain,
		Serve: func(l sys.Listener) (err error) {
			var tree intercept.Tree
			if s.files.copies != nil {
				tree = copyTree{s.files.tree, s.files.copies}
			} else if s.files.tree != nil {
				tree = s.files.tree
			}
			if s.files.fs != nil {
				s.files.fs.Furnished()
			}
			s.sup, err = notify.Start(l, h, tree)
			return err
		},
	}
	door := s.o.Files.Door
	if door == DoorMount || door == DoorAuto {
		through := spec
		if err = s.files.mount(&through); err != nil {
			return err
		}
		err = s.proc.Run(ctx, through)
		var un *mountns.Unavailable
		if !errors.As(err, &un) {
			return err
		}
		s.proc.Kill()
		err = fault.With(fmt.Errorf("no mount namespace for the pod's files: %w", err), mountHint(err))
		if door == DoorMount {
			return err
		}
		s.files.fs = nil // it was never served
		if err := s.begin(DoorTrap); err != nil {
			return err
		}
		trapped := spec
		if terr := s.files.trap(&trapped, t); terr == nil {
			s.trouble(fault.With(fmt.Errorf("%w; each path call of the program is trapped instead, which costs it about 8 us", err), fault.Hint(err)))
			return s.proc.Run(ctx, trapped)
		}
		s.trouble(fault.With(fmt.Errorf("%w, and no FUSE; each path call of the program is trapped instead, which costs it about 10 us, and files are copied when they are opened, up to %d MiB each", err, podfs.MaxCopy>>20), fault.Hint(err)))
		door = DoorCopy
	}
	switch door {
	case DoorNone:
		spec.Filter.Uname = true
	case DoorTrap:
		if terr := s.files.trap(&spec, t); terr != nil {
			return fault.With(fmt.Errorf("no file system for the pod's files: %w", terr), mountHint(terr))
		}
	case DoorCopy:
		if err := s.files.copy(&spec, t); err != nil {
			return fault.With(fmt.Errorf("no place for copies of the pod's files: %w", err), "TMPDIR=/a/directory/with/room stead exec ... (or --files none)")
		}
	}
	return s.proc.Run(ctx, spec)
}

// wait follows the program to its end, passing on signals.
func (s *run) wait(ctx context.Context, signals chan os.Signal) (int, error) {
	stop := forwardSignals(signals, s.proc)
	defer stop()
	for on := true; on; {
		select {
		case <-s.proc.Done():
			on = false
		case <-s.move:
			s.out.SetNetwork(s.network())
			s.files.move()
		case <-ctx.Done():
			s.end()
			return 0, context.Cause(ctx)
		case <-s.pods.Lost():
			s.end()
			err := s.pods.Err()
			return 0, fault.With(fmt.Errorf("%w; the program was ended", err), fault.Hint(err))
		}
	}
	s.end()
	s.drain(ctx)
	return s.proc.ExitCode(), nil
}

// drainTime bounds how long the connections of a program that has ended are waited for.
const drainTime = 2 * time.Second

// drain lets what the program wrote before its end reach the other ends.
func (s *run) drain(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, drainTime)
	defer cancel()
	go func() { // an agent that is gone takes nothing any more
		select {
		case <-s.pods.Lost():
			cancel()
		case <-ctx.Done():
		}
	}()
	s.in.Drain(ctx)
	s.out.Drain(ctx)
}

// graceTime is how long what the program left behind has to end after SIGTERM.
const graceTime = 2 * time.Second

// end ends what still runs of the program's tree: none of it could go on without us.
func (s *run) end() {
	n := s.proc.Leftovers()
	if n == 0 {
		return
	}
	select {
	case <-s.proc.Done():
		s.notice(fmt.Sprintf("the program has ended; ending %d process(es) that it left running", n))
	default:
	}
	s.proc.Terminate()
	for end := time.Now().Add(graceTime); s.proc.Leftovers() > 0 && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
}

func (s *run) event(e wire.Event) { s.notice(e.Text) }

// trouble tells what the program's errno cannot; the same line once.
func (s *run) trouble(err error) {
	s.o.Says.Once("warning: " + err.Error())
	if hint := fault.Hint(err); hint != "" {
		s.o.Says.Once("hint: " + hint)
	}
}

func (s *run) notice(text string) {
	if !s.o.Quiet {
		s.o.Says.Once("stead: " + text)
	}
}

// tell is notice for what may happen more than once.
func (s *run) tell(text string) {
	if !s.o.Quiet {
		s.o.Says.Say("stead: " + text)
	}
}

func getenv(env []string, key string) string {
	for _, kv := range env {
		if len(kv) > len(key) && kv[len(key)] == '=' && kv[:len(key)] == key {
			return kv[len(key)+1:]
		}
	}
	return ""
}
