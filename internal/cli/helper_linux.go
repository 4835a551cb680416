package cli

import (
	"github.com/stead-dev/stead/internal/launch"
	carried "github.com/stead-dev/stead/internal/launch/helper"
	"github.com/stead-dev/stead/internal/local/playground"
)

func init() { launch.Helper = carried.Open }

// helper runs this process as one of our own helpers if args ask for it.
func helper(args []string) (code int, handled bool) {
	if code, handled = launch.Main(args); handled {
		return code, true
	}
	return playground.Main(args)
}
