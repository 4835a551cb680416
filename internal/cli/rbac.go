package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/stead-dev/stead/internal/fault"
	"github.com/stead-dev/stead/internal/kube"
)

func newRBACCommand(a *app) *cobra.Command {
	var cf clusterFlags
	var g kube.Grant
	c := &cobra.Command{
		Use:   "rbac",
		Short: "Print the least Role that a developer needs",
		Long: `Print the least Role that a developer needs in a namespace, and its binding to them, for
kubectl apply -f -. With --agent-namespace it is one for each of the two namespaces.`,
		Example: `  stead rbac -n shop --user ann@example.com | kubectl apply -f -
  stead rbac -n shop --agent-namespace stead-agents --user ann@example.com
  stead rbac -n shop --user system:serviceaccount:ci:tests`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if g.Mode != kube.ModeJob && g.Mode != kube.ModeEphemeral {
				return fault.With(fmt.Errorf("--agent %s: no such way", g.Mode), "--agent job or ephemeral")
			}
			if g.Namespace = cf.Namespace; g.Namespace == "" {
				c, err := a.client(&cf)
				if err != nil {
					return err
				}
				g.Namespace = c.Namespace
			}
			_, err := fmt.Fprint(a.stdout, g.Roles())
			return err
		},
	}
	cf.add(c.Flags())
	c.Flags().StringVar(&g.User, "user", "USER", "who gets it: a user, or system:serviceaccount:NAMESPACE:NAME")
	c.Flags().StringVar((*string)(&g.Mode), "agent", string(kube.ModeJob), "how they start agents: job or ephemeral")
	c.Flags().StringVar(&g.AgentNamespace, "agent-namespace", "", "namespace of their agents (default: the target's)")
	c.Flags().BoolVar(&g.Nodes, "nodes", false, "a ClusterRole to look at nodes, too, by which stead doctor tells their kernels and images")
	return c
}
