package cli

import (
	"github.com/stead-dev/stead/internal/launch"
	"github.com/stead-dev/stead/internal/local/playground"
)

// helper runs this process as one of our own helpers if args ask for it.
func helper(args []string) (code int, handled bool) {
	if code, handled = launch.Main(args); handled {
		return code, true
	}
	return playground.Main(args)
}
