//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// answeredBy counts who answered requests through the Service.
func answeredBy(r result) (program, app int) {
	return strings.Count(r.stdout, "go program: GET "), strings.Count(r.stdout, "pod orders-")
}

func TestIncomingTrafficIsThatOfAllReplicasAlsoOfThoseThatCome(t *testing.T) {
	kubectl("rollout", "status", "deployment/orders", "--timeout=60s")
	s := begin(t, "deployment/orders", []string{"--steal"}, programs()+"/goprobe", "serve", "8080", "1000000")
	s.expect("listening 8080")
	s.collect() // its lines are many: it serves the probes, too
	r := call("http://orders/all", "40")
	if program, app := answeredBy(r); program != 40 {
		t.Errorf("of 40 requests the program answered %d, the app %d: %s", program, app, r.stderr)
	}
	if r := kubectl("get", "pods", "-l", "app.kubernetes.io/managed-by=stead", "-o", "name"); strings.Count(r.stdout, "pod/") != 2 {
		t.Errorf("agents: %s%s", r.stdout, r.stderr)
	}
	// A third comes, and one of the first two goes: not the one that the session stands for.
	first := ""
	for _, w := range strings.FieldsFunc(s.stderr(), func(r rune) bool { return strings.ContainsRune(" ;()\n", r) }) {
		if strings.HasPrefix(w, "orders-") {
			first = w
		}
	}
	if first == "" {
		t.Fatalf("which pod? %s", s.stderr())
	}
	if r := kubectl("scale", "deployment/orders", "--replicas=3"); r.code != 0 {
		t.Fatal(r.stderr)
	}
	t.Cleanup(func() {
		kubectl("scale", "deployment/orders", "--replicas=2")
		kubectl("rollout", "status", "deployment/orders", "--timeout=60s")
	})
	kubectl("rollout", "status", "deployment/orders", "--timeout=60s")
	all := func(what string) {
		t.Helper()
		var r result
		for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
			if r = call("http://orders/"+what, "30"); strings.Count(r.stdout, "go program") == 30 {
				return
			}
		}
		program, app := answeredBy(r)
		t.Errorf("%s: of 30 requests the program answered %d, the app %d: %s\n%s", what, program, app, r.stderr, s.stderr())
	}
	all("third")
	for _, p := range strings.Fields(kubectl("get", "pods", "-l", "app=orders", "-o", "jsonpath={.items[*].metadata.name}").stdout) {
		if p != first {
			if r := kubectl("delete", "pod", p); r.code != 0 {
				t.Fatal(r.stderr)
			}
			break
		}
	}
	kubectl("rollout", "status", "deployment/orders", "--timeout=60s")
	all("replaced")
	s.cmd.Process.Signal(interrupt)
	s.end()
	if r := call("http://orders/after", "20"); fmt.Sprint(answeredBy(r)) != "0 20" {
		t.Errorf("after the session: %s%s", r.stdout, r.stderr)
	}
	nothingLeft(t, soon)
}

func TestOneReplicaAloneIsStoodFor(t *testing.T) {
	s := begin(t, "deployment/orders", []string{"--steal", "--replica", "one"}, programs()+"/goprobe", "serve", "8080", "1000000")
	s.expect("listening 8080")
	s.collect()
	r := call("http://orders/one", "60")
	if program, app := answeredBy(r); program == 0 || app == 0 || program+app != 60 {
		t.Errorf("of 60 requests the program answered %d, the app %d: %s", program, app, r.stderr)
	}
	s.cmd.Process.Signal(interrupt)
	s.end()
	nothingLeft(t, soon)
}
