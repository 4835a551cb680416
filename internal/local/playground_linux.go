package local

import (
	"context"
	"net"

	"github.com/stead-dev/stead/internal/local/playground"
)

// resolvePlayground stands beside a pod of the playground; its daemon keeps the agent.
func resolvePlayground(ctx context.Context, pod string) (*Target, error) {
	if err := playground.Check(ctx, pod); err != nil {
		return nil, err
	}
	return &Target{
		Dial:  func(ctx context.Context) (net.Conn, error) { return playground.Dial(ctx, pod) },
		Close: func() {},
		Stays: func(ctx context.Context) error { return playground.Check(ctx, pod) },
	}, nil
}
