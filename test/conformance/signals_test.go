package conformance

import (
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stead-dev/stead/test/internal/bed"
)

// A path call of a kernel's own file system is never interrupted, and few programs expect EINTR of one, with
// SA_RESTART even less. A pod may be far away: here its agent is stopped for a while.
func TestSignalsDoNotInterruptPathCalls(t *testing.T) {
	b := bed.Up(t, stead, "conformance-interrupt")
	for _, door := range doors {
		b.Exec([]string{"--no-incoming"}, "true") // its agent stays for the next
		agent := b.Status().Pods[0].Agent
		if agent == 0 {
			t.Fatal("no agent")
		}
		defer syscall.Kill(agent, syscall.SIGCONT)
		go func() {
			for range 20 { // whatever the program's own stop is too late for
				time.Sleep(100 * time.Millisecond)
				syscall.Kill(agent, syscall.SIGCONT)
			}
		}()
		r := b.Exec([]string{"--no-incoming", "--files", door}, "python3", "-c", `
import os, signal, sys, time
signal.signal(signal.SIGALRM, lambda *a: None); signal.siginterrupt(signal.SIGALRM, len(sys.argv)>2)
signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
def entry(i): return "/var/data/many/entry-%04d"%i
for i in range(0, 200, 4):
    if i%20==0: os.kill(int(sys.argv[1]), signal.SIGSTOP)
    os.stat(entry(i)); os.path.exists(entry(i+1)+"x"); os.listdir("/etc/orders"); open(entry(i+2)).read()
print("all")
`, strconv.Itoa(agent))
		if r.Stdout != "all\n" {
			t.Errorf("by %s: %q, exit code %d, %s", door, r.Stdout, r.Code, r.Stderr)
		}
	}
}
