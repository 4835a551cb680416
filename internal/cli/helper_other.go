//go:build !linux

package cli

import "io"

func helper([]string, io.Writer, io.Writer) (code int, handled bool) { return 0, false }
