package local

import (
	"context"
	"errors"
)

func resolvePlayground(context.Context, string) (*Target, error) {
	return nil, errors.New("no playground yet")
}
