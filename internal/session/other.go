//go:build !linux

package session

import "context"

// Run says what is missing: the interceptor of this system.
func Run(context.Context, Options) (int, error) { return 0, Supported() }
