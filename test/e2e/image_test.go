//go:build e2e

package e2e

import (
	"bufio"
	"encoding/base64"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stead-dev/stead/test/internal/bed"
)

// node runs a command of this machine's in the network of the node.
func node(args ...string) result {
	return command("", filepath.Join(bed.Root(), "test/cluster/cluster.sh"), append([]string{"net"}, args...)...)
}

// serveImages serves a registry on the loopback of node1, which containerd trusts without TLS.
func serveImages(t *testing.T, args ...string) (registry string) {
	t.Helper()
	registry = filepath.Join(work, "registry")
	build := exec.Command("go", "build", "-o", registry, "./test/e2e/registry")
	build.Dir = bed.Root()
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	serve := exec.Command(filepath.Join(bed.Root(), "test/cluster/cluster.sh"), append([]string{"net", registry, "serve"}, args...)...)
	in, err := serve.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := serve.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := serve.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); serve.Wait() })
	if l, _ := bufio.NewReader(out).ReadString('\n'); l != "serving\n" {
		t.Fatalf("the registry says %q", l)
	}
	return registry
}

// TestTheImageIsPushedPulledAndRefusedWhereItHasNothingForTheNode: what a newcomer does, with a
// registry that the node pulls from.
func TestTheImageIsPushedPulledAndRefusedWhereItHasNothingForTheNode(t *testing.T) {
	const addr = "127.0.0.1:5555"
	registry := serveImages(t, addr)
	if r := apply(strings.Replace(pod("here", namespace, "registry.local/e2e:1", "idle"), "spec: {", "spec: {nodeName: node1, ", 1)); r.code != 0 {
		t.Fatal(r.stderr)
	}
	t.Cleanup(func() { kubectl("delete", "pod", "here", "--wait=false") })
	if r := kubectl("wait", "--for=condition=Ready", "pod/here", "--timeout=60s"); r.code != 0 {
		t.Fatal(r.stderr)
	}
	ref := addr + "/tools/stead-agent:" + fmt.Sprint(time.Now().UnixNano())
	if r := node(stead, "agent", "image", "--push", ref); r.code != 0 || !strings.HasPrefix(r.stdout, addr+"/tools/stead-agent@sha256:") {
		t.Fatalf("exit code %d: %s%s", r.code, r.stdout, r.stderr)
	}
	run := func(image string) result {
		return execIn("pod/here", []string{"--no-incoming", "--agent-image", image}, "hostname")
	}
	if r := run(ref); r.code != 0 || r.stdout != "here\n" {
		t.Errorf("pulled: exit code %d: %s%s", r.code, r.stdout, r.stderr)
	}
	nothingLeft(t, soon) // the next is to need its own image
	t.Run("where the registry wants a login", func(t *testing.T) {
		const addr, user, password = "127.0.0.1:5556", "ann", "s3cret"
		serveImages(t, addr, user+":"+password)
		ref := addr + "/tools/stead-agent:" + fmt.Sprint(time.Now().UnixNano())
		logins := t.TempDir()
		if r := node("env", "DOCKER_CONFIG="+logins, stead, "agent", "image", "--push", ref); r.code != 125 || !strings.Contains(r.stderr, "docker login "+addr) {
			t.Errorf("without it: exit code %d: %s%s", r.code, r.stdout, r.stderr)
		}
		file := fmt.Sprintf(`{"auths": {%q: {"auth": %q}}}`, addr, base64.StdEncoding.EncodeToString([]byte(user+":"+password))) // as docker login writes it
		if err := os.WriteFile(filepath.Join(logins, "config.json"), []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		if r := node("env", "DOCKER_CONFIG="+logins, stead, "agent", "image", "--push", ref); r.code != 0 || !strings.HasPrefix(r.stdout, addr+"/tools/stead-agent@sha256:") {
			t.Fatalf("with it: exit code %d: %s%s", r.code, r.stdout, r.stderr)
		}
		if r := fails("pod/here", "--agent-image", ref); r.code != 125 || !strings.Contains(r.stderr, "image cannot be pulled") || !strings.Contains(r.stderr, "--agent-pull-secret") {
			t.Errorf("pulled without a login: exit code %d: %s", r.code, r.stderr)
		}
		nothingLeft(t, soon)
		if r := kubectl("create", "secret", "docker-registry", "pull", "--docker-server="+addr, "--docker-username="+user, "--docker-password="+password); r.code != 0 {
			t.Fatal(r.stderr)
		}
		t.Cleanup(func() { kubectl("delete", "secret", "pull") })
		r := execIn("pod/here", []string{"--no-incoming", "--agent-image", ref, "--agent-pull-secret", "pull"}, "hostname")
		if r.code != 0 || r.stdout != "here\n" {
			t.Errorf("pulled with a login: exit code %d: %s%s", r.code, r.stdout, r.stderr)
		}
		nothingLeft(t, soon)
	})
	other := map[string]string{"amd64": "arm64", "arm64": "amd64"}[runtime.GOARCH]
	if r := node(registry, "narrow", ref, ref+"-other", other); r.code != 0 {
		t.Fatal(r.stderr)
	}
	refused := func(what, image string) {
		t.Helper()
		r := fails("pod/here", "--agent-image", image)
		if r.code != 125 || !strings.Contains(r.stderr, "its image has no agent for the architecture of node node1") || !strings.Contains(r.stderr, "hint: stead agent image makes one for amd64 and arm64") {
			t.Errorf("%s: exit code %d: %s", what, r.code, r.stderr)
		}
	}
	refused("an index without this architecture", ref+"-other")
	// One whose image does not tell the truth of what is in it.
	foreign := agentImageOf(t, "registry.local/stead-agent:foreign", "GOARCH="+other)
	refused("an agent of another architecture", foreign)
	nothingLeft(t, soon)
}

// agentImageOf builds an agent anew, with a changed environment or with files of the source replaced
// (OLD=NEW in FILE), and gives the node its image.
func agentImageOf(t *testing.T, name, env string, replace ...string) string {
	t.Helper()
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	args := []string{"build", "-trimpath", "-o", root + "/stead-agent"}
	if len(replace) == 3 {
		file := filepath.Join(bed.Root(), replace[0])
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Count(string(b), replace[1]) != 1 {
			t.Fatalf("%s has not one %q", file, replace[1])
		}
		changed := filepath.Join(dir, "changed.go")
		overlay := filepath.Join(dir, "overlay.json")
		if err := os.WriteFile(changed, []byte(strings.Replace(string(b), replace[1], replace[2], 1)), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(overlay, fmt.Appendf(nil, `{"Replace": {%q: %q}}`, file, changed), 0o644); err != nil {
			t.Fatal(err)
		}
		args = append(args, "-overlay", overlay)
	}
	build := exec.Command("go", append(args, "./cmd/stead-agent")...)
	build.Dir, build.Env = bed.Root(), append(os.Environ(), "CGO_ENABLED=0", env)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build agent: %v\n%s", err, out)
	}
	file := filepath.Join(dir, "image.tar")
	if out, err := exec.Command(filepath.Join(tools, "boot"), "image", file, name, root, "/stead-agent").CombinedOutput(); err != nil {
		t.Fatalf("image: %v\n%s", err, out)
	}
	if _, err := cluster("load", file); err != nil {
		t.Fatal(err)
	}
	return name
}

// An agent of another version is used where the protocol says that it can be, else refused.
func TestAnAgentOfAnotherVersionIsUsedOrRefused(t *testing.T) {
	const wire, knock = "internal/wire/wire.go", "internal/knock/knock.go"
	for _, c := range []struct {
		name    string
		replace []string
		refused []string
	}{
		{"newer, and speaks the old protocol too", []string{wire, "	Version    = 1\n", "	Version    = 2\n"}, nil},
		{"newer, and does not", []string{wire, "	Version    = 1\n	MinVersion = 1\n", "	Version    = 3\n	MinVersion = 2\n"}, []string{"speaks protocol 1 to 1, the agent devel speaks 2 to 3", "a stead and an agent of the same version"}},
		{"older", []string{wire, "	Version    = 1\n	MinVersion = 1\n", "	Version    = 0\n	MinVersion = 0\n"}, []string{"speaks protocol 1 to 1, the agent devel speaks 0 to 0", "a stead and an agent of the same version"}},
		{"with another greeting", []string{knock, "const Protocol = 2\n", "const Protocol = 9\n"}, []string{"it speaks another protocol: the agent 9, this stead 2", "stead agent image --push"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			nothingLeft(t, soon) // no agent that is there already
			image := agentImageOf(t, "registry.local/stead-agent:"+strings.ToLower(strings.NewReplacer(" ", "-", ",", "").Replace(c.name)), "GOFLAGS=", c.replace...)
			if c.refused == nil {
				r := execIn("deployment/bare", []string{"--no-incoming", "--agent-image", image}, "cat", "/etc/hostname")
				if r.code != 0 || !strings.HasPrefix(r.stdout, "bare-") {
					t.Errorf("exit code %d: %s%s", r.code, r.stdout, r.stderr)
				}
				return
			}
			r := fails("deployment/bare", "--agent-image", image)
			if r.code != 125 || !strings.Contains(r.stderr, c.refused[0]) || !strings.Contains(r.stderr, "hint: ") || !strings.Contains(r.stderr, c.refused[1]) {
				t.Errorf("exit code %d, want %q: %s", r.code, c.refused, r.stderr)
			}
		})
	}
	nothingLeft(t, soon)
}
