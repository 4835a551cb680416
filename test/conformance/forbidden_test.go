package conformance

import (
	"bufio"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stead-dev/stead/test/internal/bed"
)

// A process of the user's own in another user namespace, as a rootless container's is.
func TestAProcessInAForeignUserNamespaceIsATarget(t *testing.T) {
	dir := ordinary(t)
	b := &bed.Bed{Stead: filepath.Join(dir, "stead"), T: t, Cred: &syscall.Credential{Uid: nobody, Gid: nobody}}
	b.Env = []string{"PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME=" + t.TempDir()}
	c := exec.Command("unshare", "--user", "--map-root-user", "--net", "--uts", "--mount", "--kill-child", "--fork", "sh", "-c",
		"hostname foreign-0 && ip link set lo up && mkdir -p /var/tmp && mount -t tmpfs x /mnt && echo theirs > /mnt/own && cd /mnt && "+
			"GREETING=hello exec /usr/bin/env python3 -u -c 'import http.server, os\n"+
			"class H(http.server.SimpleHTTPRequestHandler):\n"+
			"    def log_message(self, *a): pass\n"+
			"s = http.server.ThreadingHTTPServer((\"\", 8080), H); print(\"up\"); s.serve_forever()'")
	c.Env, c.Dir, c.SysProcAttr = b.Env, "/", &syscall.SysProcAttr{Credential: b.Cred}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
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
	target := "process/" + strings.TrimSpace(string(children))
	for _, door := range doors {
		r := b.Run("exec", "-t", target, "--files", door, "--", "/usr/bin/env", "python3", "-c",
			"import os, urllib.request; print(os.uname().nodename, os.environ['GREETING'], open('/mnt/own').read().strip(), urllib.request.urlopen('http://127.0.0.1:8080/own').read())")
		if want := "foreign-0 hello theirs b'theirs\\n'\n"; r.Stdout != want || r.Code != 0 || r.Stderr != "" {
			t.Errorf("by %s: exit code %d: %q, want %q; %s", door, r.Code, r.Stdout, want, r.Stderr)
		}
	}
	serve := b.Command("exec", "-t", target, "--steal", "--", dir+"/goprobe", "serve", "8080", "1")
	lines, err := serve.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := serve.Start(); err != nil {
		t.Fatal(err)
	}
	defer serve.Process.Kill()
	bufio.NewReader(lines).ReadString('\n')
	r := b.Run("exec", "-t", target, "--no-incoming", "--", "/usr/bin/env", "python3", "-c", "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:8080/').read())")
	if !strings.Contains(r.Stdout, "go program: GET /") {
		t.Errorf("the request was not stolen: %q %s", r.Stdout, r.Stderr)
	}
	serve.Wait()
}
