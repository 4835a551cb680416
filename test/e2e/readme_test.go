//go:build e2e

package e2e

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stead-dev/stead/test/internal/bed"
)

// step is one command that the README shows, with what it prints.
type step struct{ command, output string }

// readmeSteps reads the commands of the README's console blocks. One whose quotes are open at the end of
// its line goes on in the next.
func readmeSteps(t *testing.T) (out []step) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(bed.Root(), "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, block := range regexp.MustCompile("(?ms)^```console\n(.*?)^```$").FindAllStringSubmatch(string(b), -1) {
		var last *step
		for line := range strings.Lines(block[1]) {
			command, begins := strings.CutPrefix(line, "$ ")
			switch {
			case begins:
				out = append(out, step{command: command})
				last = &out[len(out)-1]
			case last == nil: // what is printed later
			case strings.Count(last.command, "'")%2 == 1:
				last.command += line
			default:
				last.output += line
			}
		}
	}
	return out
}

// varying is what is another with each run: names of pods, addresses, times.
var varying = regexp.MustCompile(`orders-[0-9a-z]+-[0-9a-z]{5}\b|\d+\.\d+\.\d+\.\d+|\d\d/[A-Z][a-z]{2}/\d{4} \d\d:\d\d:\d\d`)

// numbered puts numbers in the place of what varies: the same one for the same thing.
func numbered(s string) string {
	seen := make(map[string]string)
	return varying.ReplaceAllStringFunc(s, func(v string) string {
		if seen[v] == "" {
			seen[v] = fmt.Sprintf("<%d>", len(seen)+1)
		}
		return seen[v]
	})
}

func TestTheSessionsThatTheREADMEShowsPrintWhatItShows(t *testing.T) {
	ran := 0
	for _, s := range readmeSteps(t) {
		if !strings.HasPrefix(s.command, "stead exec ") || !strings.Contains(s.command, " deployment/orders -n shop ") {
			continue
		}
		ran++
		t.Run(strings.TrimSpace(s.command), func(t *testing.T) {
			c := exec.Command("bash", "-c", s.command)
			c.Dir = t.TempDir()
			c.Env = append(environment(), "PATH="+filepath.Dir(stead)+":"+tools+":"+os.Getenv("PATH"))
			c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			out, err := c.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			c.Stderr = c.Stdout // a terminal shows both
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			stop := func(s syscall.Signal) { syscall.Kill(-c.Process.Pid, s) }
			late := time.AfterFunc(limit, func() { stop(syscall.SIGKILL) })
			defer late.Stop()
			serves, said := strings.Contains(s.output, `"GET / HTTP`), ""
			for lines := bufio.NewScanner(out); lines.Scan(); {
				if strings.Contains(lines.Text(), "of the laptop is taken or privileged") { // here, by somebody else
					continue
				}
				said += lines.Text() + "\n"
				if strings.HasPrefix(lines.Text(), "Serving ") {
					if r := call("http://orders/", "1"); r.code != 0 {
						t.Errorf("from another pod: %s", r.stderr)
					}
				}
				if serves && strings.Count(said, "\n") == strings.Count(s.output, "\n") { // the reader has seen it
					break
				}
			}
			if serves {
				stop(interrupt)
				io.Copy(io.Discard, out)
			}
			err = c.Wait()
			if diff := cmp.Diff(numbered(s.output), numbered(said)); diff != "" || err != nil && !serves {
				t.Errorf("%v\n- README + printed:\n%s", err, diff)
			}
		})
	}
	if ran < 2 {
		t.Errorf("only %d sessions are shown", ran)
	}
	if r := call("http://orders/", "10"); strings.Count(r.stdout, "pod orders-") != 10 {
		t.Errorf("afterwards: %s%s", r.stdout, r.stderr)
	}
	nothingLeft(t, soon)
}
