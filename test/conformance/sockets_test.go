package conformance

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stead-dev/stead/test/internal/bed"
)

func TestCallsOnSocketsSayWhatTheySayInThePod(t *testing.T) {
	b := bed.Up(t, stead, "conformance-sockets")
	for _, c := range []string{"refused", "mapped", "bound"} {
		argv := []string{"python3", programs + "/sockets.py", c}
		native := b.Native(argv...)
		under := b.Exec([]string{"--no-incoming"}, argv...)
		if diff := cmp.Diff(native.Stdout, under.Stdout); diff != "" || native.Code != 0 || under.Code != 0 || native.Stdout == "" {
			t.Errorf("%s: exit codes %d and %d, stderr %s\n- pod + stead:\n%s", c, native.Code, under.Code, native.Stderr+under.Stderr, diff)
		}
	}
}
