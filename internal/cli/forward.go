package cli

import (
	"context"
	"errors"
	"fmt"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/stead-dev/stead/internal/fault"
	"github.com/stead-dev/stead/internal/forward"
	"github.com/stead-dev/stead/internal/wire"
)

// targetFlags are those of every command that stands an agent beside a target.
type targetFlags struct {
	target  string
	follow  time.Duration
	cluster clusterFlags
	agent   agentFlags
}

func (f *targetFlags) add(a *app, c *cobra.Command) {
	c.Flags().StringVarP(&f.target, "target", "t", "", "KIND/NAME[/container/NAME], label/KEY=VALUE, playground/POD, process/PID")
	c.Flags().DurationVar(&f.follow, "follow", time.Minute, "how long to wait for a pod in the place of one that ended; 0 ends with the pod")
	f.cluster.add(c.Flags())
	f.agent.add(c.Flags(), a.env)
}

// withTarget runs f, which takes incoming traffic by mode, beside the target until Ctrl-C.
func (a *app) withTarget(ctx context.Context, tf *targetFlags, mode wire.Mode, f func(context.Context, forward.Options) error) error {
	if tf.target == "" {
		return fault.With(errors.New("no target"), "--target playground/orders (stead ls lists those of a cluster)")
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	t, err := a.openTarget(ctx, tf.target, &tf.cluster, &tf.agent, false)
	if err != nil {
		return err
	}
	defer t.Close()
	if w := ofNode(t.pod, t.node, mode); w != "" {
		fmt.Fprintln(a.stderr, "warning:", w)
	}
	return f(ctx, forward.Options{Dial: t.Dial, Pod: t.pod, Pods: t.pods, Follow: tf.follow, Build: Version, Target: tf.target, Says: a.says})
}

func newPortForwardCommand(a *app) *cobra.Command {
	var tf targetFlags
	var local, remote []string
	c := &cobra.Command{
		Use:   "port-forward --target TARGET [-L [BIND:]PORT:HOST:PORT]... [-R POD-PORT:[HOST:]PORT]...",
		Short: "Carry single ports between the laptop and a target, until Ctrl-C",
		Long: `-L listens on the laptop; each connection is made from the target, HOST being looked up as the
target would. -R brings the target's new connections to POD-PORT to the laptop instead of the app;
what the laptop does not take goes to the app.`,
		Example: `  stead port-forward -t deployment/orders -L 5432:db:5432
  stead port-forward -t playground/orders -R 8080:3000`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			var locals []forward.Local
			var remotes []forward.Remote
			for _, s := range local {
				l, err := forward.ParseLocal(s)
				if err != nil {
					return err
				}
				locals = append(locals, l)
			}
			for _, s := range remote {
				r, err := forward.ParseRemote(s)
				if err != nil {
					return err
				}
				remotes = append(remotes, r)
			}
			if len(locals)+len(remotes) == 0 {
				return fault.With(errors.New("no port to carry"), "-L 5432:db:5432 or -R 8080:3000")
			}
			var mode wire.Mode
			if remotes != nil {
				mode = wire.Steal
			}
			return a.withTarget(c.Context(), &tf, mode, func(ctx context.Context, o forward.Options) error {
				return forward.Ports(ctx, o, locals, remotes)
			})
		},
	}
	c.Flags().StringArrayVarP(&local, "local", "L", nil, "[BIND:]PORT:HOST:PORT: from the laptop to what the target reaches (repeatable)")
	c.Flags().StringArrayVarP(&remote, "remote", "R", nil, "POD-PORT:[HOST:]PORT: from the target to the laptop (repeatable)")
	tf.add(a, c)
	return c
}

func newDumpCommand(a *app) *cobra.Command {
	var tf targetFlags
	var ports []uint
	c := &cobra.Command{
		Use:     "dump --target TARGET -p PORT",
		Short:   "Print what reaches a port of a target, while its app answers",
		Example: "  stead dump -t deployment/orders -p 8080",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if len(ports) == 0 {
				return fault.With(errors.New("no port"), "-p 8080")
			}
			var ps []uint16
			for _, p := range ports {
				if p == 0 || p > 65535 {
					return fault.With(fmt.Errorf("-p %d: no port", p), "-p 8080")
				}
				ps = append(ps, uint16(p))
			}
			return a.withTarget(c.Context(), &tf, "", func(ctx context.Context, o forward.Options) error {
				return forward.Dump(ctx, o, ps, a.stdout)
			})
		},
	}
	c.Flags().UintSliceVarP(&ports, "port", "p", nil, "port of the target (repeatable, or with commas)")
	tf.add(a, c)
	return c
}

func newDiagnoseCommand(a *app) *cobra.Command {
	c := &cobra.Command{Use: "diagnose", Short: "Measure the way to a target",
		RunE: func(c *cobra.Command, _ []string) error {
			return fault.With(errors.New("nothing to measure"), "stead diagnose latency --target playground/orders")
		}}
	var tf targetFlags
	var count uint
	var to string
	latency := &cobra.Command{
		Use:     "latency --target TARGET [--count N] [--to HOST:PORT]",
		Short:   "Measure how long the agent's answers take, and connections from the target",
		Example: "  stead diagnose latency -t deployment/orders --to db:5432",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if count == 0 || count > 1_000_000 {
				return fault.With(fmt.Errorf("--count %d: want 1 to 1000000", count), "--count 100")
			}
			var l forward.Local
			if to != "" {
				var err error
				if l, err = forward.ParseLocal("0:" + to); err != nil || strings.Count(to, ":") == 0 {
					return fault.With(fmt.Errorf("--to %s: want HOST:PORT", to), "--to db:5432")
				}
			}
			return a.withTarget(c.Context(), &tf, "", func(ctx context.Context, o forward.Options) error {
				return forward.Latency(ctx, o, int(count), l, a.stdout)
			})
		},
	}
	latency.Flags().UintVar(&count, "count", 100, "how often")
	latency.Flags().StringVar(&to, "to", "", "HOST:PORT to connect to from the target as well")
	tf.add(a, latency)
	c.AddCommand(latency)
	return c
}
