//go:build e2e

package e2e

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// tool runs a command of stead that takes the namespace.
func tool(args ...string) result {
	return command("", stead, append(args, "-n", namespace)...)
}

func TestADeveloperWithExactlyTheRoleThatIsPrintedHasASession(t *testing.T) {
	const ann = "ann@example.com"
	role := tool("rbac", "--user", ann)
	if role.code != 0 {
		t.Fatal(role.stderr)
	}
	if r := apply(role.stdout); r.code != 0 {
		t.Fatal(r.stderr)
	}
	t.Cleanup(func() { kubectl("delete", "role,rolebinding", "stead") })
	nothingLeft(t, soon) // she starts the agent herself
	for _, target := range []string{"deployment/bare", "service/bare", "statefulset/db", "pod/client"} {
		if r := execIn(target, []string{"--as", ann, "--no-incoming"}, "true"); r.code != 0 {
			t.Errorf("%s: exit code %d: %s", target, r.code, r.stderr)
		}
	}
	s := begin(t, "deployment/bare", []string{"--as", ann, "--steal"}, programs()+"/goprobe", "serve", "8080", "1")
	s.expect("listening 8080")
	for _, args := range [][]string{{"ls"}, {"agents"}, {"agents", "clean"}} {
		if r := tool(append(args, "--as", ann)...); r.code != 0 || strings.Contains(r.stderr, "warning") {
			t.Errorf("stead %v: exit code %d: %s", args, r.code, r.stderr)
		}
	}
	if r := tool("doctor", "--as", ann, "--target", "deployment/bare"); r.code != 0 || strings.Contains(r.stdout, "FAIL") {
		t.Errorf("stead doctor: exit code %d: %s%s", r.code, r.stdout, r.stderr)
	}
	if r := call("http://bare/ann", "1"); !strings.HasPrefix(r.stdout, "go program: GET /ann") {
		t.Errorf("%s%s", r.stdout, r.stderr)
	}
	s.end()
	if r := tool("doctor", "--as", "eve@example.com"); r.code == 0 || !strings.Contains(r.stdout, "FAIL  right to create jobs") {
		t.Errorf("without the Role: exit code %d: %s", r.code, r.stdout)
	}
	nothingLeft(t, soon)
}

func TestADeveloperWithTheRoleForEphemeralAgentsHasASession(t *testing.T) {
	const bob = "bob@example.com"
	role := tool("rbac", "--user", bob, "--agent", "ephemeral")
	if r := apply(role.stdout); r.code != 0 {
		t.Fatal(role.stderr, r.stderr)
	}
	t.Cleanup(func() { kubectl("delete", "role,rolebinding", "stead") })
	nothingLeft(t, soon)
	r := execIn("pod/client", []string{"--as", bob, "--no-incoming"}, "true")
	if r.code != 125 || !strings.Contains(r.stderr, bob+" may not create jobs") {
		t.Errorf("a Job: exit code %d: %s", r.code, r.stderr)
	}
	if r := execIn("pod/client", []string{"--as", bob, "--no-incoming", "--agent", "ephemeral"}, "hostname"); r.code != 0 || r.stdout != "client\n" {
		t.Errorf("exit code %d: %s%s", r.code, r.stdout, r.stderr)
	}
}

// Nobody in the cluster reaches an agent but by the API server: it listens on the loopback of its own pod.
func TestAnAgentIsNotReachedByItsPodsAddress(t *testing.T) {
	s := begin(t, "deployment/bare", []string{"--no-incoming"}, "sh", "-c", "echo here; exec sleep 1000")
	s.expect("here")
	agents := slices.DeleteFunc(agentsNow(t), func(a agentRow) bool { return !strings.HasPrefix(a.Target, "shop/bare-") })
	if len(agents) != 1 || len(agents[0].Sessions) != 1 {
		t.Fatalf("agents: %v", agents)
	}
	ip := kubectl("get", "pod", agents[0].Pod, "-o", "jsonpath={.status.podIP}").stdout
	args := kubectl("get", "pod", agents[0].Pod, "-o", "jsonpath={.spec.containers[0].args}").stdout
	m := regexp.MustCompile(`"--listen","[^"]*:(\d+)"`).FindStringSubmatch(args)
	if m == nil {
		t.Fatalf("where does it listen? %s", args)
	}
	at := ip + ":" + m[1]
	if r := kubectl("exec", "client", "--", "/app", "reach", at); !strings.Contains(r.stdout, "tcp "+at+" connection refused\n") {
		t.Errorf("from another pod: %s%s", r.stdout, r.stderr)
	}
	s.cmd.Process.Signal(interrupt)
	s.end()
	nothingLeft(t, soon)
}

