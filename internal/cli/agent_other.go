//go:build !linux

package cli

import (
	"context"
	"fmt"
)

func serveAgent(_ context.Context, a *app, _ []string) int {
	fmt.Fprintln(a.stderr, "error: the agent runs on Linux, beside its target")
	return 1
}
