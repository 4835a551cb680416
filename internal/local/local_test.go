package local

import (
	"context"
	"runtime"
	"strings"
	"testing"

	"github.com/stead-dev/stead/internal/fault"
)

func TestATargetThatIsNoneIsToldWithACommand(t *testing.T) {
	t.Setenv("STEAD_PLAYGROUND", "nobody made this one") // on other systems there is no target at all
	for spec, want := range map[string]string{
		"":                    "want KIND/NAME",
		"orders":              "want KIND/NAME",
		"playground/":         "want KIND/NAME",
		"process/x":           `"x" is no process id`,
		"process/0":           "is no process id",
		"process/-1":          "is no process id",
		"process/99999999999": "no such process",
		"nonsense/x":          `no kind of target is called "nonsense"`,
		"playground/orders":   "the playground is not up",
	} {
		got, err := Resolve(context.Background(), spec)
		if runtime.GOOS != "linux" && err != nil {
			continue
		}
		if got != nil || err == nil || !strings.Contains(err.Error(), want) || fault.Hint(err) == "" {
			t.Errorf("%q: %v, %v, hint %q; want %q", spec, got, err, fault.Hint(err), want)
		}
	}
}
