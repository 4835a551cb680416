package conformance

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stead-dev/stead/test/internal/bed"
)

// Whatever a program asks of a path, the traps answer what the kernel answers in the mount
// namespace: errors, writes that are refused, links, directories, working directories under signals.
func TestTheDoorsAgree(t *testing.T) {
	look := func(t *testing.T, b *bed.Bed, script string) {
		makeLinks(t, b)
		said := make([]string, len(doors))
		for i, door := range doors {
			// A directory that the program's user may write to; its name is in the output.
			dir := filepath.Join("/var/tmp", bed.Own("stead-doors")+"-"+door)
			t.Cleanup(func() { os.RemoveAll(dir) })
			r := b.Exec([]string{"--files", door, "--no-incoming"}, "/usr/bin/env", "python3", script, dir)
			if r.Code != 0 || r.Stderr != "" {
				t.Fatalf("by %s: exit code %d, stderr %s\n%s", door, r.Code, r.Stderr, r.Stdout)
			}
			said[i] = answers(door, r.Stdout, dir)
		}
		for i, door := range doors[1:] {
			if diff := cmp.Diff(said[0], said[i+1]); diff != "" {
				t.Errorf("- mount + %s:\n%s", door, diff)
			}
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

// What listing a directory says of a file's number is what stat says; tools that walk a tree rely on it. (By
// the copies the two differ: notify/copies_linux.go.)
func TestListingAndStatAgreeOnNumbers(t *testing.T) {
	b := bed.Up(t, stead, "conformance-inodes")
	for _, door := range []string{"mount", "trap"} {
		same(t, b, []string{"--files", door}, "python3", programs+"/probe.py", "inodes", "/var/data/many", "/etc/orders")
	}
}

// makeLinks makes in the pod what programs/doors.py looks at.
func makeLinks(t *testing.T, b *bed.Bed) {
	t.Helper()
	links := "cd /var/data && ln -s /dev/stdout out && ln -s /proc/self/status self && ln -s /etc/made etc && ln -s /var/tmp/doors-made made && ln -s loop loop && ln -s /usr/bin bin && ln -s /proc/mounts mounts && echo secret > secret && chmod 600 secret"
	if r := b.Native("/bin/sh", "-c", links); r.Code != 0 {
		t.Fatalf("make links in the pod: %s", r.Stderr)
	}
}

var stopsSeen = regexp.MustCompile(`(?m)^stopped: \[Errno 4\] .*\n`)

// answers is what programs/doors.py said. In the mount namespace a stop interrupts who waits for FUSE,
// which is the kernel's business.
func answers(door, stdout, laptop string) string {
	if door == "mount" {
		stdout = stopsSeen.ReplaceAllString(stdout, "")
	}
	return strings.ReplaceAll(stdout, laptop, "LAPTOP")
}

// What an ordinary user's program keeps from debuggers, it keeps from us: under the trap its path calls
// fail, and what can be done is said once.
func TestWhoLetsNobodyTraceItIsToldWhatHelps(t *testing.T) {
	dir := ordinary(t)
	b := bed.UpAs(t, filepath.Join(dir, "stead"), "conformance-hidden", nobody)
	hide := []string{"/usr/bin/env", "python3", "-c", `import ctypes, os
ctypes.CDLL(None).prctl(4, 0)  # PR_SET_DUMPABLE
for path in "/etc/orders/config.yaml", "/tmp":
    try: os.stat(path); print("seen")
    except OSError as e: print(e.strerror)`}
	if r := b.Exec([]string{"--files", "mount", "--no-incoming"}, hide...); r.Stdout != "seen\nseen\n" || r.Stderr != "" {
		t.Errorf("by mount it says %s%s", r.Stdout, r.Stderr)
	}
	r := b.Exec([]string{"--files", "trap", "--no-incoming"}, hide...)
	if r.Stdout != "Permission denied\nPermission denied\n" || strings.Count(r.Stderr, "warning: ") != 1 || strings.Count(r.Stderr, "\nhint: ") != 1 || !strings.Contains(r.Stderr, "--files mount") {
		t.Errorf("by trap it says %s%s", r.Stdout, r.Stderr)
	}
}

// Where no namespace can be made, --files auto takes the trap, says so once and what would open the
// better door; the tree comes from fusermount3 then. --files mount fails with the same words.
func TestWithoutNamespacesTheTrapIsTaken(t *testing.T) {
	dir := ordinary(t)
	b := bed.UpAs(t, filepath.Join(dir, "stead"), "conformance-confined", nobody)
	argv := []string{dir + "/goprobe", "look"}
	native := b.Native(argv...)
	confined := *b
	confined.Before = []string{programs + "/confine", strconv.Itoa(nobody) + ",userns"}
	for range 2 {
		under := confined.Exec([]string{"--no-incoming"}, argv...)
		if diff := cmp.Diff(native.Stdout, under.Stdout); diff != "" || native.Code != 0 || under.Code != 0 {
			t.Fatalf("exit codes %d and %d, stderr %s\n- pod + stead:\n%s", native.Code, under.Code, under.Stderr, diff)
		}
		if strings.Count(under.Stderr, "warning: no mount namespace") != 1 || strings.Count(under.Stderr, "hint: ") != 1 || strings.Count(under.Stderr, "\n") != 2 {
			t.Errorf("it says %q", under.Stderr)
		}
	}
	if r := confined.Exec([]string{"--files", "mount", "--no-incoming"}, argv...); r.Code != 125 || !strings.HasPrefix(r.Stderr, "error: no mount namespace") || !strings.Contains(r.Stderr, "\nhint: ") {
		t.Errorf("--files mount: exit code %d: %s", r.Code, r.Stderr)
	}
	for _, name := range []string{"/proc/mounts"} {
		m, err := os.ReadFile(name)
		if err != nil || strings.Contains(string(m), "fuse.stead") {
			t.Errorf("a mount is left, or %v", err)
		}
	}
}
