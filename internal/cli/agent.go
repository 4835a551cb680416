package cli

import (
	"github.com/spf13/cobra"
)

func newAgentCommand(a *app) *cobra.Command {
	c := &cobra.Command{Use: "agent", Short: "The agent that stands beside a target"}
	c.AddCommand(&cobra.Command{
		Use:                "serve",
		Short:              "Serve sessions beside a target (started by stead itself)",
		Hidden:             true,
		DisableFlagParsing: true,
		RunE: func(c *cobra.Command, args []string) error {
			if code := serveAgent(c.Context(), a, args); code != 0 {
				return exitCode(code)
			}
			return nil
		},
	})
	c.AddCommand(newAgentImageCommand(a))
	return c
}
