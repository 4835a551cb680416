// Package demo holds that the demo runs and that the README shows what it prints.
package demo

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/stead-dev/stead/test/internal/bed"
)

// same makes alike what differs from run to run: numbers, columns, the machine's name.
func same(line string) string {
	line = regexp.MustCompile(`\x1b\[[0-9]*m|^\S+( is this machine)`).ReplaceAllString(line, "$1")
	line = regexp.MustCompile(`\d+`).ReplaceAllString(line, "N")
	return strings.Join(strings.Fields(line), " ")
}

func TestTheReadmeShowsWhatTheDemoPrints(t *testing.T) {
	readme, err := os.ReadFile(bed.Root() + "/README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, shown, _ := strings.Cut(string(readme), "$ make demo\n")
	shown, _, found := strings.Cut(shown, "```")
	if !found {
		t.Fatal("README.md: no demo")
	}
	c := exec.Command("make", "-s", "demo")
	c.Dir = bed.Root()
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	rest := strings.Split(string(out), "\n")
	for line := range strings.Lines(shown) {
		if same(line) == "" || same(line) == "..." {
			continue
		}
		at := 0
		for at < len(rest) && same(rest[at]) != same(line) {
			at++
		}
		if at == len(rest) {
			t.Fatalf("README.md shows a line that the demo does not print, or not there: %s\n%s", line, out)
		}
		rest = rest[at+1:]
	}
}
