// Package leak tells what the tests of a package have left behind: goroutines that nobody waited for and
// descriptors that nobody closed. It is for TestMain alone.
package leak

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Main runs the tests and returns the exit code: theirs, or 1 when something of them is left that was not
// there before. What is ending has a while to end. kept are beginnings of descriptors' names ("pipe:")
// that a library keeps for later use.
func Main(run func() int, kept ...string) int {
	before := fds()
	if code := run(); code != 0 {
		return code
	}
	var left []string
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if left = append(goroutines(), opened(before, kept)...); len(left) == 0 {
			return 0
		}
	}
	for _, l := range left {
		fmt.Fprintln(os.Stderr, "left behind:", l)
	}
	return 1
}

// spared are functions of goroutines that live as long as the process, whoever began them.
var spared = []string{"os/signal.loop", "os/signal.signal_recv", "runtime.ensureSigM", "created by runtime", "testing.(*M).startAlarm"}

// goroutines returns the stacks of all but this one.
func goroutines() (out []string) {
	b := make([]byte, 64<<10)
	for n := runtime.Stack(b, true); ; n = runtime.Stack(b, true) {
		if n < len(b) {
			b = b[:n]
			break
		}
		b = make([]byte, 2*len(b))
	}
next:
	for i, g := range bytes.Split(b, []byte("\n\n")) {
		if i == 0 { // ours
			continue
		}
		for _, s := range spared {
			if bytes.Contains(g, []byte(s)) {
				continue next
			}
		}
		out = append(out, string(g))
	}
	return out
}

// fds returns what the descriptors of this process are, by number.
func fds() map[int]string {
	out := map[int]string{}
	d, err := os.Open("/proc/self/fd")
	if err != nil {
		return out // no Linux
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1)
	for _, n := range names {
		fd, err := strconv.Atoi(n)
		if err != nil || fd == int(d.Fd()) {
			continue
		}
		if to, err := os.Readlink("/proc/self/fd/" + n); err == nil {
			out[fd] = to
		}
	}
	return out
}

// opened returns the descriptors that were not there before, but for the runtime's poller.
func opened(before map[int]string, kept []string) (out []string) {
	kept = append([]string{"anon_inode:[eventpoll]", "anon_inode:[eventfd]"}, kept...)
	for fd, to := range fds() {
		if to != before[fd] && !slices.ContainsFunc(kept, func(k string) bool { return strings.HasPrefix(to, k) }) {
			out = append(out, fmt.Sprintf("descriptor %d: %s", fd, to))
		}
	}
	return out
}
