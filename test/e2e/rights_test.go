//go:build e2e

package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"
)

// agentStatus reads /proc/PID/status of the one agent that runs on a pod's node, as the kernel tells it.
func agentStatus(t *testing.T, pod string) map[string]string {
	t.Helper()
	out, err := clusterAt(nodeOf(t, namespace, pod), "enter", "bash", "-c",
		`for p in /proc/[0-9]*; do [ "$(tr '\0' ' ' < $p/cmdline 2>/dev/null | cut -c1-28)" = "/stead-agent --container-id " ] && cat $p/status; done; true`)
	if err != nil {
		t.Fatal(err)
	}
	status := make(map[string]string)
	for _, line := range strings.Split(out, "\n") {
		if k, v, ok := strings.Cut(line, ":"); ok {
			if status[k] != "" {
				t.Fatalf("more than one agent:\n%s", out)
			}
			status[k] = strings.TrimSpace(v)
		}
	}
	if status["Pid"] == "" {
		t.Fatalf("no agent on the node: %q", out)
	}
	return status
}

// What docs/kubernetes.md says of the agent's rights is what the kernel says, in both forms: nothing of
// what the runtime gives by default.
func TestTheAgentHasTheRightsThatAreSaidAndNoOthers(t *testing.T) {
	// By include/uapi/linux/capability.h.
	numbers := map[string]uint{"SYS_ADMIN": 21, "SYS_PTRACE": 19, "NET_ADMIN": 12, "NET_RAW": 13, "DAC_READ_SEARCH": 2, "SETUID": 7, "SETGID": 6, "NET_BIND_SERVICE": 10}
	var want uint64
	for _, n := range numbers {
		want |= 1 << n
	}
	nothingLeft(t, 30*time.Second)
	for _, form := range []string{"job", "ephemeral"} {
		t.Run(form, func(t *testing.T) {
			s := begin(t, "statefulset/db", []string{"--no-incoming", "--agent", form}, "sh", "-c", "echo there; exec sleep 100")
			s.expect("there")
			status := agentStatus(t, "db-0")
			for _, set := range []string{"CapPrm", "CapEff", "CapBnd"} {
				if got, err := strconv.ParseUint(status[set], 16, 64); err != nil || got != want {
					t.Errorf("%s is %s, want %016x", set, status[set], want)
				}
			}
			for k, want := range map[string]string{"Seccomp": "2", "CapInh": fmt.Sprintf("%016x", 0), "CapAmb": fmt.Sprintf("%016x", 0)} {
				if status[k] != want {
					t.Errorf("%s is %q, want %s", k, status[k], want)
				}
			}
			s.cmd.Process.Signal(interrupt)
			s.end()
			if form == "ephemeral" { // what has ended stays in the pod
				kubectl("delete", "pod", "db-0")
				kubectl("rollout", "status", "statefulset/db", "--timeout=60s")
			}
			nothingLeft(t, 30*time.Second)
		})
	}
	t.Run("seccomp can be left out", func(t *testing.T) {
		s := begin(t, "statefulset/db", []string{"--no-incoming", "--agent-seccomp", "Unconfined"}, "sh", "-c", "echo there; exec sleep 100")
		s.expect("there")
		if status := agentStatus(t, "db-0"); status["Seccomp"] != "0" {
			t.Errorf("Seccomp is %s", status["Seccomp"])
		}
		s.cmd.Process.Signal(interrupt)
		s.end()
		nothingLeft(t, 30*time.Second)
	})
}
