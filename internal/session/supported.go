package session

import (
	"fmt"
	"runtime"

	"github.com/stead-dev/stead/internal/fault"
)

// Supported returns why Run cannot work on this system at all, nil where it can. It asks for no feature
// of the machine's: what the kernel lacks is found when it is needed.
func Supported() error { return supported(runtime.GOOS) }

func supported(goos string) error {
	if goos == "linux" {
		return nil
	}
	return fault.With(fmt.Errorf("stead exec cannot intercept programs on %s yet: it needs Linux's seccomp user notification", goos),
		"run it in a Linux machine: limactl start && lima stead exec ... (stead port-forward, ls and dump work here)")
}
