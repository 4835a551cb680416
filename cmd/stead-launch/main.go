//go:build linux

// stead-launch is the guard of a session (package launch), which starts the program, without the rest of the
// CLI: it starts in a third of the time. The CLI carries it.
package main

import (
	"os"

	"github.com/stead-dev/stead/internal/launch"
)

func main() {
	code, handled := launch.Main(os.Args[1:])
	if !handled {
		os.Stderr.WriteString("error: stead-launch is a part of stead\nhint: stead exec --help\n")
		code = 125
	}
	os.Exit(code)
}
