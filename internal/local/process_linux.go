package local

import (
	"context"
	"fmt"
	"os"

	"github.com/stead-dev/stead/internal/fault"
	"github.com/stead-dev/stead/internal/local/beside"
)

// resolveProcess stands an agent of ours beside a process of this machine.
func resolveProcess(_ context.Context, pid int) (*Target, error) {
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err != nil {
		return nil, fault.With(fmt.Errorf("target process/%d: no such process", pid), "pgrep -a NAME finds it")
	}
	a, err := beside.Start(pid)
	if err != nil {
		return nil, err
	}
	return &Target{Dial: a.Dial, Close: a.Close}, nil
}
