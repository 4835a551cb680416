// Package sip runs `stead sip` as users do: many at once, killed midway, on a full disk.
package sip

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stead-dev/stead/internal/sip"
	"github.com/stead-dev/stead/internal/sip/codesign"
	"github.com/stead-dev/stead/internal/sip/fixture"
	"github.com/stead-dev/stead/test/internal/bed"
)

var stead string

func TestMain(m *testing.M) {
	var err error
	if stead, err = bed.Build("sip"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// program writes a hardened program of that many MiB.
func program(t testing.TB, mib int) string {
	t.Helper()
	path := filepath.Join(realDir(t), "program")
	data := fixture.Program{Text: mib << 20, Sign: &fixture.Signature{Flags: codesign.FlagRuntime}}.Bytes()
	if err := os.WriteFile(path, data, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func realDir(t testing.TB) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// files returns the regular files below dir, locks left out.
func files(t testing.TB, dir string) (out []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.Type().IsRegular() && filepath.Base(filepath.Dir(path)) != ".lock" {
			out = append(out, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// whole fails the test unless every byte of a copy is there.
func whole(t testing.TB, path string) {
	t.Helper()
	checks, err := sip.Verify(path)
	if err != nil {
		t.Errorf("%s: %v", path, err)
		return
	}
	for _, c := range checks {
		if !c.Signed || c.Problems != nil || c.Pages == 0 {
			t.Errorf("%s: %+v", path, c)
		}
	}
}

func TestFiftyProcessesThatPatchOneFileGetOneWholeCopy(t *testing.T) {
	const n = 50
	original, cache := program(t, 16), filepath.Join(realDir(t), "cache")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()

	// Whenever the copy can be seen, it is whole and the same file.
	done := make(chan struct{})
	var watcher sync.WaitGroup
	var first os.FileInfo
	looked := 0
	watcher.Go(func() {
		for {
			found, _ := filepath.Glob(filepath.Join(cache, "v*", "*", original))
			for _, f := range found {
				info, err := os.Stat(f)
				if err != nil {
					t.Error(err)
				}
				if first == nil {
					first = info
				}
				if !os.SameFile(first, info) || info.Size() != first.Size() {
					t.Errorf("the copy was replaced by another one")
				}
				whole(t, f)
				looked++
			}
			select {
			case <-done:
				return
			case <-time.After(time.Millisecond):
			}
		}
	})
	outs := make([]string, n)
	var group sync.WaitGroup
	start := make(chan struct{})
	for i := range n {
		group.Go(func() {
			<-start
			c := exec.CommandContext(ctx, stead, "sip", "patch", "--cache", cache, original)
			var stderr bytes.Buffer
			c.Stderr = &stderr
			out, err := c.Output()
			if err != nil {
				t.Errorf("process %d: %v\n%s", i, err, stderr.String())
			}
			outs[i] = string(out)
		})
	}
	close(start)
	group.Wait()
	close(done)
	watcher.Wait()
	for i := range outs {
		if outs[i] != outs[0] || outs[i] == "" {
			t.Errorf("process %d has %q, another %q", i, outs[i], outs[0])
		}
	}
	path := strings.TrimSpace(outs[0])
	if got := files(t, cache); len(got) != 1 || got[0] != path {
		t.Errorf("files in the cache: %q, want %q alone", got, path)
	}
	whole(t, path)
	if looked == 0 {
		t.Error("nobody looked while it was being written")
	}
}

// killMidway starts a patcher and kills it once unfinished, the file that it is writing, has bytes.
// It returns how many there were; 0 where the process was too quick.
func killMidway(t *testing.T, unfinished string, args ...string) int64 {
	t.Helper()
	c := exec.Command(stead, args...)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	for {
		found, _ := filepath.Glob(unfinished)
		for _, f := range found {
			if info, err := os.Stat(f); err == nil && info.Size() > 0 {
				c.Process.Kill()
				<-ended
				if info, err = os.Stat(f); err != nil {
					return 0 // it had been renamed by then
				}
				return info.Size()
			}
		}
		select {
		case <-ended:
			return 0
		default:
		}
	}
}

func TestAPatcherThatIsKilledLeavesNothingHalfWritten(t *testing.T) {
	original := program(t, 64)
	output := filepath.Join(realDir(t), "copy")
	for _, way := range []struct {
		name       string
		args       []string
		unfinished string // below the cache, or absolute
	}{
		{"in the cache", nil, "v*/.tmp/*"},
		{"with --output", []string{"--output", output}, filepath.Join(filepath.Dir(output), ".copy.*")},
	} {
		t.Run(way.name, func(t *testing.T) {
			killed := 0
			for try := 0; killed < 3; try++ {
				if try == 30 {
					t.Fatal("no patcher was killed midway in 30 tries")
				}
				cache := filepath.Join(realDir(t), "cache")
				unfinished := way.unfinished
				if !filepath.IsAbs(unfinished) {
					unfinished = filepath.Join(cache, unfinished)
				}
				os.Remove(output)
				args := append([]string{"sip", "patch", "--cache", cache, original}, way.args...)
				n := killMidway(t, unfinished, args...)
				if n == 0 {
					continue
				}
				killed++
				t.Logf("killed with %d bytes written", n)
				if copies, _ := filepath.Glob(filepath.Join(cache, "v*", "*", original)); len(copies) > 0 {
					t.Errorf("a copy is there: %q", copies)
				}
				if _, err := os.Stat(output); err == nil {
					t.Errorf("%s is there", output)
				}
				// The next one is not held up by what was left, and leaves none of it.
				out, err := exec.Command(stead, args...).Output()
				if err != nil {
					t.Fatal(err)
				}
				whole(t, strings.TrimSpace(string(out)))
				if left, _ := filepath.Glob(unfinished); len(left) > 0 {
					t.Errorf("left: %q", left)
				}
			}
		})
	}
}

func TestWhatAKilledPatcherLeftIsCleanedAway(t *testing.T) {
	original := program(t, 64)
	for range 30 {
		cache := filepath.Join(realDir(t), "cache")
		if killMidway(t, filepath.Join(cache, "v*/.tmp/*"), "sip", "patch", "--cache", cache, original) == 0 {
			continue
		}
		if out, err := exec.Command(stead, "sip", "clean", "--cache", cache).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if left := files(t, cache); len(left) > 0 {
			t.Errorf("left: %q", left)
		}
		return
	}
	t.Fatal("no patcher was killed midway in 30 tries")
}

// onDisk runs a script on a file system of its own, of that size in KiB, at $DISK; $STEAD is stead.
func onDisk(t *testing.T, kib int, original, script string) string {
	t.Helper()
	unshare := []string{"--mount"}
	if os.Geteuid() != 0 {
		unshare = []string{"--user", "--map-root-user", "--mount"}
	}
	disk := realDir(t)
	c := exec.Command("unshare", append(unshare, "sh", "-euc",
		fmt.Sprintf("mount -t tmpfs -o size=%dk none %s\n%s", kib, disk, script))...)
	c.Env = append(os.Environ(), "DISK="+disk, "STEAD="+stead, "FILE="+original)
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

func TestOnAFullDiskNothingIsHalfWritten(t *testing.T) {
	original := program(t, 8)
	// Only directories and locks may be left; when there is room, it goes on from there.
	out := onDisk(t, 4<<10, original, `
		if "$STEAD" sip patch --cache $DISK/cache "$FILE"; then echo there was room; fi
		if "$STEAD" sip patch --cache $DISK/cache --output $DISK/copy "$FILE"; then echo there was room; fi
		find $DISK -type f ! -path '*/.lock/*' -printf 'left: %p\n'
		mount -o remount,size=64m none $DISK
		echo "whole: $("$STEAD" sip verify "$("$STEAD" sip patch --cache $DISK/cache "$FILE")")"
		"$STEAD" sip patch --output $DISK/copy "$FILE" >/dev/null
		echo "whole: $("$STEAD" sip verify $DISK/copy)"
	`)
	for what, want := range map[string]int{
		"no space left on device": 2, "hint: make room on the disk": 2, "there was room": 0, "left: ": 0, "whole: ": 2, "all offsets are right": 2,
	} {
		if got := strings.Count(out, what); got != want {
			t.Errorf("%q %d times, want %d:\n%s", what, got, want, out)
		}
	}
}

func TestACopyTakesLittleMemoryBeyondTheMappedFile(t *testing.T) {
	original := program(t, 150)
	info, err := os.Stat(original)
	if err != nil {
		t.Fatal(err)
	}
	most, err := bed.Peak(exec.Command(stead, "sip", "patch", "--cache", filepath.Join(realDir(t), "cache"), original))
	if err != nil {
		t.Fatal(err)
	}
	if beyond := most - info.Size(); beyond > 32<<20 || beyond < 0 {
		t.Errorf("%d bytes beyond a file of %d: more than 32 MiB, or the file was not mapped", beyond, info.Size())
	} else {
		t.Logf("%.1f MiB beyond a file of %.1f MiB", float64(beyond)/(1<<20), float64(info.Size())/(1<<20))
	}
}
