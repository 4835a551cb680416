//go:build !linux

package cli

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/stead-dev/stead/internal/fault"
)

func newPlaygroundCommand(*app) *cobra.Command {
	return &cobra.Command{
		Use: "playground", Short: "Pods made of namespaces (Linux only)",
		RunE: func(*cobra.Command, []string) error {
			return fault.With(errors.New("the playground is made of Linux namespaces"), "run it in a Linux machine")
		},
	}
}
