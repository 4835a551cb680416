package cli

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"
)

// Version is set by the linker (-X); a plain go build says devel.
var Version = "devel"

func newVersionCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprint(a.stdout, versionLine())
			return err
		},
	}
}

func versionLine() string {
	return fmt.Sprintf("stead %s %s/%s %s\n", Version, runtime.GOOS, runtime.GOARCH, runtime.Version())
}