func TestSessionsThatBeginAtOnceShareOneAgent(t *testing.T) {
	nothingLeft(t, soon)
	const count = 5
	ends := make(chan result, count)
	for range count {
		go func() { ends <- execIn("deployment/bare", []string{"--no-incoming"}, "sh", "-c", "hostname; sleep 2") }()
	}
	most := 0
	for n := 0; n < count; {
		select {
		case r := <-ends:
			n++
			if r.code != 0 || !strings.HasPrefix(r.stdout, "bare-") {
				t.Errorf("exit code %d: %s%s", r.code, r.stdout, r.stderr)
			}
		default:
			jobs := kubectl("get", "jobs", "-l", "app.kubernetes.io/managed-by=stead", "-o", "name")
			most = max(most, len(strings.Fields(jobs.stdout)))
		}
	}
	if most != 1 {
		t.Errorf("%d agents for %d sessions of one container", most, count)
	}
	nothingLeft(t, soon)
}

// agentRow is an agent as stead agents tells of it.
type agentRow struct {
	Namespace, Pod, Target, State string
	Sessions                      []struct {
		Holder   string
		Incoming []string
	}
}

func agentsNow(t *testing.T) (agents []agentRow) {
	t.Helper()
	r := tool("agents", "-o", "json")
	if err := json.Unmarshal([]byte(r.stdout), &agents); err != nil || r.code != 0 {
		t.Fatalf("exit code %d, %v: %s%s", r.code, err, r.stdout, r.stderr)
	}
	return agents
}

func TestWhoUsesWhatIsTold(t *testing.T) {
	s := begin(t, "deployment/bare", []string{"--steal"}, programs()+"/goprobe", "serve", "8080", "1")
	s.expect("listening 8080")
	var listed []struct {
		Target, DefaultContainer string
		Ready                    int
		Pods, Users              []string
	}
	r := tool("ls", "-o", "json")
	if err := json.Unmarshal([]byte(r.stdout), &listed); err != nil {
		t.Fatalf("%v: %s%s", err, r.stdout, r.stderr)
	}
	users := make(map[string]int)
	for _, l := range listed {
		users[l.Target] = len(l.Users)
		if l.Target == "deployment/orders" && (l.Ready != 2 || len(l.Pods) != 2) || l.Target == "deployment/bare" && l.DefaultContainer != "bare" {
			t.Errorf("%+v", l)
		}
	}
	for target, want := range map[string]int{"deployment/bare": 1, "service/bare": 1, "deployment/orders": 0, "statefulset/db": 0, "pod/client": 0} {
		if n, ok := users[target]; !ok || n != want {
			t.Errorf("%s has %d users (listed: %v)", target, n, ok)
		}
	}
	used := 0
	for _, a := range agentsNow(t) {
		for _, s := range a.Sessions {
			used++
			if !strings.HasPrefix(a.Target, "shop/bare-") || len(s.Incoming) != 1 || s.Incoming[0] != "steal:8080" {
				t.Errorf("%+v", a)
			}
		}
	}
	if used != 1 {
		t.Errorf("%d sessions", used)
	}
	if r := tool("agents", "clean"); r.code != 0 || strings.Contains(r.stdout, "stead-bare") {
		t.Errorf("an agent in use was removed: %s%s", r.stdout, r.stderr)
	}
	call("http://bare/last", "1")
	s.end()
	nothingLeft(t, soon)
	if r := tool("agents"); r.code != 0 || r.stdout != "" {
		t.Errorf("agents after all of it: %s%s", r.stdout, r.stderr)
	}
}
