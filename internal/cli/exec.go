package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/stead-dev/stead/internal/fault"
	"github.com/stead-dev/stead/internal/policy"
	"github.com/stead-dev/stead/internal/session"
	"github.com/stead-dev/stead/internal/wire"
)

// execFlags are the flags of stead exec as the user gave them.
type execFlags struct {
	target        string
	targetless    bool
	steal, mirror bool
	noIncoming    bool
	stealProbes   bool
	files         string
	filesLaptop   []string
	filesPod      []string
	laptop        []string
	follow        time.Duration
	quiet         bool
	cluster       clusterFlags
	agent         agentFlags
}

func newExecCommand(a *app) *cobra.Command {
	var f execFlags
	c := &cobra.Command{
		Use:   "exec --target TARGET [flags] -- PROGRAM [ARGS]",
		Short: "Run a program on the laptop in a pod's stead",
		Long: `Run PROGRAM on the laptop as it is. Its environment, files, host name, DNS and outgoing
connections are the target's; what reaches a port of the target on which PROGRAM listens is
copied to it (--mirror, the default) or brought to it instead (--steal).

TARGET is in a Kubernetes cluster: pod/NAME, deployment/NAME, statefulset/NAME, daemonset/NAME,
replicaset/NAME, job/NAME, cronjob/NAME, service/NAME, any other kind that owns pods (its name, or
NAME.GROUP), or label/KEY=VALUE,...; /container/NAME behind it names one of several containers.
--targetless instead of a target gives the cluster's names and outgoing connections alone.
Or the target is on this machine: playground/POD (see "stead playground up") or process/PID.

Exit codes: PROGRAM's own (128+N when signal N ended it), 125 when stead failed, 126 when PROGRAM
cannot be executed, 127 when it was not found.`,
		Example: `  stead exec --target deployment/orders -n shop -- go run .
  stead exec --target playground/orders -- python3 app.py
  stead exec --target playground/orders --steal -- ./orders`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return fault.With(errors.New("no program to run"), c.CommandPath()+" --target TARGET -- PROGRAM ARGS")
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			err := a.exec(c.Context(), &f, args)
			var limit syscall.Rlimit
			if errors.Is(err, syscall.EMFILE) && syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) == nil {
				// In the place of any other advice: who gave that had another reason in mind.
				err = &fault.Error{Err: err, Exit: fault.Exit(err),
					Hint: fmt.Sprintf("sudo prlimit --nofile=65536 --pid $$ (for this shell, where at most %d files can be open; each of the program's connections takes some)", limit.Max)}
			}
			// What nobody had an advice for: doctor looks whether this machine and the target have what is needed.
			return fault.With(err, "stead doctor --target "+cmp.Or(f.target, "TARGET"))
		},
	}
	// Flags after PROGRAM are PROGRAM's, with and without "--".
	c.Flags().SetInterspersed(false)
	c.Flags().StringVarP(&f.target, "target", "t", "", "in whose stead: KIND/NAME[/container/NAME], label/KEY=VALUE, playground/POD, process/PID")
	c.Flags().BoolVar(&f.targetless, "targetless", false, "in nobody's stead: the cluster's names and outgoing connections alone, from a pod of ours")
	c.Flags().BoolVar(&f.steal, "steal", false, "bring the target's new connections to the program instead of the app")
	c.Flags().BoolVar(&f.mirror, "mirror", false, "copy the target's connections to the program while the app answers (default)")
	c.Flags().BoolVar(&f.noIncoming, "no-incoming", false, "leave the target's incoming traffic alone")
	c.Flags().BoolVar(&f.stealProbes, "steal-probes", false, "bring the kubelet's HTTP probes to the program, too (default: the app goes on answering them)")
	c.Flags().StringVar(&f.files, "files", string(session.DoorAuto), "how the target's files are shown: auto, mount (a namespace), trap (path calls are caught), copy (the same without /dev/fuse) or none")
	c.Flags().StringArrayVar(&f.filesLaptop, "files-laptop", nil, "a path that stays on the laptop (repeatable)")
	c.Flags().StringArrayVar(&f.filesPod, "files-pod", nil, "a path that is the target's (repeatable)")
	c.Flags().StringArrayVar(&f.laptop, "outgoing-laptop", nil, "ADDRESS[/BITS][:PORT] that is connected from the laptop (repeatable)")
	c.Flags().DurationVar(&f.follow, "follow", time.Minute, "how long to wait for a pod in the place of one that ended; 0 ends PROGRAM with its pod")
	c.Flags().BoolVarP(&f.quiet, "quiet", "q", false, "print warnings and errors only")
	f.cluster.add(c.Flags())
	f.agent.add(c.Flags(), a.env)
	return c
}

