// stead runs a process on a laptop in a pod's stead.
package main

import (
	"context"
	"os"

	"github.com/stead-dev/stead/internal/cli"
)

func main() {
	os.Exit(cli.Run(context.Background(), os.Args[1:], os.Environ(), os.Stdin, os.Stdout, os.Stderr))
}
