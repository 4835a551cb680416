package conformance

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stead-dev/stead/test/internal/bed"
)

// nobody is an ordinary user that every machine has.
const nobody = 65534

// ordinary copies stead and the programs to where an ordinary user, and a pod, can read them.
func ordinary(t *testing.T) (dir string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test becomes an ordinary user: run it as root")
	}
	dir, err := os.MkdirTemp("/var/tmp", "stead-programs")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, from := range []string{stead, programs + "/."} {
		if b, err := exec.Command("cp", "-r", from, dir).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, b)
		}
	}
	return dir
}

func TestAnOrdinaryUserSeesTheSame(t *testing.T) {
	dir := ordinary(t)
	b := bed.UpAs(t, filepath.Join(dir, "stead"), "conformance-rootless", nobody)
	for _, look := range []string{
		"/usr/bin/env bash " + dir + "/probe.sh look",
		dir + "/goprobe look",
		dir + "/cprobe look",
	} {
		argv := strings.Fields(look)
		native := b.Native(argv...)
		for _, door := range doors {
			under := b.Exec([]string{"--files", door, "--no-incoming"}, argv...)
			if diff := cmp.Diff(native.Stdout, under.Stdout); diff != "" || native.Code != 0 || under.Code != 0 || len(native.Stdout) < 100 {
				t.Errorf("%s by %s: exit codes %d and %d, stderr %s\n- pod + stead:\n%s", look, door, native.Code, under.Code, under.Stderr, diff)
			}
		}
	}
	for _, mode := range []string{"--steal", "--mirror"} {
		t.Run(mode, func(t *testing.T) { serve(t, b, []string{dir + "/goprobe", "serve"}, mode) })
	}
}

func TestRootInAUserNamespaceSeesTheSame(t *testing.T) {
	b := bed.Up(t, stead, "conformance-userns", "--rootless")
	argv := []string{programs + "/goprobe", "look"}
	native, under := b.Native(argv...), b.Exec([]string{"--no-incoming"}, argv...)
	if diff := cmp.Diff(native.Stdout, under.Stdout); diff != "" || native.Code != 0 || under.Code != 0 {
		t.Errorf("exit codes %d and %d, stderr %s\n- pod + stead:\n%s", native.Code, under.Code, under.Stderr, diff)
	}
	for _, mode := range []string{"--steal", "--mirror"} {
		t.Run(mode, func(t *testing.T) { serve(t, b, []string{programs + "/goprobe", "serve"}, mode) })
	}
}
