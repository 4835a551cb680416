package kube

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/stead-dev/stead/internal/fault"
	"github.com/stead-dev/stead/internal/kube/image"
)

const ref = "registry.example.com/stead-agent:1"

func nodeOf(name, kernel, arch string, images ...string) (n Node) {
	n.Meta.Name, n.Status.NodeInfo.KernelVersion, n.Status.NodeInfo.Architecture = name, kernel, arch
	for _, i := range images {
		n.Status.Images = append(n.Status.Images, struct {
			Names []string `json:"names"`
		}{[]string{i}})
	}
	return n
}

// told is a finding as doctor tells it.
func told(f Finding) string {
	switch {
	case f.Err == nil:
		return "ok " + f.Note
	case f.Soft:
		return "warn " + f.Err.Error()
	}
	return "FAIL " + f.Err.Error()
}

func TestKernelsOfNodesAreJudged(t *testing.T) {
	see := &Grant{User: "YOU", Namespace: "shop", Nodes: true}
	for _, c := range []struct {
		name string
		s    sight
		want string
	}{
		{"new", sight{nodes: []Node{nodeOf("a", "6.1.0-13-amd64", "amd64")}}, "ok 6.1.0-13-amd64 on node a"},
		{"several", sight{nodes: []Node{nodeOf("a", "6.1.0", "amd64"), nodeOf("b", "5.15.0", "amd64"), nodeOf("c", "6.1.0", "amd64")}, windows: []string{"w"}, more: true},
			"ok 5.15.0 on node b, 6.1.0 on 2 nodes, 1 with Windows are not for targets, of the others is not known"},
		{"too old to steal", sight{nodes: []Node{nodeOf("a", "5.8.0", "amd64"), nodeOf("b", "6.1.0", "amd64")}}, "warn 5.8.0 on node a: stealing needs 5.9"},
		{"too old", sight{nodes: []Node{nodeOf("a", "4.18.0-553.el8.x86_64", "amd64")}}, "FAIL 4.18.0-553.el8.x86_64 on node a: a session needs 5.6"},
		{"nonsense", sight{nodes: []Node{nodeOf("a", "x", "amd64")}}, "warn x on node a: its release is not understood"},
		{"Windows", sight{windows: []string{"w"}}, "FAIL no node runs Linux (w: Windows)"},
		{"no right", sight{err: &StatusError{Code: 403, Message: "no"}}, "warn not known: no right to get nodes"},
		{"no answer", sight{err: errors.New("timeout")}, "warn timeout"},
	} {
		f := judgeKernels(&c.s, see)
		if got := told(f); !strings.HasPrefix(got, c.want) {
			t.Errorf("%s: %s", c.name, got)
		}
		if c.name == "no right" && !strings.Contains(fault.Hint(f.Err), "stead rbac -n shop --nodes --user YOU | kubectl apply -f -") {
			t.Errorf("%s: hint %q", c.name, fault.Hint(f.Err))
		}
	}
}

func TestTheAgentsImageIsJudged(t *testing.T) {
	with, without, arm := nodeOf("a", "6.1.0", "amd64", ref), nodeOf("b", "6.1.0", "amd64"), nodeOf("c", "6.1.0", "arm64")
	both := []string{"linux/amd64", "linux/arm64"}
	for _, c := range []struct {
		name      string
		nodes     []Node
		noSight   error
		policy    string
		platforms []string
		registry  error
		want      string
	}{
		{"there", []Node{with}, nil, "IfNotPresent", nil, errors.New("not asked"), "ok " + ref + " is on node a"},
		{"there, by a short name", []Node{nodeOf("a", "6.1.0", "amd64", "docker.io/library/busybox:1")}, nil, "IfNotPresent", nil, errors.New("not asked"), "ok busybox:1 is on node a"},
		{"to be pulled", []Node{without}, nil, "IfNotPresent", both, nil, "ok " + ref + " is in its registry, for linux/amd64, linux/arm64; not yet on node b: pulled with the first session"},
		{"there, pulled always", []Node{with}, nil, "Always", both, nil, "ok " + ref + " is in its registry, for linux/amd64, linux/arm64"},
		{"not for this node", []Node{arm}, nil, "IfNotPresent", []string{"linux/amd64"}, nil, "FAIL " + ref + " is for linux/amd64, and node c is linux/arm64"},
		{"no such image", []Node{without}, nil, "IfNotPresent", nil, fmt.Errorf("%w: x", image.ErrNone), "FAIL the registry has no such image"},
		{"no name", nil, nil, "IfNotPresent", nil, fmt.Errorf("%w: x", image.ErrName), "FAIL it cannot be one"},
		{"not from here", []Node{without}, nil, "IfNotPresent", nil, errors.New("no such host"), "warn " + ref + " cannot be looked at from here; the nodes may be able to pull it all the same: no such host"},
		{"nodes not to be seen", nil, errors.New("forbidden"), "IfNotPresent", both, nil, "ok " + ref + " is in its registry, for linux/amd64, linux/arm64; what the nodes are is not known"},
		{"nodes not to be seen, nor the registry", nil, errors.New("forbidden"), "IfNotPresent", nil, errors.New("timeout"), "warn " + ref + " cannot be looked at from here"},
		{"never pulled, there", []Node{with}, nil, "Never", nil, errors.New("not asked"), "ok " + ref + " is on node a"},
		{"never pulled, not there", []Node{with, without}, nil, "Never", nil, errors.New("not asked"), "FAIL " + ref + " is not on node b, and --agent-pull-policy says Never"},
		{"never pulled, not to be seen", nil, errors.New("forbidden"), "Never", nil, errors.New("not asked"), "warn whether the nodes have " + ref},
	} {
		name := ref
		if strings.Contains(c.want, "busybox") {
			name = "busybox:1"
		}
		f := judgeImage(&sight{nodes: c.nodes, err: c.noSight}, name, c.policy, func() ([]string, error) { return c.platforms, c.registry })
		if got := told(f); !strings.HasPrefix(got, c.want) {
			t.Errorf("%s: %s", c.name, got)
		}
	}
}
