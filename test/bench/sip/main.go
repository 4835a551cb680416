// sip measures what a copy of a protected program of 150 MB costs, beside sha256sum and cp of the
// same file, and prints rows for docs/benchmarks.md. Its argument is a directory to work in.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/stead-dev/stead/internal/sip"
	"github.com/stead-dev/stead/internal/sip/codesign"
	"github.com/stead-dev/stead/internal/sip/fixture"
	"github.com/stead-dev/stead/test/internal/bed"
)

const (
	size    = 150_000_000 // bytes
	repeats = 7
)

func main() {
	if err := bench(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func bench(work string) error {
	stead, err := filepath.Abs("bin/stead")
	if err != nil {
		return err
	}
	program, twin, cache := filepath.Join(work, "program"), filepath.Join(work, "twin"), filepath.Join(work, "cache")
	data := fixture.Program{Text: size, Sign: &fixture.Signature{Flags: codesign.FlagRuntime}}.Bytes()
	if err := os.WriteFile(program, data, 0o755); err != nil {
		return err
	}
	var bare, ours, ratios, beyond []float64
	for range repeats + 1 {
		os.Remove(twin)
		os.RemoveAll(cache)
		// What was written before is on the disk, for both.
		if err := exec.Command("sync").Run(); err != nil {
			return err
		}
		began := time.Now()
		for _, c := range [][]string{{"sha256sum", program}, {"cp", program, twin}} {
			if err := exec.Command(c[0], c[1:]...).Run(); err != nil {
				return fmt.Errorf("%s: %w", c[0], err)
			}
		}
		b := time.Since(began)
		if err := exec.Command("sync").Run(); err != nil {
			return err
		}
		c := exec.Command(stead, "sip", "patch", "--cache", cache, program)
		var out strings.Builder
		c.Stdout, c.Stderr = &out, os.Stderr
		began = time.Now()
		if err := c.Run(); err != nil {
			return fmt.Errorf("stead sip patch: %w", err)
		}
		o := time.Since(began)
		if err := check(strings.TrimSpace(out.String())); err != nil {
			return err
		}
		os.RemoveAll(cache)
		peak, err := bed.Peak(exec.Command(stead, "sip", "patch", "--cache", cache, program))
		if err != nil {
			return err
		}
		bare, ours = append(bare, b.Seconds()*1e3), append(ours, o.Seconds()*1e3)
		ratios, beyond = append(ratios, o.Seconds()/b.Seconds()), append(beyond, float64(peak-int64(len(data)))/(1<<20))
	}
	// The first round warms up.
	fmt.Println("| what | bare | stead sip patch | ratio |\n|---|---|---|---|")
	fmt.Printf("| copy of a protected 150 MB program, ms (bare: sha256sum and cp) | %s | %s | %s |\n", spread(bare[1:]), spread(ours[1:]), spread(ratios[1:]))
	fmt.Printf("| its memory beyond the mapped file, MiB | | %s | |\n", spread(beyond[1:]))
	return nil
}

// check makes sure that what was measured was the making of a whole copy.
func check(path string) error {
	checks, err := sip.Verify(path)
	if err != nil {
		return err
	}
	for _, c := range checks {
		if !c.Signed || c.Problems != nil || c.Pages < size/codesign.PageSize {
			return fmt.Errorf("%s: %+v", path, c)
		}
	}
	return nil
}

func spread(d []float64) string {
	s := slices.Clone(d)
	slices.Sort(s)
	return fmt.Sprintf("%.2f (%.2f..%.2f)", s[len(s)/2], s[len(s)/4], s[len(s)*3/4])
}
