package conformance

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stead-dev/stead/test/internal/bed"
)

// machines without /dev/fuse, as most development containers are: root without CAP_SYS_ADMIN and an
// ordinary user, with and without user namespaces.
var machines = []struct{ name, confine string }{
	{"root of a container", "0,fuse,admin"},
	{"root of a container without user namespaces", "0,fuse,admin,userns"},
	{"an ordinary user", "65534,fuse"},
	{"an ordinary user without user namespaces", "65534,fuse,userns"},
}

// shared copies stead and the programs to where everybody can read them, and gives a bed on a machine
// that lacks what a machine's name says.
func shared(t *testing.T, confine, name string) (b, confined *bed.Bed, dir string) {
	dir = ordinary(t)
	if strings.HasPrefix(confine, "0,") {
		b = bed.Up(t, filepath.Join(dir, "stead"), name)
	} else {
		b = bed.UpAs(t, filepath.Join(dir, "stead"), name, nobody)
	}
	c := *b
	c.Before = []string{programs + "/confine", confine}
	return b, &c, dir
}

func TestWithoutFUSETheFilesAreCopied(t *testing.T) {
	for _, m := range machines {
		t.Run(m.name, func(t *testing.T) {
			b, confined, dir := shared(t, m.confine, "conformance-nofuse")
			for _, look := range []string{"/usr/bin/env bash " + dir + "/probe.sh look", dir + "/goprobe look", dir + "/cprobe look"} {
				argv := strings.Fields(look)
				native := b.Native(argv...)
				under := confined.Exec([]string{"--no-incoming"}, argv...)
				if diff := cmp.Diff(native.Stdout, under.Stdout); diff != "" || native.Code != 0 || under.Code != 0 {
					t.Fatalf("%s: exit codes %d and %d, stderr %s\n- pod + stead:\n%s", look, native.Code, under.Code, under.Stderr, diff)
				}
				if !strings.HasPrefix(under.Stderr, "warning: no mount namespace") || !strings.Contains(under.Stderr, "files are copied") ||
					strings.Count(under.Stderr, "\nhint: ") != 1 || strings.Count(under.Stderr, "\n") != 2 {
					t.Errorf("it says %q", under.Stderr)
				}
			}
			if r := confined.Exec([]string{"--files", "trap", "--no-incoming"}, "true"); r.Code != 125 || !strings.Contains(r.Stderr, "\nhint: ") {
				t.Errorf("--files trap: exit code %d: %s", r.Code, r.Stderr)
			}
		})
	}
}

// A tree of copies answers as the mount namespace does, wherever the copies are.
func TestCopiesAnswerAsTheMountNamespace(t *testing.T) {
	for _, m := range machines {
		t.Run(m.name, func(t *testing.T) {
			b, confined, dir := shared(t, m.confine, "conformance-copies")
			makeLinks(t, b)
			var said [2]string
			for i, how := range []struct {
				b    *bed.Bed
				door string
			}{{b, "mount"}, {confined, "copy"}} {
				laptop := filepath.Join("/var/tmp", bed.Own("stead-doors")+"-"+how.door)
				t.Cleanup(func() { os.RemoveAll(laptop) })
				r := how.b.Exec([]string{"--files", how.door, "--no-incoming"}, "/usr/bin/env", "python3", dir+"/doors.py", laptop)
				if r.Code != 0 || r.Stderr != "" || strings.Count(r.Stdout, "\n") < 200 {
					t.Fatalf("by %s: exit code %d, stderr %s\n%s", how.door, r.Code, r.Stderr, r.Stdout)
				}
				// Who may choose a process's number is root's privilege.
				for _, l := range strings.SplitAfter(answers(how.door, r.Stdout, laptop), "\n") {
					if !strings.HasPrefix(l, "number ") {
						said[i] += l
					}
				}
			}
			if diff := cmp.Diff(said[0], said[1]); diff != "" {
				t.Errorf("- mount + copy:\n%s", diff)
			}
		})
	}
}

