//go:build e2e

// Package e2e runs stead against a real cluster (test/cluster): make e2e. The cluster is started
// when there is none, and then ended; the namespace shop holds what the tests stand for.
package e2e

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stead-dev/stead/test/internal/bed"
)

const (
	namespace  = "shop"
	agentImage = "registry.local/stead-agent:e2e"
	limit      = 3 * time.Minute // of every command: a hang, not a slow machine
)

var (
	work       string // what the tests build
	stead      string
	kubeconfig string
	tools      string // the directory of kubectl and of the cluster's own tools
	lastNode   string // node2 of two
)

func TestMain(m *testing.M) {
	work = filepath.Join(bed.Cache(), "e2e")
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

func cluster(args ...string) (string, error) { return clusterAt("node1", args...) }

// clusterAt runs cluster.sh for a node.
func clusterAt(node string, args ...string) (string, error) {
	c := exec.Command(filepath.Join(bed.Root(), "test/cluster/cluster.sh"), args...)
	c.Env = append(os.Environ(), "I="+strings.TrimPrefix(node, "node"))
	out, err := c.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("cluster.sh %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return string(out), err
}

func run(m *testing.M) (int, error) {
	stead = filepath.Join(bed.Root(), "bin/stead") // make e2e has built it, agents and all
	if err := os.MkdirAll(work, 0o755); err != nil {
		return 0, err
	}
	if _, err := cluster("status"); err != nil {
		if out, err := cluster("up"); err != nil {
			return 0, fmt.Errorf("%w\n%s", err, out)
		}
		defer cluster("down")
	}
	out, err := exec.Command("bash", "-c", `. "$0/test/cluster/env" && echo "$KUBECONFIG" && dirname "$(command -v kubectl)"`, bed.Root()).Output()
	lines := strings.Fields(string(out))
	if err != nil || len(lines) != 2 {
		return 0, fmt.Errorf("test/cluster/env: %v %q", err, out)
	}
	kubeconfig, tools = lines[0], lines[1]
	if err := shape(); err != nil {
		return 0, err
	}
	if err := furnish(); err != nil {
		return 0, err
	}
	defer kubectl("delete", "namespace", namespace, "--wait=false")
	return m.Run(), nil
}

// shape fails unless the cluster is the one that is asked for: one that was up may be another.
func shape() error {
	nodes, mode := strings.Fields(kubectl("get", "nodes", "-o", "jsonpath={.items[*].metadata.name}").stdout), cmp.Or(os.Getenv("PROXY_MODE"), "nftables")
	want := cmp.Or(os.Getenv("NODES"), "1")
	if strconv.Itoa(len(nodes)) != want {
		return fmt.Errorf("the cluster that is up has the nodes %v, NODES is %s; first: make cluster-down", nodes, want)
	}
	for _, n := range nodes { // kube-proxy itself says
		out, err := clusterAt(n, "net", filepath.Join(tools, "../root/bin/busybox"), "wget", "-qO-", "http://127.0.0.1:10249/proxyMode")
		if err != nil || strings.TrimSpace(out) != mode {
			return fmt.Errorf("kube-proxy of %s is in mode %q, PROXY_MODE is %s (%v); first: make cluster-down", n, out, mode, err)
		}
	}
	lastNode = slices.Max(nodes)
	return nil
}

// furnish gives the cluster the images and the namespace.
func furnish() error {
	root := filepath.Join(work, "image")
	if err := errors.Join(os.RemoveAll(root), os.MkdirAll(root+"/etc", 0o755)); err != nil {
		return err
	}
	build := exec.Command("go", "build", "-trimpath", "-o", root+"/app", "./test/e2e/app")
	build.Dir, build.Env = bed.Root(), append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build app: %w\n%s", err, out)
	}
	// The node's /usr is mounted there in orders, so that real programs run in the pod.
	err := errors.Join(
		os.Symlink("usr/bin", root+"/bin"), os.Symlink("usr/lib", root+"/lib"), os.Symlink("usr/lib64", root+"/lib64"),
		os.Mkdir(root+"/tmp", 0o1777), os.WriteFile(root+"/etc/passwd", []byte("root:x:0:0:root:/:/bin/sh\n"), 0o644),
		os.WriteFile(root+"/etc/nsswitch.conf", []byte("hosts: files dns\n"), 0o644),
	)
	if err != nil {
		return err
	}
	appTar, agentTar := filepath.Join(work, "app.tar"), filepath.Join(work, "agent.tar")
	if out, err := exec.Command(filepath.Join(tools, "boot"), "image", appTar, "registry.local/e2e:1", root, "/app").CombinedOutput(); err != nil {
		return fmt.Errorf("image: %w\n%s", err, out)
	}
	if out, err := exec.Command(stead, "agent", "image", "--output", agentTar, "--name", agentImage).CombinedOutput(); err != nil {
		return fmt.Errorf("stead agent image: %w\n%s", err, out)
	}
	if _, err := cluster("load", appTar, agentTar); err != nil {
		return err
	}
	// Of two nodes the scheduler is to take the one without the API server wherever it is free, and the same
	// one in each run.
	if lastNode != "node1" {
		if r := kubectl("taint", "node", "node1", "stead.dev/e2e=elsewhere:PreferNoSchedule", "--overwrite"); r.code != 0 {
			return errors.New(r.stderr)
		}
	}
	b, err := os.ReadFile(filepath.Join(bed.Root(), "test/e2e/shop.yaml"))
	if err != nil {
		return err
	}
	if err := buildPrograms(); err != nil {
		return err
	}
	b = bytes.ReplaceAll(b, []byte("PROGRAMS"), []byte(programs()))
	b = bytes.ReplaceAll(b, []byte("LAST"), []byte(lastNode))
	if r := kubectl("delete", "namespace", namespace, "--ignore-not-found"); r.code != 0 {
		return errors.New(r.stderr)
	}
	if r := apply(string(b)); r.code != 0 {
		return errors.New(r.stderr)
	}
	for _, w := range []string{"deployment/orders", "statefulset/db", "deployment/bare", "deployment/shared", "deployment/single", "deployment/double"} {
		if r := kubectl("rollout", "status", w, "--timeout=120s"); r.code != 0 {
			return fmt.Errorf("%s%s", r.stderr, kubectl("describe", "pods").stdout)
		}
	}
	if r := kubectl("wait", "--for=condition=Ready", "pod/client", "--timeout=60s"); r.code != 0 {
		return errors.New(r.stderr)
	}
	return nil
}

// result is how a command ended.
type result struct {
	stdout, stderr string
	code           int
}

func command(input, name string, args ...string) result { return within(limit, input, name, args...) }

// within runs a command that must end within a time.
func within(limit time.Duration, input, name string, args ...string) result {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	c := exec.CommandContext(ctx, name, args...)
	c.Env = environment()
	c.Dir = work
	c.Stdin = strings.NewReader(input)
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	c.WaitDelay = 5 * time.Second
	err := c.Run()
	if ctx.Err() != nil {
		fmt.Fprintf(&errs, "\n%s did not end within %v", name, limit)
	} else if c.ProcessState == nil {
		fmt.Fprintln(&errs, err)
		return result{out.String(), errs.String(), -1}
	}
	return result{out.String(), errs.String(), c.ProcessState.ExitCode()}
}

func environment() []string {
	env := slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "NODE_") }) // node would look for a file of the laptop's
	return append(env, "KUBECONFIG="+kubeconfig, "STEAD_AGENT_IMAGE="+agentImage, "PATH="+tools+":"+os.Getenv("PATH"))
}

