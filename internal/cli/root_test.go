package cli

import (
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func TestTheVersionIsOneLine(t *testing.T) {
	s := run(t, nil, "version")
	if s.code != 0 || s.stderr != "" || !regexp.MustCompile(`^stead \S+ \w+/\w+ go\S+\n$`).MatchString(s.stdout) {
		t.Errorf("%+v", s)
	}
}

// Every command says what it does and what its flags are, on standard output.
func TestEveryCommandHasHelp(t *testing.T) {
	count := 0
	var each func(c *cobra.Command)
	each = func(c *cobra.Command) {
		for _, sub := range c.Commands() {
			each(sub)
		}
		if c.Hidden {
			return
		}
		count++
		args := append(strings.Fields(c.CommandPath())[1:], "--help")
		s := run(t, nil, args...)
		if s.code != 0 || s.stderr != "" || c.Short == "" || !strings.Contains(s.stdout, "Usage:\n  "+c.CommandPath()) {
			t.Errorf("%v: %+v", args, s)
		}
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" || !f.Hidden && !strings.Contains(s.stdout, "--"+f.Name) {
				t.Errorf("%v: --%s is not told of", args, f.Name)
			}
		})
	}
	each(newRoot(&app{}))
	if count < 20 {
		t.Errorf("only %d commands", count)
	}
}

// What cannot be understood is an error of one line with a hint of one, and exit code 125; nothing is on
// standard output.
func TestWrongCommandLinesAreRefusedWithAHint(t *testing.T) {
	for line, want := range map[string]string{
		"nonsense":                             "error: unknown command \"nonsense\" for \"stead\"\nhint: stead --help\n",
		"exce --target x -- true":              "error: unknown command \"exce\" for \"stead\"\nhint: stead exec\n",
		"playground nonsense":                  "error: unknown command \"nonsense\" for \"stead playground\"\nhint: stead playground --help\n",
		"agent imge":                           "error: unknown command \"imge\" for \"stead agent\"\nhint: stead agent image\n",
		"agents nonsense":                      "error: unknown command \"nonsense\" for \"stead agents\"\nhint: stead agents --help\n",
		"diagnose latncy":                      "error: unknown command \"latncy\" for \"stead diagnose\"\nhint: stead diagnose latency\n",
		"sip inspct":                           "error: unknown command \"inspct\" for \"stead sip\"\nhint: stead sip inspect\n",
		"help nonsense":                        "error: unknown command \"nonsense\" for \"stead\"\nhint: stead --help\n",
		"help agent imge":                      "error: unknown command \"imge\" for \"stead agent\"\nhint: stead agent image\n",
		"exec --nonsense":                      "error: unknown flag: --nonsense\nhint: stead exec --help\n",
		"ls nonsense":                          "error: stead ls takes flags alone, not \"nonsense\"\nhint: stead ls --help\n",
		"version nonsense":                     "error: stead version takes flags alone, not \"nonsense\"\nhint: stead version --help\n",
		"exec":                                 "error: no program to run\nhint: stead exec --target TARGET -- PROGRAM ARGS\n",
		"exec -- true":                         "error: no target\nhint: stead exec --target playground/orders -- PROGRAM \\(stead playground status lists the pods\\)\n",
		"exec -t orders -- true":               "error: target \"orders\": want KIND/NAME\nhint: stead ls lists them: .*\n",
		"exec -t a/b --steal --mirror -- x":    "error: --steal, --mirror and --no-incoming exclude each other\nhint: stead exec --target a/b --steal -- PROGRAM .*\n",
		"exec -t a/b --files door -- x":        "error: --files door: no such way\nhint: stead exec --files auto .*\n",
		"exec -t a/b --files-pod x -- x":       "error: path rule x: not an absolute path\nhint: stead exec --files-laptop \\$PWD/x .*\n",
		"exec -t a/b --outgoing-laptop x -- x": "error: --outgoing-laptop x: .*\nhint: stead exec --outgoing-laptop 127.0.0.1:5432 .*\n",
		"exec -t a/b --follow -1s -- x":        "error: --follow -1s: a time below zero\nhint: stead exec --follow 5m .*\n",
		"exec --targetless --steal -- x":       "error: --targetless has no target and no incoming traffic\nhint: .*\n",
		"port-forward -t a/b":                  "error: no port to carry\nhint: -L 5432:db:5432 or -R 8080:3000\n",
		"port-forward -L 1:x:2":                "error: no target\nhint: --target playground/orders .*\n",
		"dump -t a/b":                          "error: no port\nhint: -p 8080\n",
		"agent image":                          "error: where should the image go\\?\nhint: stead agent image --push REGISTRY/NAME:TAG, or --output FILE\n",
		"rbac -n shop --agent sidecar":         "error: --agent sidecar: no such way\nhint: --agent job or ephemeral\n",
		"ls --kubeconfig /no/such":             "error: --kubeconfig: stat /no/such: no such file or directory\nhint: kubectl config view shows the one in use\n",
	} {
		s := run(t, []string{"KUBECONFIG=/no/such"}, strings.Fields(line)...)
		if s.code != 125 || s.stdout != "" || !regexp.MustCompile("^"+want+"$").MatchString(s.stderr) {
			t.Errorf("stead %s: exit code %d: %s%s", line, s.code, s.stdout, s.stderr)
		}
	}
}

