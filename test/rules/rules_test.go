// Package rules holds the house to its plan: which package may import which, who makes raw system calls,
// and what kind of executables come out.
package rules

import (
	"debug/elf"
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
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
	"cmd/stead-launch": {"internal/launch", "internal/fault"},
	"internal/cli":     {"internal/"},

	"internal/session":          {"internal/session/", "internal/intercept", "internal/intercept/", "internal/launch", "internal/podfs", "internal/policy", "internal/tell", "internal/tunnel", "internal/wire", "internal/fault", "internal/sys"},
	"internal/session/pod":      {"internal/tunnel", "internal/wire", "internal/fault"},
	"internal/session/outgoing": {"internal/intercept", "internal/policy", "internal/tunnel", "internal/wire", "internal/inet"},
	"internal/session/seats":    {"internal/session/pod", "internal/tunnel", "internal/wire", "internal/fault"},
	"internal/session/incoming": {"internal/intercept", "internal/session/pod", "internal/tunnel", "internal/wire", "internal/inet", "internal/fault"},

	"internal/forward": {"internal/session/pod", "internal/session/seats", "internal/podfs", "internal/tell", "internal/tunnel", "internal/wire", "internal/fault"},

	"internal/launch":           {"internal/intercept/mountns", "internal/intercept/notify", "internal/sys", "internal/fault"},
	"internal/intercept/notify": {"internal/intercept", "internal/sys", "internal/inet", "internal/fault"},
	"internal/podfs":            {"internal/tunnel", "internal/wire"},
	"internal/agent":            {"internal/knock", "internal/tunnel", "internal/wire", "internal/sys", "internal/inet", "internal/fault"},

	"internal/kube":       {"internal/kube/", "internal/knock", "internal/tunnel", "internal/wire", "internal/fault"},
	"internal/kube/image": {"internal/fault"},

	"internal/tell": {"internal/fault"},

	"internal/local":            {"internal/local/", "internal/tunnel", "internal/fault"},
	"internal/local/beside":     {"internal/agent", "internal/sys", "internal/fault"},
	"internal/local/playground": {"internal/local/beside", "internal/fault"},

	"internal/sip":          {"internal/sip/", "internal/fault"},
	"internal/sip/codesign": {"internal/sip/macho"},
	"internal/sip/fixture":  {"internal/sip/"}, // good binaries for the tests

	"test/": {"test/internal/", "internal/"},
}

// testsMayImport is what the tests of a package of ours may import besides what it may itself, and
// besides itself, internal/leak and test/internal.
var testsMayImport = map[string][]string{
	"internal/agent":            {"internal/local/beside", "internal/podfs", "internal/session/pod", "internal/kube"}, // an agent, a session that speaks with it, and the pod that kube makes for it
	"internal/kube/":            {"internal/fault"},
	"internal/sip/":             {"internal/sip/"},
	"internal/podfs":            {"internal/intercept/mountns"}, // mounts it
	"internal/session/":         {"internal/tunnel", "internal/wire", "internal/session/", "internal/intercept"},
	"internal/forward":          {"internal/session/seats"},
	"internal/local/playground": {"internal/sys", "internal/fault"},
}

// noneImports are those of which nobody makes use but main.
var noneImports = map[string]string{"internal/cli": "cmd/stead"}

// wholeModules that only some packages may import: one speaks to BPF, one to Kubernetes.
var onlyIn = map[string][]string{
	"k8s.io/":                                {"internal/kube"},
	"github.com/gorilla/websocket":           {"internal/kube"},
	"github.com/moby/spdystream":             {"internal/kube/spdy"},
	"github.com/google/go-containerregistry": {"internal/kube/image", "test/e2e/registry"},
	"github.com/spf13/cobra":                 {"internal/cli"},
	"github.com/hanwen/go-fuse/v2":           {"internal/podfs", "internal/session"},
	"github.com/cilium/ebpf":                 {"internal/agent", "test/internal/machine"},
	"github.com/google/nftables":             {"internal/agent", "test/internal/machine"},
	"github.com/mdlayher/netlink":            {"internal/agent"},
	"github.com/vishvananda/netlink":         {"internal/local/playground", "test/internal/names"},
	"github.com/miekg/dns":                   {"internal/local/playground", "test/internal/names"},
	"github.com/fxamacker/cbor/v2":           {"internal/wire"},
}

// onlyInTests are packages whose tests may import such a module besides.
var onlyInTests = map[string][]string{
	"github.com/vishvananda/netlink": {"internal/agent"}, // the tests' own network
	"github.com/vishvananda/netns":   {"internal/agent"},
	"github.com/miekg/dns":           {"internal/forward"}, // a nameserver to forward to
}

type pkg struct {
	ImportPath   string
	Imports      []string
	TestImports  []string
	XTestImports []string
	Error        *struct{ Err string }
}

// builds are the ways to build us that have files of their own.
var builds = []struct {
	name, goos string
	tags       string
}{
	{"linux", "linux", ""},
	{"linux, end to end tests", "linux", "e2e"},
	{"darwin", "darwin", ""},
}

