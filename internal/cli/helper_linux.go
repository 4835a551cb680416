package cli

import (
	"io"

	"github.com/stead-dev/stead/internal/launch"
	carried "github.com/stead-dev/stead/internal/launch/helper"
	"github.com/stead-dev/stead/internal/local/playground"
)

func init() { launch.Helper = carried.Open }

// helper runs this process as one of our own helpers if args ask for it.
func helper(args []string, stdout, stderr io.Writer) (code int, handled bool) {
	code, handled, err := launch.Main(args)
	if err != nil {
		report(stderr, err)
	}
	if handled {
		return code, true
	}
	return playground.Main(args, stdout, stderr)
}
