package cli

import "github.com/stead-dev/stead/internal/launch"

// helper runs this process as one of our own helpers if args ask for it.
func helper(args []string) (code int, handled bool) { return launch.Main(args) }