func packages(t *testing.T, goos, tags string) (out []pkg) {
	t.Helper()
	// Some packages have no file for darwin: -e lists all the same.
	c := exec.Command("go", "list", "-e", "-tags", tags, "-json=ImportPath,Imports,TestImports,XTestImports,Error", "./...")
	c.Dir = bed.Root()
	c.Env = append(os.Environ(), "GOOS="+goos, "GOARCH=arm64", "CGO_ENABLED=0")
	b, err := c.Output()
	if err != nil {
		t.Fatal(err)
	}
	for d := json.NewDecoder(strings.NewReader(string(b))); d.More(); {
		var p pkg
		if err := d.Decode(&p); err != nil {
			t.Fatal(err)
		}
		if goos == "linux" && p.Error != nil {
			t.Errorf("%s: %s", p.ImportPath, p.Error.Err)
		}
		out = append(out, p)
	}
	if len(out) < 15 {
		t.Fatalf("saw %d packages only", len(out))
	}
	return out
}

func TestPackagesImportOnlyWhatThePlanAllows(t *testing.T) {
	for _, b := range builds {
		t.Run(b.name, func(t *testing.T) {
			for _, p := range packages(t, b.goos, b.tags) {
				name := strings.TrimPrefix(p.ImportPath, module)
				for _, i := range p.Imports {
					check(t, name, i, allowed(mayImport, name, i), onlyIn[prefixOf(onlyIn, i)])
				}
				for _, i := range slices.Concat(p.TestImports, p.XTestImports) {
					own := strings.TrimPrefix(i, module)
					check(t, "the tests of "+name, i, own == name || own == "internal/leak" || strings.HasPrefix(own, "test/internal/") ||
						allowed(mayImport, name, i) || allowed(testsMayImport, name, i),
						slices.Concat(onlyIn[prefixOf(onlyIn, i)], onlyInTests[prefixOf(onlyInTests, i)]))
				}
			}
		})
	}
}

// check judges one import: plan says whether the plan has it, who are those that may import such a module.
func check(t *testing.T, name, imports string, plan bool, who []string) {
	t.Helper()
	bare := strings.TrimPrefix(name, "the tests of ")
	if own, ok := strings.CutPrefix(imports, module); ok {
		if only, ok := noneImports[own]; !plan || ok && only != bare && own != bare {
			t.Errorf("%s: imports %s, which the plan does not allow", name, own)
		}
		return
	}
	if (prefixOf(onlyIn, imports) != "" || prefixOf(onlyInTests, imports) != "") &&
		!slices.ContainsFunc(who, func(w string) bool { return bare == w || strings.HasPrefix(bare, w+"/") }) {
		t.Errorf("%s: imports %s, which is for %v alone", name, imports, who)
	}
}

func prefixOf(table map[string][]string, imports string) string {
	for prefix := range table {
		if strings.HasPrefix(imports, prefix) {
			return prefix
		}
	}
	return ""
}

// allowed finds the row of a package: its own, or that of the nearest directory that ends in /.
func allowed(table map[string][]string, name, imports string) bool {
	own, ok := strings.CutPrefix(imports, module)
	if !ok {
		return true
	}
	row, ok := table[name]
	for dir := name; !ok && dir != ""; {
		i := strings.LastIndexByte(strings.TrimSuffix(dir, "/"), '/')
		dir = dir[:i+1]
		row, ok = table[dir]
	}
	for _, r := range row {
		if own == r || strings.HasSuffix(r, "/") && strings.HasPrefix(own, r) {
			return true
		}
	}
	return false
}

