package cli

import (
	"context"

	"github.com/stead-dev/stead/internal/agent"
)

func serveAgent(ctx context.Context, a *app, args []string) int {
	return agent.Main(ctx, args, a.env, Version, a.stderr)
}