// What the pod changes is seen at the next opening: a file that is written, one that is replaced, and a
// directory that is swapped by a link, as the kubelet does it with a ConfigMap.
func TestCopiesAreRenewedWhenThePodChanges(t *testing.T) {
	b := bed.Up(t, stead, "conformance-renewed")
	if r := b.Native("sh", "-c", "mkdir /var/data/cm && cd /var/data/cm && mkdir ..1 && echo one > ..1/key && ln -s ..1 ..data && ln -s ..data/key key && echo 1 > /var/data/plain"); r.Code != 0 {
		t.Fatal(r.Stderr)
	}
	in, err := os.MkdirTemp("/var/tmp", "stead-renewed") // the laptop's in both
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(in)
	cmd := b.Command("exec", "-t", "playground/orders", "--files", "copy", "--no-incoming", "--", "python3", "-u", "-c", `
import os, sys
old = open("/var/data/plain")
old.read()
d = os.open("/var/data/cm", os.O_RDONLY)
for line in sys.stdin:
    r = lambda p, **k: os.read(os.open(p, os.O_RDONLY, **k), 100).decode().strip()
    print(r("/var/data/cm/key"), r("key", dir_fd=d), r("/var/data/plain"), sorted(os.listdir("/var/data/cm")), os.path.exists("/var/data/late"), os.stat("/var/data/plain").st_size)
old.seek(0); print(old.read())
`)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var errs strings.Builder
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	lines := bufio.NewReader(stdout)
	ask := func() string {
		fmt.Fprintln(stdin)
		line, _ := lines.ReadString('\n')
		return strings.TrimSpace(line)
	}
	if got, want := ask(), "one one 1 ['..1', '..data', 'key'] False 2"; got != want {
		t.Fatalf("first %q, want %q; %s", got, want, errs.String())
	}
	if r := b.Native("sh", "-c", "cd /var/data/cm && mkdir ..2 && echo two > ..2/key && ln -s ..2 ..new && mv -T ..new ..data && rm -r ..1 && echo 23 > /var/data/new && mv /var/data/new /var/data/plain && touch /var/data/late"); r.Code != 0 {
		t.Fatal(r.Stderr)
	}
	want := "two two 23 ['..2', '..data', 'key'] True 3"
	got := ""
	for end := time.Now().Add(10 * time.Second); got != want && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		got = ask()
	}
	if got != want {
		t.Errorf("it sees %q, want %q", got, want)
	}
	stdin.Close()
	if rest, _ := io.ReadAll(lines); string(rest) != "1\n\n" {
		t.Errorf("who has the old file open reads %q", rest)
	}
	if err := cmd.Wait(); err != nil || errs.Len() > 0 {
		t.Errorf("%v, stderr %s", err, errs.String())
	}
}

func TestAFileTooLargeToBeCopiedIsRefusedAndNamed(t *testing.T) {
	b := bed.Up(t, stead, "conformance-toolarge")
	if r := b.Native("sh", "-c", "truncate -s 65M /var/data/larger && for i in 1 2 3 4 5 6; do head -c 60M /dev/zero | tr '\\0' $i > /var/data/large$i; done"); r.Code != 0 {
		t.Fatal(r.Stderr)
	}
	r := b.Exec([]string{"--files", "copy", "--no-incoming"}, "sh", "-c", "stat -c %s /var/data/larger; cat /var/data/larger; for i in 1 2 3 4 5 6 1; do sha256sum < /var/data/large$i; done")
	want := "68157440\n"
	for _, i := range "1234561" {
		want += fmt.Sprintf("%x  -\n", sha256.Sum256([]byte(strings.Repeat(string(i), 60<<20))))
	}
	if r.Stdout != want || strings.Count(r.Stderr, "File too large") != 1 || strings.Count(r.Stderr, "warning: /var/data/larger") != 1 || !strings.Contains(r.Stderr, "--device /dev/fuse") {
		t.Errorf("exit code %d, stderr %s\n%s", r.Code, r.Stderr, cmp.Diff(want, r.Stdout))
	}
}
