package agent

import (
	"fmt"
	"io"
	"log/slog"

	"github.com/stead-dev/stead/internal/fault"
)

// What the agent tells, by the level from which on: error, what it could not do and whom it has not let
// in; info, too, when sessions and their ports come and go, a line each; debug, too, each connection
// that it makes or takes.
const (
	levelError = "error"
	levelInfo  = "info"
	levelDebug = "debug"
)

// levels are the names of what an agent can tell, the quietest first.
var levels = []struct {
	name string
	from slog.Level
}{
	{levelError, slog.LevelError},
	{levelInfo, slog.LevelInfo},
	{levelDebug, slog.LevelDebug},
}

func newLog(w io.Writer, level string) (*slog.Logger, error) {
	for _, l := range levels {
		if l.name == level {
			return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: l.from})), nil
		}
	}
	return nil, fault.With(fmt.Errorf("--log-level %s: no such level", level), "--log-level error, info or debug")
}
