package cli

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// Every flag of the agent's, what is given, and where in its Job it is found, as JSON; "" where it is
// for the session alone.
var agentFlagRows = []struct{ flag, value, path, want string }{
	{"agent-image", "registry.example.com/stead-agent:7", "spec.template.spec.containers.0.image", `"registry.example.com/stead-agent:7"`},
	{"agent", "job", "kind", `"Job"`},
	{"agent-namespace", "tools", "metadata.namespace", `"tools"`},
	{"agent-label", "team=shop", "spec.template.metadata.labels.team", `"shop"`},
	{"agent-label", "kuma.io/sidecar-injection=enabled", "spec.template.metadata.labels.kuma.io/sidecar-injection", `"enabled"`},
	{"agent-label", "app.kubernetes.io/managed-by=me", "metadata.labels.app.kubernetes.io/managed-by", `"stead"`},
	{"agent-annotation", "note=a=b", "spec.template.metadata.annotations.note", `"a=b"`},
	{"agent-annotation", "linkerd.io/inject=enabled", "spec.template.metadata.annotations.linkerd.io/inject", `"enabled"`},
	{"agent-node-selector", "pool=dev", "spec.template.spec.nodeSelector", `{"pool":"dev"}`},
	{"agent-toleration", "spot=yes:NoExecute", "spec.template.spec.tolerations.0", `{"effect":"NoExecute","key":"spot","operator":"Equal","value":"yes"}`},
	{"agent-toleration", "gpu", "spec.template.spec.tolerations.1", `{"key":"gpu","operator":"Exists"}`},
	{"agent-cpu", "request=10m", "spec.template.spec.containers.0.resources.requests.cpu", `"10m"`},
	{"agent-cpu", "limit=1", "spec.template.spec.containers.0.resources.limits.cpu", `"1"`},
	{"agent-memory", "64Mi", "spec.template.spec.containers.0.resources.limits.memory", `"64Mi"`},
	{"agent-memory", "", "spec.template.spec.containers.0.resources.requests.memory", `"64Mi"`},
	{"agent-priority", "high", "spec.template.spec.priorityClassName", `"high"`},
	{"agent-service-account", "agents", "spec.template.spec.serviceAccountName", `"agents"`},
	{"agent-pull-policy", "Always", "spec.template.spec.containers.0.imagePullPolicy", `"Always"`},
	{"agent-pull-secret", "login", "spec.template.spec.imagePullSecrets", `[{"name":"login"}]`},
	{"agent-seccomp", "Unconfined", "spec.template.spec.containers.0.securityContext.seccompProfile", `{"type":"Unconfined"}`},
	{"agent-log-level", "debug", "spec.template.spec.containers.0.args", `["--container-id","ID","--listen","127.0.0.1:7117","--linger","30s","--resume","1m0s","--log-level","debug"]`},
	{"agent-ttl", "1h", "spec.ttlSecondsAfterFinished", `3600`},
	{"agent-linger", "30s", "", ""},
	{"agent-resume", "1m", "", ""},
	{"agent-startup-timeout", "2m", "", ""},
}

func TestEveryFlagOfTheAgentsIsInItsJob(t *testing.T) {
	fs := pflag.NewFlagSet("all", pflag.ContinueOnError)
	new(agentFlags).add(fs, nil)
	fs.VisitAll(func(f *pflag.Flag) {
		for _, r := range agentFlagRows {
			if r.flag == f.Name {
				return
			}
		}
		if f.Name != "replica" { // of the target
			t.Errorf("--%s has no row", f.Name)
		}
	})
	const jobs = "POST /apis/batch/v1/namespaces/tools/jobs"
	a := newAPI(t, map[string]any{
		"GET /version": object(t, `{"gitVersion": "v1.34.0"}`),
		reviews:        allowed, jobs: object(t, `{}`), "POST /api/v1/namespaces/tools/pods": object(t, `{}`),
	})
	args := []string{"doctor", "--kubeconfig", a.kubeconfig}
	for _, r := range agentFlagRows {
		if r.value != "" {
			args = append(args, "--"+r.flag, r.value)
		}
	}
	s := run(t, nil, args...)
	var job any
	if err := json.Unmarshal([]byte(a.got(jobs)), &job); err != nil {
		t.Fatalf("%v: %s\n%s%s", err, a.got(jobs), s.stdout, s.stderr)
	}
	for _, r := range agentFlagRows {
		if r.path == "" {
			continue
		}
		b, _ := json.Marshal(at(job, r.path))
		got := strings.ReplaceAll(string(b), strings.Repeat("0", 64), "ID")
		if got != r.want {
			t.Errorf("--%s %s: %s is %s, want %s", r.flag, r.value, r.path, got, r.want)
		}
	}
}

// at follows a path of keys and indices; the longest key that fits counts, for keys have dots.
func at(o any, path string) any {
	if path == "" {
		return o
	}
	parts := strings.Split(path, ".")
	for n := len(parts); n > 0; n-- {
		key, rest := strings.Join(parts[:n], "."), strings.Join(parts[n:], ".")
		switch o := o.(type) {
		case map[string]any:
			if v, ok := o[key]; ok {
				return at(v, rest)
			}
		case []any:
			var i int
			if _, err := fmt.Sscanf(key, "%d", &i); err == nil && n == 1 && i < len(o) {
				return at(o[i], rest)
			}
		}
	}
	return nil
}

func TestWrongFlagsOfTheAgentsAreRefusedWithAHint(t *testing.T) {
	for _, args := range [][]string{
		{"--agent", "sidecar"}, {"--agent-label", "team"}, {"--agent-annotation", "=x"}, {"--agent-node-selector", "x"},
		{"--agent-cpu", "much=1"}, {"--agent-memory", "limit="}, {"--agent-seccomp", "Loose"}, {"--agent-log-level", "loud"},
		{"--agent-pull-policy", "Sometimes"}, {"--agent-ttl", "-1s"}, {"--agent-linger", "-1s"},
	} {
		s := run(t, nil, append([]string{"exec", "--target", "deployment/orders"}, append(args, "--", "true")...)...)
		if lines := strings.Split(s.stderr, "\n"); s.code != 125 || len(lines) != 3 || !strings.HasPrefix(lines[0], "error: ") || !strings.HasPrefix(lines[1], "hint: --agent") {
			t.Errorf("%v: exit code %d: %s", args, s.code, s.stderr)
		}
	}
}
