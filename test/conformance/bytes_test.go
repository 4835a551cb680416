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

// A program may be named by a link that is not in the laptop's trees: an installation of several versions.
func TestAProgramIsFoundByTheLinksThatLeadToIt(t *testing.T) {
	// What the pod has of these directories is empty.
	target := exec.Command("unshare", "-m", "sh", "-c", "for d in /opt /srv /mnt; do mount -t tmpfs none $d; done; echo; exec sleep 1000")
	out, err := target.StdoutPipe()
	if err == nil {
		err = target.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer target.Wait()
	defer target.Process.Kill()
	out.Read(make([]byte, 1))
	for _, d := range []string{"/opt/stead-v1/bin", "/srv/stead"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		for _, d := range []string{"/opt/stead-v1", "/opt/stead-current", "/srv/stead"} {
			os.RemoveAll(d)
		}
	})
	for name, text := range map[string]string{"app": "#!/bin/sh\ncat $(dirname \"$0\")/data\n", "data": "data\n"} {
		if err := os.WriteFile("/opt/stead-v1/bin/"+name, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range map[string]string{"/opt/stead-current": "stead-v1", "/srv/stead/app": "/opt/stead-current/bin/app", "/srv/stead/data": "../../opt/stead-current/bin/data"} {
		if err := os.Symlink(to, name); err != nil {
			t.Fatal(err)
		}
	}
	b := &bed.Bed{Stead: stead, T: t, Env: os.Environ()}
	for _, door := range doors {
		for _, name := range []string{"/opt/stead-v1/bin/app", "/opt/stead-current/bin/app", "/srv/stead/app", "../../../../../../../../../srv/stead/app"} {
			r := b.Run("exec", "-q", "-t", "process/"+strconv.Itoa(target.Process.Pid), "--no-incoming", "--files", door, "--", name)
			if r.Stdout != "data\n" || r.Code != 0 || r.Stderr != "" {
				t.Errorf("%s by %s: %q, exit code %d, %s", name, door, r.Stdout, r.Code, r.Stderr)
			}
		}
	}
}
