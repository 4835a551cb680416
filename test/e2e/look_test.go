//go:build e2e

package e2e

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stead-dev/stead/test/internal/corpus"
)

// programs is where the corpus is built: the same directory for the laptop and, by a hostPath, the
// pod.
func programs() string { return filepath.Join(work, "programs") }

// buildPrograms builds the corpus, and puts the app of the pods beside it.
func buildPrograms() error {
	if err := corpus.Build(programs()); err != nil {
		return err
	}
	if b, err := exec.Command("cp", work+"/image/app", programs()+"/app").CombinedOutput(); err != nil {
		return fmt.Errorf("cp: %w\n%s", err, b)
	}
	return nil
}

// same runs a program in the pod (kubectl exec) and under stead, and compares all that it says.
func same(t *testing.T, pod, container string, flags []string, argv ...string) (said string) {
	t.Helper()
	native := kubectl(append([]string{"exec", pod, "-c", container, "--"}, argv...)...)
	if native.code != 0 || native.stdout == "" {
		t.Fatalf("in the pod: exit code %d\n%s%s", native.code, native.stdout, native.stderr)
	}
	under := execIn("pod/"+pod+"/container/"+container, append([]string{"--no-incoming"}, flags...), argv...)
	if diff := cmp.Diff(native.stdout, under.stdout); diff != "" || under.code != 0 || under.stderr != native.stderr {
		t.Errorf("exit code %d, stderr %s (in the pod: %s)\n- pod + stead:\n%s", under.code, under.stderr, native.stderr, diff)
	}
	return native.stdout
}

func TestRealProgramsSeeWhatTheySeeInThePod(t *testing.T) {
	pod := podOf(t, "orders")
	for _, c := range corpus.Programs(programs()) {
		t.Run(c.Name, func(t *testing.T) { same(t, pod, "orders", nil, c.Look...) })
	}
}

func TestFilesOfEveryKindOfMountAreThePods(t *testing.T) {
	for _, door := range []string{"mount", "copy"} {
		same(t, podOf(t, "orders"), "orders", []string{"--files", door}, programs()+"/app", "tree", "/etc/orders", "/etc/single.yaml", "/var/run/secrets",
			"/var/run/projected", "/var/data", "/var/programs", "/etc/resolv.conf", "/etc/hosts", "/etc/hostname")
	}
}

// One target has no shell, no root and no file that can be written; the other shares its processes with
// another container.
func TestTheFilesOfOtherKindsOfTargetsAreThePods(t *testing.T) {
	for _, c := range []struct{ app, roots string }{
		{"bare", `14 .*permission denied`}, // to the agent, which is root, too
		{"shared", `14 [0-9a-f]{64} <nil>`},
	} {
		pod := podOf(t, c.app)
		native := kubectl("exec", pod, "-c", c.app, "--", "/app", "tree", "/var/data", "/etc")
		under := execIn("deployment/"+c.app, []string{"--no-incoming"}, programs()+"/app", "tree", "/var/data", "/etc/resolv.conf", "/etc/hostname")
		for _, want := range strings.Split(strings.TrimSpace(under.stdout), "\n") {
			if !strings.Contains(native.stdout, want+"\n") {
				t.Errorf("%s: under stead %q, in the pod not", c.app, want)
			}
		}
		if under.code != 0 || !strings.Contains(under.stdout, "/var/data/private -rw------- 65532:65532 19") ||
			!regexp.MustCompile(`/var/data/roots -rw------- 0:0 `+c.roots).MatchString(under.stdout) {
			t.Errorf("%s: exit code %d: %s%s", c.app, under.code, under.stdout, under.stderr)
		}
	}
}

func TestTheEnvironmentIsThePods(t *testing.T) {
	pod := podOf(t, "orders")
	native := kubectl("exec", pod, "--", "/app", "env")
	under := execIn("pod/"+pod, nil, programs()+"/app", "env")
	have := make(map[string]bool)
	for _, kv := range strings.Split(under.stdout, "\n") {
		have[kv] = true
	}
	n := 0
	for _, kv := range strings.Split(strings.TrimSpace(native.stdout), "\n") {
		if k, _, _ := strings.Cut(kv, "="); k == "PATH" || k == "HOME" || k == "TERM" {
			continue // the laptop's
		}
		n++
		if !have[kv] {
			t.Errorf("%s is not there under stead", kv)
		}
	}
	if n < 15 || !have["SECRET_PASSWORD=p4ss = word"] || !strings.Contains(under.stdout, "\nNODE_NAME=node") {
		t.Errorf("only %d variables: %s%s", n, under.stdout, under.stderr)
	}
}

func TestNamesAndAddressesOfTheClusterAreReachedAsFromThePod(t *testing.T) {
	node := kubectl("get", "node", "node1", "-o", `jsonpath={.status.addresses[?(@.type=="InternalIP")].address}`).stdout
	dbIP := kubectl("get", "pod", "db-0", "-o", "jsonpath={.status.podIP}").stdout
	vip := kubectl("get", "service", "db-vip", "-o", "jsonpath={.spec.clusterIP}").stdout
	served := []string{
		"db:5432", "db-0.db:5432", "db.shop:5432", "db.shop.svc:5432", "db.shop.svc.cluster.local:5432", "db-vip:5432", // names, by every search domain
		vip + ":5432", dbIP + ":5432", node + ":30432", // ClusterIP, pod, NodePort
	}
	said := same(t, podOf(t, "orders"), "orders", nil, append([]string{programs() + "/app", "reach", "db:1", "no-such-name:80", "kube-dns.kube-system:53"}, served...)...)
	for _, a := range served {
		if !strings.Contains(said, "tcp "+a+` "db: ping\n" ok `) {
			t.Errorf("%s does not answer: %s", a, said)
		}
	}
	for _, want := range []string{"tcp db:1 connection refused\n", "name no-such-name [] not found: "} {
		if !strings.Contains(said, want) {
			t.Errorf("no %q: %s", want, said)
		}
	}
}

func TestTheKubernetesAPIIsReachedWithThePodsToken(t *testing.T) {
	const objects = "/api/v1/namespaces/shop/"
	said := same(t, podOf(t, "orders"), "orders", nil, programs()+"/app", "api", objects+"configmaps/orders", objects+"secrets/orders", "/version")
	for _, want := range []string{"api " + objects + "configmaps/orders 200 {ConfigMap ", "api " + objects + "secrets/orders 403 {Status ", "api /version 200 "} {
		if !strings.Contains(said, want) {
			t.Errorf("no %q: %s", want, said)
		}
	}
}