func TestTheRolesThatArePrinted(t *testing.T) {
	const (
		both = `apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: stead, namespace: shop}
rules:
- {apiGroups: [""], resources: [pods], verbs: [get, list, watch]} # find the target and the agent's pod
- {apiGroups: [""], resources: [pods/portforward], verbs: [create, get]} # reach the agent
- {apiGroups: [""], resources: [events], verbs: [list]} # say why an agent does not start
- {apiGroups: [""], resources: [services], verbs: [get, list]} # targets of that kind
- {apiGroups: [""], resources: [replicationcontrollers], verbs: [get]} # targets of that kind
- {apiGroups: ["apps"], resources: [deployments], verbs: [get, list]} # targets of that kind
- {apiGroups: ["apps"], resources: [statefulsets], verbs: [get, list]} # targets of that kind
- {apiGroups: ["apps"], resources: [daemonsets], verbs: [get, list]} # targets of that kind
- {apiGroups: ["apps"], resources: [replicasets], verbs: [get]} # targets of that kind
- {apiGroups: ["batch"], resources: [cronjobs], verbs: [get, list]} # targets of that kind
- {apiGroups: ["batch"], resources: [jobs], verbs: [get, list]} # targets of that kind, and agents
`
		jobs      = "- {apiGroups: [\"batch\"], resources: [jobs], verbs: [create, patch, delete]} # start an agent, renew its lease, remove one that failed\n"
		ephemeral = "- {apiGroups: [\"\"], resources: [pods/ephemeralcontainers], verbs: [patch]} # start an agent in the target's pod\n"
		agents    = `apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: stead-agents, namespace: tools}
rules:
- {apiGroups: [""], resources: [pods], verbs: [get, list, watch]} # find the target and the agent's pod
- {apiGroups: [""], resources: [pods/portforward], verbs: [create, get]} # reach the agent
- {apiGroups: [""], resources: [events], verbs: [list]} # say why an agent does not start
- {apiGroups: ["batch"], resources: [jobs], verbs: [get, list]} # targets of that kind, and agents
`
		nodes = `apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: stead-nodes}
rules:
- {apiGroups: [""], resources: [nodes], verbs: [get, list]} # stead doctor: their kernels, architectures and images
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: "stead-nodes-ann"}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: stead-nodes}
subjects:
`
		ann = "- {kind: User, apiGroup: rbac.authorization.k8s.io, name: \"ann\"}\n"
	)
	binding := func(ns, role, user, who string) string {
		return "---\napiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding\nmetadata: {name: \"" + role + "-" + user + "\", namespace: " + ns + "}\n" +
			"roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: " + role + "}\nsubjects:\n" + who
	}
	targets := strings.NewReplacer(
		"- {apiGroups: [\"\"], resources: [pods/portforward], verbs: [create, get]} # reach the agent\n", "",
		"- {apiGroups: [\"\"], resources: [events], verbs: [list]} # say why an agent does not start\n", "").Replace(strings.Replace(both, "{name: stead,", "{name: stead-targets,", 1))
	ofEphemeral := strings.Replace(both, "{name: stead,", "{name: stead-ephemeral,", 1) + ephemeral + binding("shop", "stead-ephemeral", "ann", ann)
	for _, c := range []struct{ line, want string }{
		{"rbac -n shop --user ann", both + jobs + binding("shop", "stead", "ann", ann)},
		{"rbac -n shop --user ann --agent-namespace shop", both + jobs + binding("shop", "stead", "ann", ann)},
		{"rbac -n shop --user ann --agent ephemeral", ofEphemeral},
		{"rbac -n shop --user ann --agent ephemeral --agent-namespace tools", ofEphemeral},
		{"rbac -n shop --user ann --agent-namespace tools", targets + binding("shop", "stead-targets", "ann", ann) + "---\n" + agents + jobs + binding("tools", "stead-agents", "ann", ann)},
		{"rbac -n shop --user ann --nodes", both + jobs + binding("shop", "stead", "ann", ann) + "---\n" + nodes + ann},
		{"rbac -n shop --user https://login.example.com#ann", both + jobs + binding("shop", "stead", "https:--login.example.com#ann", "- {kind: User, apiGroup: rbac.authorization.k8s.io, name: \"https://login.example.com#ann\"}\n")},
		{"rbac -n shop --user system:serviceaccount:ci:bot", both + jobs + binding("shop", "stead", "system:serviceaccount:ci:bot", "- {kind: ServiceAccount, name: bot, namespace: ci}\n")},
	} {
		s := run(t, nil, strings.Fields(c.line)...)
		if diff := cmp.Diff(c.want, s.stdout); diff != "" || s.code != 0 || s.stderr != "" {
			t.Errorf("stead %s: exit code %d: %s\n%s", c.line, s.code, s.stderr, diff)
		}
	}
}

// Without a cluster doctor looks at the laptop alone.
func TestDoctorOfATargetOnThisMachineAsksNoCluster(t *testing.T) {
	s := run(t, []string{"KUBECONFIG=/no/such"}, "doctor", "--target", "playground/orders")
	if strings.Contains(s.stdout, "cluster") || !strings.Contains(s.stdout, "kernel: ") {
		t.Errorf("%+v", s)
	}
	s = run(t, nil, "doctor", "--kubeconfig", "/no/such")
	if s.code != 1 || !strings.Contains(s.stdout, "FAIL  cluster: --kubeconfig: stat /no/such: no such file or directory\n      hint: kubectl config view") {
		t.Errorf("%+v", s)
	}
}

func TestASideThatIsOfTheWholeNodeIsWarnedOf(t *testing.T) {
	if w := ofNode("p", "", "steal"); w != "" {
		t.Error(w)
	}
	if w := ofNode("p", "node1", "mirror"); w != "" {
		t.Error(w)
	}
	if w := ofNode("p", "node1", "steal"); !strings.Contains(w, "the whole of node node1") {
		t.Error(w)
	}
}
