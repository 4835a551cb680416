// Package rules holds the house to its plan: which package may import which.
package rules

import (
	"encoding/json"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/stead-dev/stead/test/internal/bed"
)

const module = "github.com/stead-dev/stead/"

// mayImport is, for each package of ours, those of ours that it may import; a name that ends in /
// stands for all below it. What is not listed imports none.
var mayImport = map[string][]string{
	"cmd/stead":        {"internal/cli"},
	"cmd/stead-agent":  {"internal/agent"},
	"cmd/stead-launch": {"internal/launch"},
	"internal/cli":     {"internal/"},

	"internal/session":          {"internal/session/", "internal/intercept", "internal/intercept/", "internal/launch", "internal/podfs", "internal/policy", "internal/tunnel", "internal/wire", "internal/fault", "internal/sys"},
	"internal/session/pod":      {"internal/tunnel", "internal/wire", "internal/fault"},
	"internal/session/outgoing": {"internal/intercept", "internal/policy", "internal/tunnel", "internal/wire", "internal/inet"},
	"internal/session/seats":    {"internal/session/pod", "internal/tunnel", "internal/wire", "internal/fault"},
	"internal/session/incoming": {"internal/intercept", "internal/session/pod", "internal/tunnel", "internal/wire", "internal/inet", "internal/fault"},

	"internal/forward": {"internal/session/pod", "internal/session/seats", "internal/podfs", "internal/tunnel", "internal/wire", "internal/fault"},

	"internal/launch":           {"internal/intercept/mountns", "internal/intercept/notify", "internal/sys", "internal/fault"},
	"internal/intercept/notify": {"internal/intercept", "internal/sys", "internal/inet", "internal/fault"},
	"internal/podfs":            {"internal/tunnel", "internal/wire"},
	"internal/agent":            {"internal/knock", "internal/tunnel", "internal/wire", "internal/sys", "internal/inet", "internal/fault"},

	"internal/kube":       {"internal/kube/", "internal/knock", "internal/tunnel", "internal/wire", "internal/fault"},
	"internal/kube/image": {"internal/fault"},

	"internal/local":            {"internal/local/", "internal/tunnel", "internal/fault"},
	"internal/local/beside":     {"internal/agent", "internal/sys", "internal/fault"},
	"internal/local/playground": {"internal/local/beside", "internal/fault"},

	"internal/sip":          {"internal/sip/", "internal/fault"},
	"internal/sip/codesign": {"internal/sip/macho"},
	"internal/sip/fixture":  {"internal/sip/"}, // good binaries for the tests

	"test/": {"test/internal/", "internal/"},
}

// wholeModules that only some packages may import: one speaks to BPF, one to Kubernetes.
var onlyIn = map[string][]string{
	"k8s.io/":                                {"internal/kube"},
	"github.com/gorilla/websocket":           {"internal/kube"},
	"github.com/moby/spdystream":             {"internal/kube/spdy"},
	"github.com/google/go-containerregistry": {"internal/kube/image", "test/e2e/registry"},
	"github.com/spf13/cobra":                 {"internal/cli"},
	"github.com/hanwen/go-fuse/v2":           {"internal/podfs", "internal/session"},
	"github.com/cilium/ebpf":                 {"internal/agent", "test/death"},
	"github.com/google/nftables":             {"internal/agent"},
	"github.com/vishvananda/netlink":         {"internal/local/playground"},
	"github.com/miekg/dns":                   {"internal/local/playground"},
	"github.com/fxamacker/cbor/v2":           {"internal/wire"},
}

type pkg struct {
	ImportPath   string
	Imports      []string
	TestImports  []string
	XTestImports []string
}

func TestPackagesImportOnlyWhatThePlanAllows(t *testing.T) {
	c := exec.Command("go", "list", "-json=ImportPath,Imports,TestImports,XTestImports", "./...")
	c.Dir = bed.Root()
	out, err := c.Output()
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for d := json.NewDecoder(strings.NewReader(string(out))); d.More(); {
		var p pkg
		if err := d.Decode(&p); err != nil {
			t.Fatal(err)
		}
		seen++
		name := strings.TrimPrefix(p.ImportPath, module)
		for _, i := range p.Imports {
			if own, ok := strings.CutPrefix(i, module); ok {
				if !allowed(name, own) {
					t.Errorf("%s imports %s, which the plan does not allow", name, own)
				}
				continue
			}
			for prefix, who := range onlyIn {
				if strings.HasPrefix(i, prefix) && !slices.ContainsFunc(who, func(w string) bool { return name == w || strings.HasPrefix(name, w+"/") }) {
					t.Errorf("%s imports %s, which is for %v alone", name, i, who)
				}
			}
		}
	}
	if seen < 15 {
		t.Errorf("saw %d packages only", seen)
	}
}

// allowed finds the row of a package: its own, or that of the nearest directory that ends in /.
func allowed(name, imports string) bool {
	row, ok := mayImport[name]
	for dir := name; !ok && dir != ""; {
		i := strings.LastIndexByte(strings.TrimSuffix(dir, "/"), '/')
		dir = dir[:i+1]
		row, ok = mayImport[dir]
	}
	for _, r := range row {
		if imports == r || strings.HasSuffix(r, "/") && strings.HasPrefix(imports, r) {
			return true
		}
	}
	return false
}

func TestTheAgentIsSmall(t *testing.T) {
	c := exec.Command("go", "list", "-deps", "./cmd/stead-agent")
	c.Dir = bed.Root()
	out, err := c.Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range strings.Fields(string(out)) {
		for _, heavy := range []string{"net/http", "k8s.io/", "github.com/spf13/", "github.com/hanwen/"} {
			if strings.HasPrefix(d, heavy) {
				t.Errorf("the agent needs %s", d)
			}
		}
	}
}
