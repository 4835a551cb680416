package kube

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/stead-dev/stead/internal/fault"
	"github.com/stead-dev/stead/internal/kube/image"
)

// Node is what stead knows of a node.
type Node struct {
	Meta   Meta `json:"metadata"`
	Status struct {
		Conditions []Condition `json:"conditions,omitempty"`
		Images     []struct {
			Names []string `json:"names"`
		} `json:"images,omitempty"` // the kubelet tells of 50
		NodeInfo struct {
			KernelVersion string `json:"kernelVersion"`
			Architecture  string `json:"architecture"`
			OS            string `json:"operatingSystem"`
		} `json:"nodeInfo"`
	} `json:"status"`
}

func (n *Node) has(ref string) bool {
	for _, i := range n.Status.Images {
		if slices.ContainsFunc(i.Names, func(name string) bool { return image.Same(name, ref) }) {
			return true
		}
	}
	return false
}

// sight is what of the nodes could be seen: the target's, or those of the cluster.
type sight struct {
	nodes   []Node // of Linux
	windows []string
	more    bool  // there are others
	err     error // why none could be
}

// mostNodes are as many as are looked at: an answer has some 30 kB for each.
const mostNodes = "100"

// seeNodes looks at the node of p, at all where that is nil.
func (c *Client) seeNodes(ctx context.Context, p *Pod) (s sight) {
	var l List[Node]
	if p != nil && p.Spec.NodeName != "" {
		l.Items = make([]Node, 1)
		s.err = c.get(ctx, "/api/v1/nodes/"+url.PathEscape(p.Spec.NodeName), nil, &l.Items[0])
	} else {
		s.err = c.get(ctx, "/api/v1/nodes", url.Values{"limit": {mostNodes}}, &l)
	}
	if s.err != nil {
		return s
	}
	s.more = l.Meta.Continue != ""
	for _, n := range l.Items {
		if n.Status.NodeInfo.OS == "windows" {
			s.windows = append(s.windows, n.Meta.Name)
		} else {
			s.nodes = append(s.nodes, n)
		}
	}
	return s
}

// names are those of nodes, in words.
func names(nodes []Node) string {
	if len(nodes) == 1 {
		return "node " + nodes[0].Meta.Name
	}
	return fmt.Sprintf("%d nodes", len(nodes))
}

// kernelNeeds are what an agent needs of a node's kernel, the most important first. Mirroring and files
// need no more than a session does.
var kernelNeeds = []struct {
	major, minor int
	what         string
	hard         bool // nothing works without
}{
	{5, 6, "a session needs 5.6 (pidfd_open, openat2)", true},
	{5, 9, "stealing needs 5.9 (BPF's sk_lookup), or 5.12 where BPF is forbidden (nftables' tables with an owner, and tproxy)", false},
}

// kernelLacks gives what a kernel is too old for, "" for nothing; hard where nothing works.
func kernelLacks(release string) (what string, hard bool) {
	var major, minor int
	if n, _ := fmt.Sscanf(release, "%d.%d", &major, &minor); n != 2 {
		return "its release is not understood", false
	}
	for _, k := range kernelNeeds {
		if major < k.major || major == k.major && minor < k.minor {
			return k.what, k.hard
		}
	}
	return "", false
}

// judgeKernels says whether agents can work on the nodes; see is what allows to look at them.
func judgeKernels(s *sight, see *Grant) Finding {
	f := Finding{What: "node kernel"}
	if s.err != nil {
		f.Soft = true
		f.Err = s.err
		if isStatus(s.err, http.StatusForbidden) {
			f.Err = &fault.Error{Err: errors.New("not known: no right to get nodes, nor need there be one for a session"), Hint: see.command()}
		}
		return f
	}
	if len(s.nodes) == 0 {
		f.Err = fault.With(fmt.Errorf("no node runs Linux (%s: Windows)", strings.Join(s.windows, ", ")), "choose a target on a Linux node: kubectl get nodes -L kubernetes.io/os")
		return f
	}
	byRelease := make(map[string][]Node)
	for _, n := range s.nodes {
		r := n.Status.NodeInfo.KernelVersion
		byRelease[r] = append(byRelease[r], n)
	}
	var notes, lacks []string
	f.Soft = true
	for _, r := range sorted(byRelease) {
		notes = append(notes, r+" on "+names(byRelease[r]))
		if what, hard := kernelLacks(r); what != "" {
			lacks = append(lacks, fmt.Sprintf("%s on %s: %s", r, names(byRelease[r]), what))
			f.Soft = f.Soft && !hard
		}
	}
	if lacks != nil {
		f.Err = fault.With(errors.New(strings.Join(lacks, "; ")), "choose a replica on a node with a newer kernel: kubectl get nodes -o wide")
		return f
	}
	f.Soft = false
	if len(s.windows) > 0 {
		notes = append(notes, fmt.Sprintf("%d with Windows are not for targets", len(s.windows)))
	}
	if s.more {
		notes = append(notes, "of the others is not known")
	}
	f.Note = strings.Join(notes, ", ")
	return f
}

func sorted(m map[string][]Node) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// judgeImage says whether the nodes can have the agent's image: look asks its registry from here.
func judgeImage(s *sight, ref, policy string, look func() ([]string, error)) Finding {
	f := Finding{What: "agent's image"}
	var without []Node
	for _, n := range s.nodes {
		if !n.has(ref) {
			without = append(without, n)
		}
	}
	seen := s.err == nil && len(s.nodes) > 0
	switch {
	case seen && len(without) == 0 && policy != "Always":
		f.Note = ref + " is on " + names(s.nodes)
		return f
	case policy == "Never" && !seen:
		f.Soft, f.Err = true, fmt.Errorf("whether the nodes have %s, which is not to be pulled, is not known", ref)
		return f
	case policy == "Never":
		f.Err = fault.With(fmt.Errorf("%s is not on %s, and --agent-pull-policy says Never", ref, names(without)), "--agent-pull-policy IfNotPresent, or load it there: stead agent image --output FILE")
		return f
	}
	platforms, err := look()
	switch {
	case errors.Is(err, image.ErrNone), errors.Is(err, image.ErrName):
		f.Err = err
		return f
	case err != nil:
		f.Soft = true
		f.Err = fault.With(fmt.Errorf("%s cannot be looked at from here; the nodes may be able to pull it all the same: %w", ref, err),
			"the first session tells; --agent-pull-secret NAME where the nodes have to log in")
		return f
	}
	for _, n := range s.nodes {
		if want := "linux/" + n.Status.NodeInfo.Architecture; !slices.Contains(platforms, want) {
			f.Err = fault.With(fmt.Errorf("%s is for %s, and node %s is %s", ref, strings.Join(platforms, ", "), n.Meta.Name, want), "stead agent image --push REF makes one for amd64 and arm64")
			return f
		}
	}
	f.Note = fmt.Sprintf("%s is in its registry, for %s", ref, strings.Join(platforms, ", "))
	switch {
	case !seen:
		f.Note += "; what the nodes are is not known"
	case len(without) > 0:
		f.Note += "; not yet on " + names(without) + ": pulled with the first session"
	}
	return f
}
