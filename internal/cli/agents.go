package cli

import (
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/stead-dev/stead/internal/fault"
	"github.com/stead-dev/stead/internal/kube"
)

// agentRow is an agent as stead agents tells of it.
type agentRow struct {
	Namespace string       `json:"namespace"`
	Pod       string       `json:"pod"`
	Target    string       `json:"target"`
	Node      string       `json:"node"`
	State     string       `json:"state"`
	Image     string       `json:"image"`
	Started   time.Time    `json:"started"`
	Build     string       `json:"build,omitempty"`
	Sessions  []sessionRow `json:"sessions"`
	Error     string       `json:"error,omitempty"` // why it did not say who uses it
}

type sessionRow struct {
	Holder   string   `json:"holder"`
	Build    string   `json:"build"`
	Seconds  int64    `json:"seconds"`
	Incoming []string `json:"incoming"` // MODE:PORT
}

func newAgentsCommand(a *app) *cobra.Command {
	var cf clusterFlags
	var all bool
	var output string
	c := &cobra.Command{
		Use:   "agents",
		Short: "List the agents that are in the cluster, and their sessions",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			client, ns, err := a.clientFor(&cf, all)
			if err != nil {
				return err
			}
			agents, err := client.Agents(c.Context(), ns)
			if err != nil {
				return err
			}
			rows := []agentRow{}
			for i := range agents {
				g := &agents[i]
				r := agentRow{Namespace: g.Namespace, Pod: g.Pod, Target: g.Target, Node: g.Node, State: g.State, Image: g.Image, Started: g.Started, Sessions: []sessionRow{}}
				if !g.Over() {
					st, err := client.Status(c.Context(), g)
					switch {
					case err == nil:
						r.State = "Running" // the kubelet says so a second later
					case r.State == "Running":
						r.Error = err.Error()
					}
					r.Build = st.Build
					for _, s := range st.Sessions {
						row := sessionRow{Holder: s.Holder, Build: s.Build, Seconds: s.Seconds, Incoming: []string{}}
						for _, p := range s.Incoming {
							row.Incoming = append(row.Incoming, fmt.Sprintf("%s:%d", p.Mode, p.Port))
						}
						r.Sessions = append(r.Sessions, row)
					}
				}
				rows = append(rows, r)
			}
			return a.printAgents(rows, output)
		},
	}
	cf.add(c.PersistentFlags())
	c.PersistentFlags().BoolVarP(&all, "all-namespaces", "A", false, "of all namespaces")
	c.Flags().StringVarP(&output, "output", "o", "", "json")

	var used bool
	clean := &cobra.Command{
		Use:   "clean",
		Short: "Remove agents that nobody uses",
		Long: `Remove the agents that nobody uses. They would end by themselves, seconds after their last session.
One that does not say whether it is used, or is only about to start, is kept.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			client, ns, err := a.clientFor(&cf, all)
			if err != nil {
				return err
			}
			done, err := client.Clean(c.Context(), ns, used)
			for _, r := range done.Removed {
				fmt.Fprintln(a.stdout, "removed", r)
			}
			for _, k := range done.Kept {
				fmt.Fprintln(a.stderr, "kept", fault.Line(k))
			}
			return err
		},
	}
	clean.Flags().BoolVar(&used, "used", false, "all of them: their sessions end")
	c.AddCommand(clean)
	return c
}

func (a *app) clientFor(cf *clusterFlags, all bool) (*kube.Client, string, error) {
	c, err := a.client(cf)
	if err != nil {
		return nil, "", err
	}
	if all {
		return c, "", nil
	}
	return c, c.Namespace, nil
}

func (a *app) printAgents(rows []agentRow, output string) error {
	switch output {
	case "json":
		e := json.NewEncoder(a.stdout)
		e.SetIndent("", "  ")
		return e.Encode(rows)
	case "":
	default:
		return fault.With(fmt.Errorf("--output %s: no such form", output), "-o json")
	}
	if len(rows) == 0 {
		fmt.Fprintln(a.stderr, "stead: no agents")
		return nil
	}
	w := tabwriter.NewWriter(a.stdout, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "AGENT\tTARGET\tNODE\tSTATE\tAGE\tSESSIONS")
	for _, r := range rows {
		var who []string
		for _, s := range r.Sessions {
			who = append(who, strings.TrimSpace(s.Holder+" "+strings.Join(s.Incoming, " ")))
		}
		if r.Error != "" {
			who = []string{"? " + r.Error}
		}
		age := "-"
		if !r.Started.IsZero() {
			age = time.Since(r.Started).Round(time.Second).String()
		}
		fmt.Fprintf(w, "%s/%s\t%s\t%s\t%s\t%s\t%s\n", r.Namespace, r.Pod, r.Target, r.Node, r.State, age, orDash(strings.Join(who, ", ")))
	}
	return w.Flush()
}
