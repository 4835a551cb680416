package conformance

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stead-dev/stead/test/internal/bed"
)

// What a program is called, is given and stands in are bytes, not text.
func TestNamesArgumentsAndVariablesMayBeOfAnyBytes(t *testing.T) {
	b := bed.Up(t, stead, "conformance-bytes")
	const odd = "odd\xff\n\x01"
	dir := filepath.Join(t.TempDir(), odd)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	tell := "#!/bin/sh\nprintf '%s|' \"$0\" \"$1\" \"$ODD\" \"$PWD\" \"$(pwd -P)\"; cat here\n"
	for name, text := range map[string]string{odd: tell, "here": "here"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	run := func(argv ...string) string {
		c := exec.Command(argv[0], argv[1:]...)
		c.Dir, c.Env = dir, append(b.Env, "ODD="+odd, "PWD="+dir)
		out, err := c.CombinedOutput()
		if err != nil {
			t.Errorf("%q: %v", argv, err)
		}
		return string(out)
	}
	native := run("./"+odd, odd)
	for _, door := range append(doors, "none") {
		under := run(stead, "exec", "-q", "-t", "playground/orders", "--no-incoming", "--files", door, "--", "./"+odd, odd)
		if under != native || !strings.Contains(native, "|here") {
			t.Errorf("by %s: %q, natively %q", door, under, native)
		}
	}
}

func TestTheTargetsVariablesMayBeOfAnyBytes(t *testing.T) {
	target := exec.Command("sleep", "1000")
	target.Env = []string{"ODD=odd\xff\n\x01", "EMPTY="}
	if err := target.Start(); err != nil {
		t.Fatal(err)
	}
	defer target.Wait()
	defer target.Process.Kill()
	b := &bed.Bed{Stead: stead, T: t, Env: os.Environ()}
	r := b.Run("exec", "-t", "process/"+strconv.Itoa(target.Process.Pid), "--no-incoming", "--files", "none", "--", "sh", "-c", `printf '%s|%s' "$ODD" "${EMPTY-unset}"`)
	if want := "odd\xff\n\x01|"; r.Stdout != want || r.Code != 0 {
		t.Errorf("%q, want %q; exit code %d, %s", r.Stdout, want, r.Code, r.Stderr)
	}
}
