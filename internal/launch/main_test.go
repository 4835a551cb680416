//go:build linux

package launch

import (
	"os"
	"testing"

	"github.com/stead-dev/stead/internal/leak"
)

func TestMain(m *testing.M) { os.Exit(leak.Main(m.Run)) }
