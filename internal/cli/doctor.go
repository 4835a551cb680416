package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/stead-dev/stead/internal/fault"
	"github.com/stead-dev/stead/internal/kube"
)

func newDoctorCommand(a *app) *cobra.Command {
	var cf clusterFlags
	var af agentFlags
	var target string
	c := &cobra.Command{
		Use:   "doctor [--target TARGET]",
		Short: "Look whether laptop and cluster have what a session needs",
		Long: `Look at what a session needs of the laptop and of the cluster: one line each, "ok", or what is
missing and what helps. Nothing is made or changed.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			bad := a.tell(laptop())
			if isLocal(target) {
				if bad > 0 {
					return exitCode(1)
				}
				return nil
			}
			client, err := a.client(&cf)
			if err != nil {
				bad += a.tell([]kube.Finding{{What: "cluster", Err: err}})
				return exitCode(1)
			}
			o, err := af.options()
			if err != nil {
				return err
			}
			var spec *kube.Spec
			if target != "" {
				s, err := kube.ParseTarget(target)
				if err != nil {
					return err
				}
				spec = &s
			}
			if bad += a.tell(client.Doctor(c.Context(), spec, o)); bad > 0 {
				return exitCode(1)
			}
			return nil
		},
	}
	cf.add(c.Flags())
	af.add(c.Flags(), a.env)
	c.Flags().StringVarP(&target, "target", "t", "", "the target that a session would have")
	return c
}

// tell prints findings and counts those that keep a session from working.
func (a *app) tell(fs []kube.Finding) (bad int) {
	for _, f := range fs {
		switch {
		case f.Err == nil:
			fmt.Fprintf(a.stdout, "ok    %s: %s\n", f.What, fault.Line(f.Note))
			continue
		case f.Soft:
			fmt.Fprintf(a.stdout, "warn  %s: %s\n", f.What, fault.Line(f.Err.Error()))
		default:
			fmt.Fprintf(a.stdout, "FAIL  %s: %s\n", f.What, fault.Line(f.Err.Error()))
			bad++
		}
		if h := fault.Hint(f.Err); h != "" {
			fmt.Fprintf(a.stdout, "      hint: %s\n", fault.Line(h))
		}
	}
	return bad
}

func missing(what, why, hint string) kube.Finding {
	return kube.Finding{What: what, Err: fault.With(errors.New(why), hint)}
}
