package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/stead-dev/stead/internal/fault"
	"github.com/stead-dev/stead/internal/kube"
	"github.com/stead-dev/stead/internal/local"
	"github.com/stead-dev/stead/internal/session/seats"
	"github.com/stead-dev/stead/internal/tunnel"
)

// clusterFlags say which cluster and as whom, as kubectl's do.
type clusterFlags struct {
	kube.Access
	all *pflag.FlagSet // of the command
}

func (f *clusterFlags) add(fs *pflag.FlagSet) {
	f.all = fs
	fs.StringVar(&f.Kubeconfig, "kubeconfig", "", "path of the kubeconfig (default: as kubectl finds it)")
	fs.StringVar(&f.Context, "context", "", "context of the kubeconfig")
	fs.StringVarP(&f.Namespace, "namespace", "n", "", "namespace of the target (default: the context's)")
	fs.StringVar(&f.As, "as", "", "user to impersonate")
	fs.StringArrayVar(&f.AsGroups, "as-group", nil, "group to impersonate (repeatable)")
}

// given are the flags on the command line that mean nothing for a target on this machine.
func (f *clusterFlags) given() (names []string) {
	f.all.Visit(func(x *pflag.Flag) {
		switch name, _, _ := strings.Cut(x.Name, "-"); name {
		case "kubeconfig", "context", "namespace", "as", "agent", "replica":
			names = append(names, "--"+x.Name)
		}
	})
	return names
}

// agentFlags say how an agent is started.
type agentFlags struct {
	o                        kube.Options
	labels, notes, selector  []string
	cpu, memory, tolerations []string
}

func (f *agentFlags) add(fs *pflag.FlagSet, env []string) {
	fs.StringVar(&f.o.Image, "agent-image", environ(env, "STEAD_AGENT_IMAGE"), "the agent's image (default: $STEAD_AGENT_IMAGE; stead agent image makes one)")
	fs.StringVar((*string)(&f.o.Mode), "agent", string(kube.ModeJob), "how the agent is put beside the target: job, or ephemeral (a container in its pod)")
	fs.StringVar(&f.o.Namespace, "agent-namespace", "", "namespace of the agent (default: the target's)")
	fs.StringArrayVar(&f.labels, "agent-label", nil, "KEY=VALUE on the agent's pod (repeatable)")
	fs.StringArrayVar(&f.notes, "agent-annotation", nil, "KEY=VALUE on the agent's pod (repeatable)")
	fs.StringArrayVar(&f.selector, "agent-node-selector", nil, "KEY=VALUE that the target's node must have (repeatable)")
	fs.StringArrayVar(&f.tolerations, "agent-toleration", nil, "KEY[=VALUE][:EFFECT] of a taint (repeatable; default: all)")
	fs.StringArrayVar(&f.cpu, "agent-cpu", nil, "REQUEST or LIMIT of the agent's CPU, as request=10m or limit=1 (repeatable; a plain 100m is both)")
	fs.StringArrayVar(&f.memory, "agent-memory", nil, "the same for its memory, say 64Mi")
	fs.StringVar(&f.o.PriorityClass, "agent-priority", "", "priority class of the agent's pod")
	fs.StringVar(&f.o.ServiceAccount, "agent-service-account", "", "service account of the agent's pod (it gets no token)")
	fs.StringVar(&f.o.PullPolicy, "agent-pull-policy", "", "Always, IfNotPresent or Never")
	fs.StringArrayVar(&f.o.PullSecrets, "agent-pull-secret", nil, "secret by which the image is pulled (repeatable)")
	fs.StringVar(&f.o.SeccompProfile, "agent-seccomp", "", "RuntimeDefault or Unconfined (default RuntimeDefault)")
	fs.StringVar(&f.o.LogLevel, "agent-log-level", "", "what kubectl logs shows of the agent: error, info or debug (default info)")
	fs.DurationVar(&f.o.TTL, "agent-ttl", 0, "how long the cluster keeps the agent's Job when it has ended, say to read its log (default 2s)")
	fs.DurationVar(&f.o.Linger, "agent-linger", 0, "how long the agent waits for a next session (default 5s)")
	fs.DurationVar(&f.o.Resume, "agent-resume", 0, "how long a session may be cut off (default 40s)")
	fs.DurationVar(&f.o.StartupTimeout, "agent-startup-timeout", 0, "how long the agent may take to start (default 60s)")
	fs.StringVar(&f.o.Replica, "replica", "all", "where the target has several pods: all (incoming traffic of all), one, or a pod's name")
}

