package conformance

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stead-dev/stead/test/internal/bed"
)

// What the app may not read, for it is no root, the program may not either, though agent and session
// are root's; what its groups give it, the program gets.
func TestTheProgramMayReadWhatTheAppMay(t *testing.T) {
	const who = "setpriv --reuid 65532 --regid 65532 --groups 2000 "
	dir := ordinary(t) // which the app can read, too
	look := filepath.Join(dir, "look.py")
	err := os.WriteFile(look, []byte(`
import errno, os
for name in ["all", "roots", "own", "groups", "others", "closed", "closed/in", "search", "search/in", "list", "fs", "fs/in", "link", "none", "closed/none"]:
    name = "/mnt/" + name
    for f in (lambda: oct(os.stat(name).st_mode), lambda: open(name).read(), lambda: sorted(os.listdir(name))):
        try:
            # That a directory may be listed shows when it is opened or when it is read.
            print(name, f() if f.__code__.co_names[0] != "open" or not os.path.isdir(name) else "directory")
        except OSError as e:
            print(name, errno.errorcode[e.errno])
`), 0o644)
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command("unshare", "--net", "--uts", "--mount", "--kill-child", "--fork", "sh", "-ec", `
mount -t tmpfs x /mnt; cd /mnt; chmod 755 .; umask 077
for f in all roots own groups others; do echo $f > $f; done
chmod 644 all; chown 65532:65532 own; chown :2000 groups; chmod 640 groups; chown 1000:1000 others
mkdir -m 700 closed; mkdir -m 711 search; mkdir -m 744 list; mkdir fs; for d in closed search list fs; do echo $d > $d/in; chmod 644 $d/in; done
chown -R :2000 fs; chmod 2770 fs; chmod 640 fs/in; ln -s closed/in link
echo up; exec `+who+`sleep 1000`)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.Stderr = os.Stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { c.Process.Kill(); c.Wait() }()
	if line, _ := bufio.NewReader(out).ReadString('\n'); line != "up\n" {
		t.Fatalf("the target is not up: %q", line)
	}
	children, err := exec.Command("pgrep", "-P", strconv.Itoa(c.Process.Pid)).Output()
	if err != nil {
		t.Fatal(err)
	}
	pid := strings.TrimSpace(string(children))
	defer exec.Command("kill", "-KILL", pid).Run() // it has changed its user, so it outlives its parent
	bed.Eventually(t, "the target is who it will be", func() bool {
		b, _ := os.ReadFile("/proc/" + pid + "/comm")
		return string(b) == "sleep\n"
	})
	native, err := exec.Command("nsenter", append([]string{"-t", pid, "-m"}, strings.Fields(who+"/usr/bin/env python3 "+look)...)...).Output()
	if err != nil || strings.Count(string(native), "EACCES") < 5 {
		t.Fatalf("%v: %s", err, native)
	}
	b := &bed.Bed{Stead: stead, T: t, Env: os.Environ()}
	for _, door := range doors {
		r := b.Run("exec", "-t", "process/"+pid, "--no-incoming", "--files", door, "--", "python3", look)
		if diff := cmp.Diff(string(native), r.Stdout); diff != "" || r.Code != 0 || r.Stderr != "" {
			t.Errorf("by %s: exit code %d, stderr %s\n- pod + stead:\n%s", door, r.Code, r.Stderr, diff)
		}
	}
}
