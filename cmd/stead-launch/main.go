//go:build linux

// stead-launch is the guard of a session (package launch), which starts the program, without the rest of the
// CLI: it starts in a third of the time. The CLI carries it.
package main

import (
	"errors"
	"os"

	"github.com/stead-dev/stead/internal/fault"
	"github.com/stead-dev/stead/internal/launch"
)

func main() {
	code, handled, err := launch.Main(os.Args[1:])
	if !handled {
		code, err = fault.ExitOurs, fault.With(errors.New("stead-launch is a part of stead"), "stead exec --help")
	}
	if err != nil { // as the CLI says it, which is not here
		os.Stderr.WriteString("error: " + err.Error() + "\n")
		if hint := fault.Hint(err); hint != "" {
			os.Stderr.WriteString("hint: " + hint + "\n")
		}
	}
	os.Exit(code)
}