// options checks the flags.
func (f *agentFlags) options() (o kube.Options, err error) {
	o = f.o
	if o.Replica == "all" {
		o.Replica = ""
	}
	if o.Mode != kube.ModeJob && o.Mode != kube.ModeEphemeral {
		return o, fault.With(fmt.Errorf("--agent %s: no such way", o.Mode), "--agent job or ephemeral")
	}
	for _, m := range []struct {
		flag string
		in   []string
		out  *map[string]string
	}{{"--agent-label", f.labels, &o.Labels}, {"--agent-annotation", f.notes, &o.Annotations}, {"--agent-node-selector", f.selector, &o.NodeSelector}} {
		for _, kv := range m.in {
			k, v, ok := strings.Cut(kv, "=")
			if !ok || k == "" {
				return o, fault.With(fmt.Errorf("%s %s: not KEY=VALUE", m.flag, kv), m.flag+" team=shop")
			}
			if *m.out == nil {
				*m.out = make(map[string]string)
			}
			(*m.out)[k] = v
		}
	}
	for _, m := range []struct {
		name string
		in   []string
	}{{"cpu", f.cpu}, {"memory", f.memory}} {
		for _, s := range m.in {
			which, v, both := strings.Cut(s, "=")
			if !both {
				v = which
			}
			switch {
			case v == "" || both && which != "request" && which != "limit":
				return o, fault.With(fmt.Errorf("--agent-%s %s: not an amount", m.name, s), fmt.Sprintf("--agent-%s request=AMOUNT, limit=AMOUNT or AMOUNT for both", m.name))
			}
			if !both || which == "request" {
				set(&o.Resources.Requests, m.name, v)
			}
			if !both || which == "limit" {
				set(&o.Resources.Limits, m.name, v)
			}
		}
	}
	for _, s := range f.tolerations {
		t := kube.Toleration{Operator: "Exists"}
		rest, effect, _ := strings.Cut(s, ":")
		t.Effect = effect
		var withValue bool
		if t.Key, t.Value, withValue = strings.Cut(rest, "="); withValue {
			t.Operator = "Equal"
		}
		o.Tolerations = append(o.Tolerations, t)
	}
	for _, c := range []struct {
		flag, got string
		want      []string
	}{
		{"--agent-log-level", o.LogLevel, []string{"error", "info", "debug"}},
		{"--agent-seccomp", o.SeccompProfile, []string{"RuntimeDefault", "Unconfined"}},
		{"--agent-pull-policy", o.PullPolicy, []string{"Always", "IfNotPresent", "Never"}},
	} {
		if c.got != "" && !slices.Contains(c.want, c.got) {
			return o, fault.With(fmt.Errorf("%s %s: none of %s", c.flag, c.got, strings.Join(c.want, ", ")), c.flag+" "+c.want[0])
		}
	}
	for _, d := range []time.Duration{o.TTL, o.Linger, o.Resume, o.StartupTimeout} {
		if d < 0 {
			return o, fault.With(errors.New("a time below zero"), "--agent-linger 30s")
		}
	}
	return o, nil
}

func set(m *map[string]string, k, v string) {
	if *m == nil {
		*m = make(map[string]string)
	}
	(*m)[k] = v
}

// targetless is the target of --targetless: a pod of ours. No target can be named so.
const targetless = "(a pod of ours)"

// isLocal says whether a target is on this machine.
func isLocal(target string) bool {
	kind, _, _ := strings.Cut(target, "/")
	return kind == "playground" || kind == "process"
}

// standing is a target with an agent beside it.
type standing struct {
	local.Target
	pod  string       // "" where that is the target itself
	pods seats.Source // follows its pods, nil where there is that one alone

	node   string              // whose network the pod has, "" for one of its own
	probes map[uint16][]string // paths that the kubelet asks it for, by port
}

// openTarget stands an agent beside the target, wherever that is.
func (a *app) openTarget(ctx context.Context, target string, cf *clusterFlags, af *agentFlags, quiet bool) (*standing, error) {
	if isLocal(target) {
		t, err := local.Resolve(ctx, target)
		if err != nil {
			return nil, err
		}
		if f := cf.given(); len(f) > 0 {
			fmt.Fprintf(a.stderr, "warning: %s: without effect, %s is on this machine\n", strings.Join(f, ", "), target)
		}
		st := &standing{Target: *t}
		if t.Stays != nil {
			st.pods = seats.Same(target, t.Dial, t.Stays)
		}
		return st, nil
	}
	var spec kube.Spec
	o, err := af.options()
	if err == nil && target != targetless {
		spec, err = kube.ParseTarget(target)
	}
	if err != nil {
		return nil, err
	}
	if !quiet {
		o.Notice = func(s string) { a.says.Say("stead: " + s) }
	}
	c, err := a.client(cf)
	if err != nil {
		return nil, err
	}
	var t *kube.Target
	if target == targetless {
		t, err = c.OpenTargetless(ctx, o)
	} else {
		t, err = c.Open(ctx, spec, o)
	}
	if err != nil {
		return nil, err
	}
	s := &standing{Target: local.Target{Dial: t.Dial, Close: t.Close}, pod: t.Pod, node: t.Node, probes: t.Probes}
	if t.Follow != nil {
		s.pods = func(ctx context.Context, all bool, first *seats.Seat, join seats.Join, ready func()) error {
			return t.Follow(ctx, all, first, func(ctx context.Context, name string, dial tunnel.Dialer) (kube.Seat, error) {
				seat, err := join(ctx, name, dial)
				if err != nil {
					return nil, err // not a nil *Seat
				}
				return seat, nil
			}, ready)
		}
	}
	return s, nil
}

func (a *app) client(cf *clusterFlags) (*kube.Client, error) {
	access := cf.Access
	if access.Kubeconfig != "" {
		if _, err := os.Stat(access.Kubeconfig); err != nil {
			return nil, fault.With(fmt.Errorf("--kubeconfig: %w", err), "kubectl config view shows the one in use")
		}
	}
	return kube.Load(access)
}
