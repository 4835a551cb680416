package agent

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"strings"

	"github.com/stead-dev/stead/internal/fault"
	"github.com/stead-dev/stead/internal/knock"
)

// Main is the agent's command line, of stead-agent and of `stead agent serve` alike. It returns
// the exit code.
func Main(ctx context.Context, args, env []string, build string, stderr io.Writer) int {
	fs := flag.NewFlagSet("stead-agent", flag.ContinueOnError)
	fs.SetOutput(stderr)
	pid := fs.Int("pid", 0, "the target's main process")
	container := fs.String("container-id", "", "the target as the container runtime names it, instead of --pid")
	self := fs.Bool("self", false, "the target is this process, where there is none: for names and outgoing connections alone")
	control := fs.Int("control-fd", -1, "inherited socket over which transports are passed")
	conn := fs.Int("conn-fd", -1, "inherited socket that is the only transport")
	listen := fs.String("listen", "", "address to listen on for transports; needs STEAD_AGENT_SECRET")
	linger := fs.Duration("linger", defaultLinger, "how long to wait for a session")
	resume := fs.Duration("resume", 0, "how long a session may be away (0: 60s for --listen, not at all for --control-fd)")
	steal := fs.String("steal", "auto", "how connections are stolen: auto, sk_lookup or nft")
	level := fs.String("log-level", "", "what is told on standard error: error, info or debug (default: info for --listen, else error)")
	if err := fs.Parse(args); err != nil {
		return 2
	}
	if *level == "" {
		*level = levelError // beside a session, whose terminal it is
		if *listen != "" {
			*level = levelInfo // in a cluster, which keeps it
		}
	}
	// A small heap that is given back: most of the time there is nothing to do.
	debug.SetGCPercent(50)
	c := Config{PID: *pid, Linger: *linger, Resume: *resume, Steal: *steal, Build: build}
	err := func() (err error) {
		if c.Log, err = newLog(stderr, *level); err != nil {
			return err
		}
		if *container != "" {
			if c.PID, err = findContainer(*container); err != nil {
				return err
			}
		}
		if *self {
			c.PID = os.Getpid()
		}
		switch {
		case c.PID <= 0:
			return errors.New("no target: --pid, --container-id or --self")
		case *control >= 0:
			if c.Resume == 0 {
				c.Resume = -1 // a local socket does not break: its end is the session's
			}
			c.Listener, err = ControlListener(*control)
		case *conn >= 0:
			c.Resume = -1
			c.Listener, err = ConnListener(*conn)
		case *listen != "":
			var secret []byte
			for _, kv := range env {
				if s, ok := strings.CutPrefix(kv, "STEAD_AGENT_SECRET="); ok {
					secret = []byte(s)
				}
			}
			if len(secret) == 0 {
				return errors.New("--listen without a secret in STEAD_AGENT_SECRET")
			}
			var l net.Listener
			if l, err = net.Listen("tcp", *listen); err == nil {
				c.Listener = knock.Listen(l, secret, func(err error) { c.Log.Error("refused", slog.Any("err", err)) })
			}
		default:
			return errors.New("nowhere to listen: --control-fd, --conn-fd or --listen")
		}
		if err != nil {
			return err
		}
		return Run(ctx, c)
	}()
	if err != nil {
		fmt.Fprintln(stderr, "error:", err)
		if h := fault.Hint(err); h != "" {
			fmt.Fprintln(stderr, "hint:", h)
		}
		return 1
	}
	return 0
}
