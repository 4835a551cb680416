package conformance

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

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
	t.Parallel()
	dir := ordinary(t)
	b := bed.UpAs(t, filepath.Join(dir, "stead"), "conformance-rootless", nobody)
	look(t, b, dir)
	serve(t, b, dir)
}

func TestRootInAUserNamespaceSeesTheSame(t *testing.T) {
	t.Parallel()
	b := bed.Up(t, stead, "conformance-userns", "--rootless")
	look(t, b, programs)
	serve(t, b, programs)
}
