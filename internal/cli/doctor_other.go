//go:build !linux

package cli

import (
	"runtime"

	"github.com/stead-dev/stead/internal/kube"
)

// laptop looks at this machine.
func laptop() []kube.Finding {
	return []kube.Finding{missing("laptop", "stead exec does not run on "+runtime.GOOS+" yet", "use a Linux machine, or a virtual one")}
}
