//go:build e2e

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stead-dev/stead/test/internal/bed"
)

// What anybody's tests find in the cluster, and may bring to it: make cluster-check looks at the rest.

// onEveryNode runs a pod of an image that is there already on every node, and gives what each of them prints.
func onEveryNode(t *testing.T, name, image, args string) (said []string) {
	t.Helper()
	for _, n := range strings.Fields(kubectl("get", "nodes", "-o", "jsonpath={.items[*].metadata.name}").stdout) {
		p := name + "-" + n
		if r := apply(`{apiVersion: v1, kind: Pod, metadata: {name: ` + p + `, namespace: shop}, spec: {nodeName: ` + n + `, restartPolicy: Never,
			containers: [{name: c, image: "` + image + `", imagePullPolicy: Never, args: [` + args + `]}]}}`); r.code != 0 {
			t.Fatal(r.stderr)
		}
		t.Cleanup(func() { kubectl("delete", "pod", p, "--wait=false") })
		if r := kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/"+p, "--timeout=60s"); r.code != 0 {
			t.Errorf("%s%s", r.stderr, kubectl("describe", "pod", p).stdout)
		}
		said = append(said, kubectl("logs", p).stdout)
	}
	return said
}

func TestTheImageOfBusyboxIsThereForAnybodysTests(t *testing.T) {
	for _, s := range onEveryNode(t, "busybox", "registry.local/busybox:1", "-c, 'echo here is $(hostname)'") {
		if !strings.HasPrefix(s, "here is busybox-node") {
			t.Errorf("it says %q", s)
		}
	}
}

func TestAnImageThatIsLoadedIsOnEveryNode(t *testing.T) {
	dir := t.TempDir()
	root, file := filepath.Join(dir, "root"), filepath.Join(dir, "image.tar")
	if out, err := exec.Command("cp", "-r", filepath.Join(work, "image"), root).CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	const image = "registry.local/loaded:1"
	if out, err := exec.Command(filepath.Join(tools, "boot"), "image", file, image, root, "/app").CombinedOutput(); err != nil {
		t.Fatalf("image: %v %s", err, out)
	}
	load := exec.Command("make", "-s", "cluster-load", "TAR="+file)
	load.Dir = bed.Root()
	if out, err := load.CombinedOutput(); err != nil {
		t.Fatalf("make cluster-load: %v %s", err, out)
	}
	for _, s := range onEveryNode(t, "loaded", image, "env") {
		if !strings.Contains(s, "HOSTNAME=loaded-node") {
			t.Errorf("it says %q", s)
		}
	}
	load = exec.Command("make", "-s", "cluster-load")
	load.Dir = bed.Root()
	if out, err := load.CombinedOutput(); err == nil || !strings.Contains(string(out), "usage: make cluster-load TAR=image.tar") {
		t.Errorf("without an image: %v %s", err, out)
	}
}

// A second make cluster-up finds what the first has built: it calls no compiler and fetches nothing.
func TestASecondClusterUpBuildsNothing(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"go", "apt-get", "dpkg"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\necho $0 $* >> "+dir+"/called\nexit 1\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	up := exec.Command("make", "-s", "cluster-up")
	up.Dir, up.Env = bed.Root(), append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"))
	out, err := up.CombinedOutput()
	if err != nil || string(out) != "already up\n" {
		t.Errorf("make cluster-up: %v %s", err, out)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "called")); err == nil {
		t.Errorf("it called %s", b)
	}
}
