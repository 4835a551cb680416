//go:build !linux

package local

import (
	"context"
	"errors"
	"runtime"

	"github.com/stead-dev/stead/internal/fault"
)

var errNotHere = fault.With(errors.New("there are no targets of this kind on "+runtime.GOOS), "use one in a Linux machine")

func resolvePlayground(context.Context, string) (*Target, error) { return nil, errNotHere }
func resolveProcess(context.Context, int) (*Target, error)       { return nil, errNotHere }
