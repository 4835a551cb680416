package conformance

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/stead-dev/stead/test/internal/bed"
)

// stayer answers each line with what it sees of the pod. Its working directory is the pod's.
const stayer = `
import errno, os, socket, sys
os.chdir("/var/data")
for line in sys.stdin:
    said = [os.getcwd(), open("who").read(), open("/var/data/who").read(), os.readlink("to"), open("/etc/hostname").read().strip()]
    said.append(str(sorted(set(os.listdir(".")) & {"who", "new", "old"})))
    said.append(str(os.path.exists("/usr/bin/env") and os.path.exists(sys.argv[1])))
    c = socket.create_connection(("db", 5432), 20)
    said.append(c.getpeername()[0] + " from " + c.getsockname()[0])
    c.close()
    print(" ".join(said), flush=True)
print("end")
`

// When the app of a pod is started anew, the program goes on: names are looked up in what is there
// then, also from a working directory of the pod's, and what the laptop has in the pod's tree stays.
func TestTheProgramGoesOnWhenTheAppOfItsPodIsStartedAnew(t *testing.T) {
	follow := func(t *testing.T, b *bed.Bed, own string) {
		write := func(text string) {
			t.Helper()
			if r := b.Native("/bin/sh", "-c", text); r.Code != 0 {
				t.Fatal(r.Stderr)
			}
		}
		for _, door := range []string{"mount", "trap"} {
			t.Run(door, func(t *testing.T) {
				write("cd /var/data && rm -f new to && echo -n one > who && touch old && ln -s one to")
				c := b.Command("exec", "-t", "playground/orders", "--no-incoming", "--files", door, "--", "/usr/bin/env", "python3", "-u", "-c", stayer, own)
				in, err := c.StdinPipe()
				if err != nil {
					t.Fatal(err)
				}
				out, err := c.StdoutPipe()
				if err != nil {
					t.Fatal(err)
				}
				errs, err := os.CreateTemp(t.TempDir(), "stderr")
				if err != nil {
					t.Fatal(err)
				}
				defer errs.Close()
				c.Stderr = errs
				said := func() string { b, _ := os.ReadFile(errs.Name()); return string(b) }
				if err := c.Start(); err != nil {
					t.Fatal(err)
				}
				lines := bufio.NewReader(out)
				ask := func() string {
					fmt.Fprintln(in)
					l, _ := lines.ReadString('\n')
					return strings.TrimSpace(l)
				}
				const there = " True fd00:244::12 from fd00:244::11"
				if got := ask(); got != "/var/data one one one orders-0 ['old', 'who']"+there {
					t.Fatalf("at first %q; %s", got, said())
				}
				app := func() int {
					for _, p := range b.Status().Pods {
						if p.Name == "orders" {
							return p.PID
						}
					}
					return 0
				}
				old := app()
				if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
				bed.Eventually(t, "its app is there again", func() bool { now := app(); return now != 0 && now != old })
				bed.Eventually(t, "the session goes on", func() bool { return strings.Contains(said(), "was started anew") })
				write("cd /var/data && rm -f old to && echo -n two > who && touch new && ln -s two to")
				last := ""
				bed.Eventually(t, "the program sees what is there now", func() bool {
					last = ask()
					return last == "/var/data two two two orders-0 ['new', 'who']"+there || last == ""
				})
				in.Close()
				if err := c.Wait(); err != nil || last == "" {
					t.Errorf("%v, last line %q: %s", err, last, said())
				}
			})
		}
	}
	t.Run("root", func(t *testing.T) { follow(t, bed.Up(t, stead, "conformance-follow"), programs+"/goprobe") })
	t.Run("an ordinary user", func(t *testing.T) {
		dir := ordinary(t)
		follow(t, bed.UpAs(t, dir+"/stead", "conformance-follow-user", nobody), dir+"/goprobe")
	})
}
