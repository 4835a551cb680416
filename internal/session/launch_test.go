package session

import (
	"os"
	"testing"

	"github.com/stead-dev/stead/internal/launch"
	"github.com/stead-dev/stead/internal/leak"
)

// TestMain makes this test binary the helpers that package launch starts.
func TestMain(m *testing.M) {
	if code, handled, err := launch.Main(os.Args[1:]); handled {
		if err != nil {
			os.Stderr.WriteString(err.Error() + "\n")
		}
		os.Exit(code)
	}
	os.Exit(leak.Main(m.Run))
}
