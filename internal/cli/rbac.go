package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/stead-dev/stead/internal/kube"
)

func newRBACCommand(a *app) *cobra.Command {
	var cf clusterFlags
	var user, mode string
	c := &cobra.Command{
		Use:   "rbac",
		Short: "Print the least Role that a developer needs",
		Long: `Print the least Role that a developer needs in a namespace, and its binding to them, for
kubectl apply -f -.`,
		Example: "  stead rbac -n shop --user ann@example.com | kubectl apply -f -\n  stead rbac -n shop --user system:serviceaccount:ci:tests",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			ns := cf.Namespace
			if ns == "" {
				c, err := a.client(&cf)
				if err != nil {
					return err
				}
				ns = c.Namespace
			}
			_, err := fmt.Fprint(a.stdout, kube.Role(ns, user, kube.Mode(mode)))
			return err
		},
	}
	cf.add(c.Flags())
	c.Flags().StringVar(&user, "user", "USER", "who gets it: a user, or system:serviceaccount:NAMESPACE:NAME")
	c.Flags().StringVar(&mode, "agent", string(kube.ModeJob), "how they start agents: job or ephemeral")
	return c
}
