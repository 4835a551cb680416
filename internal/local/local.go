// Package local finds targets on this machine: a process, or a pod of the playground. What it gives
// a session is what the Kubernetes side gives too: a way to dial an agent that stands beside the
// target.
package local

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/stead-dev/stead/internal/fault"
	"github.com/stead-dev/stead/internal/tunnel"
)

// Target is a found target. Close ends what was started for it.
type Target struct {
	Dial  tunnel.Dialer
	Close func()
	// Stays says whether the target is still one whose app may be started anew, and then be dialled
	// again; nil for what ends with its process.
	Stays func(context.Context) error
}

// Resolve finds the target that spec names: playground/POD or process/PID.
func Resolve(ctx context.Context, spec string) (*Target, error) {
	kind, name, ok := strings.Cut(spec, "/")
	if !ok || name == "" {
		return nil, fault.With(fmt.Errorf("target %q: want KIND/NAME", spec), "stead playground status lists the pods: --target playground/POD, or process/PID")
	}
	switch kind {
	case "playground":
		return resolvePlayground(ctx, name)
	case "process":
		pid, err := strconv.Atoi(name)
		if err != nil || pid <= 0 {
			return nil, fault.With(fmt.Errorf("target %q: %q is no process id", spec, name), "pgrep -a NAME finds it")
		}
		return resolveProcess(ctx, pid)
	}
	return nil, fault.With(fmt.Errorf("target %q: no kind of target is called %q", spec, kind), "stead playground status lists the pods: --target playground/POD, or process/PID")
}