func kubectl(args ...string) result {
	return command("", filepath.Join(tools, "kubectl"), append([]string{"-n", namespace}, args...)...)
}

func apply(yaml string) result {
	return command(yaml, filepath.Join(tools, "kubectl"), "apply", "-f", "-")
}

// execIn runs a program in the stead of a target.
func execIn(target string, flags []string, argv ...string) result {
	args := append([]string{"exec", "-q", "-n", namespace, "--target", target}, flags...)
	return command("", stead, append(append(args, "--"), argv...)...)
}

// podOf is the first pod of an app, by its name.
func podOf(t *testing.T, app string) string {
	t.Helper()
	r := kubectl("get", "pods", "-l", "app="+app, "--field-selector=status.phase=Running", "-o", "jsonpath={.items[*].metadata.name}")
	names := strings.Fields(r.stdout)
	if len(names) == 0 {
		t.Fatalf("no pod of %s: %s", app, r.stderr)
	}
	return names[0]
}

// nodeOf is the node of a pod: the scheduler chooses it, and no test may take it for granted.
func nodeOf(t *testing.T, ns, pod string) string {
	t.Helper()
	r := kubectl("get", "pod", pod, "-n", ns, "-o", "jsonpath={.spec.nodeName}")
	if r.code != 0 || r.stdout == "" {
		t.Fatalf("the node of %s/%s: %s", ns, pod, r.stderr)
	}
	return r.stdout
}

// How long something of ours may stay in the cluster after the last session: where the agent knows that
// it has ended, and where only the lease tells.
const (
	soon  = 15 * time.Second
	lease = 60 * time.Second
)

// marked is what the cluster has of ours: objects of any kind, in every namespace.
func marked() result {
	kinds := kubectl("api-resources", "--verbs=list", "-o", "name", "--cached")
	if kinds.code != 0 {
		return kinds
	}
	return kubectl("get", strings.Join(strings.Fields(kinds.stdout), ","), "-A", "-l", "app.kubernetes.io/managed-by=stead", "-o", "name", "--ignore-not-found")
}

// nothingLeft fails the test if something of ours stays in the cluster.
func nothingLeft(t *testing.T, within time.Duration) {
	t.Helper()
	began := time.Now()
	var agents, objects result
	for end := began.Add(within); ; time.Sleep(200 * time.Millisecond) {
		agents = command("", stead, "agents", "-A")
		if objects = marked(); agents.code == 0 && objects.code == 0 && agents.stdout+objects.stdout == "" {
			t.Logf("what was ours went within %v", time.Since(began).Round(100*time.Millisecond))
			return
		}
		if time.Now().After(end) {
			break
		}
	}
	t.Errorf("left after %v: %s%s%s%s", within, agents.stdout, agents.stderr, objects.stdout, objects.stderr)
}
