package session

import (
	"strings"
	"testing"

	"github.com/stead-dev/stead/internal/fault"
)

func TestASystemWithoutAnInterceptorIsNamed(t *testing.T) {
	if err := supported("linux"); err != nil {
		t.Errorf("linux: %v", err)
	}
	for _, goos := range []string{"darwin", "windows"} {
		err := supported(goos)
		if err == nil || !strings.Contains(err.Error(), goos) || !strings.Contains(err.Error(), "seccomp") || fault.Hint(err) == "" || fault.Exit(err) != fault.ExitOurs {
			t.Errorf("%s: %v, hint %q, exit code %d", goos, err, fault.Hint(err), fault.Exit(err))
		}
	}
}
