//go:build !linux

package cli

func helper([]string) (code int, handled bool) { return 0, false }
