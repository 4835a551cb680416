// stead-agent stands beside a pod's container and serves stead's sessions.
package main

import (
	"context"
	"os"

	"github.com/stead-dev/stead/internal/agent"
)

// version is set by the linker.
var version = "devel"

func main() {
	os.Exit(agent.Main(context.Background(), os.Args[1:], os.Environ(), version, os.Stderr))
}
