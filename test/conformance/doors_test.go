package conformance

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stead-dev/stead/test/internal/bed"
)

// Whatever a program asks of a path, the trap answers what the kernel answers in the mount
// namespace: errors, writes that are refused, links, directories, working directories under signals.
func TestTheTwoDoorsAgree(t *testing.T) {
	look := func(t *testing.T, b *bed.Bed, script string) {
		var said [2]string
		for i, door := range []string{"mount", "trap"} {
			// A directory that the program's user may write to; its name is in the output.
			dir := filepath.Join("/var/tmp", "stead-doors-"+door)
			t.Cleanup(func() { os.RemoveAll(dir) })
			r := b.Exec([]string{"--files", door, "--no-incoming"}, "/usr/bin/env", "python3", script, dir)
			if r.Code != 0 || r.Stderr != "" {
				t.Fatalf("by %s: exit code %d, stderr %s\n%s", door, r.Code, r.Stderr, r.Stdout)
			}
			said[i] = strings.ReplaceAll(r.Stdout, dir, "LAPTOP")
		}
		if diff := cmp.Diff(said[0], said[1]); diff != "" {
			t.Errorf("- mount + trap:\n%s", diff)
		}
	}
	t.Run("root", func(t *testing.T) {
		look(t, bed.Up(t, stead, "conformance-doors"), programs+"/doors.py")
	})
	t.Run("an ordinary user", func(t *testing.T) {
		dir := ordinary(t)
		look(t, bed.UpAs(t, filepath.Join(dir, "stead"), "conformance-doors-user", nobody), dir+"/doors.py")
	})
}