func (a *app) exec(ctx context.Context, f *execFlags, argv []string) error {
	o, err := f.options()
	if err != nil {
		return err
	}
	// Before anything of ours is put beside the target.
	if err := session.Supported(); err != nil {
		return err
	}
	if environ(a.env, "GOGC") == "" {
		// A session's start makes some MB of garbage, and a session has little else to collect:
		// collecting at 16 MB instead of 4 takes a tenth off the start.
		debug.SetGCPercent(400)
	}
	if o.Dir, err = os.Getwd(); err != nil {
		return fault.With(fmt.Errorf("working directory: %w", err), "cd to a directory that exists")
	}
	t, err := a.openTarget(ctx, f.target, &f.cluster, &f.agent, f.quiet)
	if err != nil {
		return err
	}
	defer t.Close()
	o.Pod, o.Pods, o.All = t.pod, t.pods, true
	if w := ofNode(t.pod, t.node, o.Incoming); w != "" {
		fmt.Fprintln(a.stderr, "warning:", w)
	}
	if !f.stealProbes {
		o.Probes = t.probes
	}
	o.Dial, o.Build, o.Target, o.Argv, o.Env, o.Says = t.Dial, Version, f.target, argv, a.env, a.says
	code, err := session.Run(ctx, o)
	if err != nil {
		return err
	}
	return exitCode(code)
}

// ofNode warns of incoming traffic that is a node's and not a pod's alone, "" for nothing.
func ofNode(pod, node string, mode wire.Mode) string {
	if node == "" || mode != wire.Steal {
		return ""
	}
	return fmt.Sprintf("pod %s has the network of its node: what the program listens on is stolen from the whole of node %s, whoever has that port there", pod, node)
}

// options checks the flags.
func (f *execFlags) options() (o session.Options, err error) {
	switch {
	case f.targetless && (f.target != "" || f.steal || f.mirror):
		return o, fault.With(errors.New("--targetless has no target and no incoming traffic"), "stead exec --targetless -- PROGRAM")
	case f.targetless:
		f.target, f.noIncoming = targetless, true
	case f.target == "":
		return o, fault.With(errors.New("no target"), "stead exec --target playground/orders -- PROGRAM (stead playground status lists the pods)")
	}
	switch {
	case f.steal && f.mirror, f.noIncoming && (f.steal || f.mirror):
		return o, fault.With(errors.New("--steal, --mirror and --no-incoming exclude each other"), "stead exec --target "+f.target+" --steal -- PROGRAM (or one of the others)")
	case f.steal:
		o.Incoming = wire.Steal
	case !f.noIncoming:
		o.Incoming = wire.Mirror
	}
	switch d := session.Door(f.files); d {
	case session.DoorAuto, session.DoorMount, session.DoorTrap, session.DoorCopy, session.DoorNone:
		o.Files = session.Files{Door: d, Laptop: f.filesLaptop, Pod: f.filesPod}
	default:
		return o, fault.With(fmt.Errorf("--files %s: no such way", f.files), "stead exec --files auto ... (or mount, trap, copy, none)")
	}
	for _, p := range append(append([]string(nil), f.filesLaptop...), f.filesPod...) {
		if !strings.HasPrefix(p, "/") {
			return o, fault.With(fmt.Errorf("path rule %s: not an absolute path", p), "stead exec --files-laptop $PWD/"+p+" ...")
		}
	}
	for _, s := range f.laptop {
		r, err := parseAddressRule(s)
		if err != nil {
			return o, fault.With(fmt.Errorf("--outgoing-laptop %s: %w", s, err), "stead exec --outgoing-laptop 127.0.0.1:5432 ... (or 192.168.0.0/16, [fd00::]/8)")
		}
		o.Laptop = append(o.Laptop, r)
	}
	if f.follow < 0 {
		return o, fault.With(fmt.Errorf("--follow %v: a time below zero", f.follow), "stead exec --follow 5m ...")
	}
	o.Quiet, o.Follow = f.quiet, f.follow
	return o, nil
}

// parseAddressRule reads ADDRESS[/BITS][:PORT], an IPv6 address in brackets where a port follows.
func parseAddressRule(s string) (r policy.AddressRule, err error) {
	host, port := s, ""
	if i := strings.LastIndexByte(s, ':'); i >= 0 && (strings.Count(s, ":") == 1 || strings.HasPrefix(s, "[") && strings.LastIndexByte(s, ']') < i) {
		host, port = s[:i], s[i+1:]
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return r, fmt.Errorf("port %q", port)
		}
		r.Port = uint16(n)
	}
	addr, bits, hasBits := strings.Cut(host, "/")
	a, err := netip.ParseAddr(strings.Trim(addr, "[]"))
	if err != nil {
		return r, err
	}
	n := a.BitLen()
	if hasBits {
		if n, err = strconv.Atoi(bits); err != nil {
			return r, fmt.Errorf("prefix length %q", bits)
		}
	}
	r.Prefix, err = a.Prefix(n)
	return r, err
}