// A row for what there is not is a mistake in the plan: it allows nothing and looks as if it did.
func TestThePlanSpeaksOfPackagesThatThereAre(t *testing.T) {
	there := map[string]bool{}
	for _, p := range packages(t, "linux", "e2e") {
		there[strings.TrimPrefix(p.ImportPath, module)] = true
	}
	for _, table := range []map[string][]string{mayImport, testsMayImport} {
		for name, row := range table {
			for _, n := range append([]string{name}, row...) {
				if !there[n] && !slices.ContainsFunc(slices.Collect(maps.Keys(there)), func(p string) bool { return strings.HasSuffix(n, "/") && strings.HasPrefix(p, n) }) {
					t.Errorf("row %s: there is no %s", name, n)
				}
			}
		}
	}
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

// sources calls f with each Go file of ours below dirs that is no test's.
func sources(t *testing.T, f func(name string, set *token.FileSet, file *ast.File), dirs ...string) {
	t.Helper()
	seen := 0
	for _, dir := range dirs {
		err := filepath.WalkDir(filepath.Join(bed.Root(), dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			set := token.NewFileSet()
			file, err := parser.ParseFile(set, path, nil, parser.ParseComments)
			if err != nil {
				return err
			}
			name, err := filepath.Rel(bed.Root(), path)
			seen++
			f(name, set, file)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if seen == 0 {
		t.Fatalf("no source in %v", dirs)
	}
}

func TestOnlySysMakesRawSystemCalls(t *testing.T) {
	inSys := 0
	sources(t, func(name string, set *token.FileSet, file *ast.File) {
		called := map[string]bool{} // names by which the file knows x/sys and syscall
		for _, i := range file.Imports {
			path, _ := strconv.Unquote(i.Path.Value)
			if path != "syscall" && path != "golang.org/x/sys/unix" {
				continue
			}
			as := filepath.Base(path)
			if i.Name != nil {
				as = i.Name.Name
			}
			called[as] = true
		}
		ast.Inspect(file, func(n ast.Node) bool {
			s, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			x, ok := s.X.(*ast.Ident)
			if !ok || !called[x.Name] || !strings.HasPrefix(s.Sel.Name, "Syscall") && !strings.HasPrefix(s.Sel.Name, "RawSyscall") {
				return true
			}
			if strings.HasPrefix(name, "internal/sys/") {
				inSys++
			} else if s.Sel.Name != "SyscallError" {
				t.Errorf("%s: %s.%s: raw system calls are internal/sys's", set.Position(s.Pos()), x.Name, s.Sel.Name)
			}
			return true
		})
		for _, c := range file.Comments {
			for _, l := range c.List {
				if strings.HasPrefix(l.Text, "//go:linkname") {
					t.Errorf("%s: %s", set.Position(l.Pos()), l.Text)
				}
			}
		}
	}, "internal", "cmd")
	if inSys < 10 {
		t.Errorf("saw %d raw system calls in internal/sys only: the test looks for the wrong thing", inSys)
	}
}

// Whoever else has something to say returns it, or is given a writer by who may. internal/leak is for
// TestMain, which is nobody's caller.
func TestOnlyTheCLIPrints(t *testing.T) {
	sources(t, func(name string, set *token.FileSet, file *ast.File) {
		if strings.HasPrefix(name, "internal/cli/") || strings.HasPrefix(name, "internal/leak/") {
			return
		}
		standard := func(e ast.Expr) bool {
			s, ok := e.(*ast.SelectorExpr)
			if !ok {
				return false
			}
			x, ok := s.X.(*ast.Ident)
			return ok && x.Name == "os" && (s.Sel.Name == "Stdout" || s.Sel.Name == "Stderr")
		}
		ast.Inspect(file, func(n ast.Node) bool {
			c, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			bad := false
			switch f := c.Fun.(type) {
			case *ast.Ident:
				bad = f.Name == "println" || f.Name == "print"
			case *ast.SelectorExpr:
				bad = standard(f.X)
				if x, ok := f.X.(*ast.Ident); ok {
					bad = bad || (x.Name == "fmt" || x.Name == "log") && strings.HasPrefix(f.Sel.Name, "Print") ||
						x.Name == "fmt" && strings.HasPrefix(f.Sel.Name, "Fprint") && standard(c.Args[0])
				}
			}
			if bad {
				t.Errorf("%s: only internal/cli prints", set.Position(c.Pos()))
			}
			return true
		})
	}, "internal")
}

func TestEachMainIsShort(t *testing.T) {
	seen := 0
	sources(t, func(name string, set *token.FileSet, file *ast.File) {
		seen++
		if n := set.File(file.Pos()).LineCount(); n >= 60 {
			t.Errorf("%s has %d lines: what it does belongs to internal/", name, n)
		}
	}, "cmd")
	if seen != 3 {
		t.Errorf("saw %d files, want one for each command", seen)
	}
}

// agentSize is the most that an agent may have: a node loads it, and the CLI carries two.
const agentSize = 10 << 20

func TestExecutablesAreStaticAndTheAgentIsSmall(t *testing.T) {
	root := bed.Root()
	c := exec.Command("make", "-s", "build")
	c.Dir = root
	if b, err := c.CombinedOutput(); err != nil {
		t.Fatalf("make build: %v\n%s", err, b)
	}
	machines := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}
	for _, x := range []struct {
		path, arch string
		most       int64
	}{
		{"bin/stead", "", 0},
		{"bin/stead-agent", "", agentSize},
		{"bin/agents/stead-agent-amd64", "amd64", agentSize},
		{"bin/agents/stead-agent-arm64", "arm64", agentSize},
		{"bin/launcher/stead-launch-amd64", "amd64", 0},
		{"bin/launcher/stead-launch-arm64", "arm64", 0},
		{"bin/linux-amd64/stead", "amd64", 0},
		{"bin/linux-arm64/stead", "arm64", 0},
		{"bin/linux-amd64/stead-agent", "amd64", agentSize},
		{"bin/linux-arm64/stead-agent", "arm64", agentSize},
	} {
		path := filepath.Join(root, x.path)
		f, err := elf.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range f.Progs {
			if p.Type == elf.PT_INTERP {
				t.Errorf("%s has an interpreter", x.path)
			}
		}
		if needs, err := f.ImportedLibraries(); err != nil || len(needs) > 0 {
			t.Errorf("%s needs %v, %v", x.path, needs, err)
		}
		if x.arch != "" && f.Machine != machines[x.arch] {
			t.Errorf("%s is for %v", x.path, f.Machine)
		}
		f.Close()
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %d bytes", x.path, st.Size())
		if x.most != 0 && st.Size() > x.most {
			t.Errorf("%s has %d bytes, more than %d", x.path, st.Size(), x.most)
		}
	}
}
