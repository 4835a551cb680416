//go:build !linux

package session

import (
	"context"
	"errors"
	"runtime"

	"github.com/stead-dev/stead/internal/fault"
)

// Run says what is missing: the interceptor of this system.
func Run(context.Context, Options) (int, error) {
	return 0, fault.With(errors.New("stead exec cannot intercept programs on "+runtime.GOOS+" yet: it needs Linux's seccomp notification"),
		"run it in a Linux machine, for example: limactl start && lima stead exec ...")
}
