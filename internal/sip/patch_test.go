package sip

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stead-dev/stead/internal/fault"
	"github.com/stead-dev/stead/internal/sip/codesign"
	"github.com/stead-dev/stead/internal/sip/fixture"
	"github.com/stead-dev/stead/internal/sip/macho"
	"github.com/stead-dev/stead/internal/sip/mapped"
)

func patch(t *testing.T, p *Patcher, path string) *Copy {
	t.Helper()
	c, err := p.Patch(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// strings of the load commands of a thin file that have one.
func loadStrings(t *testing.T, path string) (out []string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	archs, err := readArchs(data)
	if err != nil {
		t.Fatal(err)
	}
	m := archs[0].image
	for _, c := range m.Commands {
		if s, _, ok := m.String(c); ok {
			out = append(out, macho.CommandName(c.Cmd)+" "+s)
		}
	}
	return out
}

func TestPathsRelativeToAProgramKeepMeaningTheOriginalsDirectory(t *testing.T) {
	for name, c := range map[string]struct {
		kind  macho.FileType
		gap   int
		loads []fixture.Load
		want  []string // DIR is the original's directory
		notes string   // part of the notes; "" for none
	}{
		"an rpath": {loads: []fixture.Load{{Cmd: macho.LCRpath, Path: "@executable_path/../lib"}}, want: []string{"LC_RPATH DIR/../lib"}},
		"the directory itself": {loads: []fixture.Load{{Cmd: macho.LCRpath, Path: "@loader_path"}, {Cmd: macho.LCRpath, Path: "@loader_path/"}},
			want: []string{"LC_RPATH DIR", "LC_RPATH DIR/"}},
		"every kind of dylib": {
			loads: []fixture.Load{{Cmd: macho.LCLoadDylib, Path: "@executable_path/a"}, {Cmd: macho.LCLoadWeakDylib, Path: "@loader_path/b"},
				{Cmd: macho.LCReexportDylib, Path: "@loader_path/c"}, {Cmd: macho.LCLoadUpwardDylib, Path: "@loader_path/d"}, {Cmd: macho.LCLazyLoadDylib, Path: "@loader_path/e"}},
			want: []string{"LC_LOAD_DYLIB DIR/a", "LC_LOAD_WEAK_DYLIB DIR/b", "LC_REEXPORT_DYLIB DIR/c", "LC_LOAD_UPWARD_DYLIB DIR/d", "LC_LAZY_LOAD_DYLIB DIR/e"},
		},
		"what is not relative to the program": {
			loads: []fixture.Load{{Cmd: macho.LCLoadDylib, Path: "@rpath/a"}, {Cmd: macho.LCLoadDylib, Path: "/usr/lib/b"}, {Cmd: macho.LCRpath, Path: "@executable_pathology"}},
			want:  []string{"LC_LOAD_DYLIB @rpath/a", "LC_LOAD_DYLIB /usr/lib/b", "LC_RPATH @executable_pathology"},
		},
		"a variable of dyld": {loads: []fixture.Load{{Cmd: macho.LCDyldEnvironment, Path: "DYLD_LIBRARY_PATH=@executable_path/x:/y:@loader_path"}},
			want: []string{"LC_DYLD_ENVIRONMENT DYLD_LIBRARY_PATH=DIR/x:/y:DIR"}},
		"a library": {
			kind: macho.Dylib,
			// Its own name is no path to be followed, and whose program will load it nobody knows.
			loads: []fixture.Load{{Cmd: macho.LCIDDylib, Path: "@loader_path/self"}, {Cmd: macho.LCRpath, Path: "@loader_path/x"}, {Cmd: macho.LCRpath, Path: "@executable_path/y"}},
			want:  []string{"LC_ID_DYLIB @loader_path/self", "LC_RPATH DIR/x", "LC_RPATH @executable_path/y"},
		},
		"no room": {
			gap: 16, loads: []fixture.Load{{Cmd: macho.LCRpath, Path: "@loader_path/x"}, {Cmd: macho.LCRpath, Path: "@loader_path"}},
			want: []string{"LC_RPATH @loader_path/x", "LC_RPATH @loader_path"}, notes: "LC_RPATH @loader_path/x: no room for DIR/x",
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := tree(t, map[string]string{"a-directory/p": string(fixture.Program{
				Type: c.kind, Gap: c.gap, Loads: c.loads, Sign: &fixture.Signature{Flags: codesign.FlagRuntime}}.Bytes())}) + "/a-directory"
			got := patch(t, testPatcher(t, Options{}), dir+"/p")
			for i := range c.want {
				c.want[i] = strings.ReplaceAll(c.want[i], "DIR", dir)
			}
			if d := cmp.Diff(c.want, loadStrings(t, got.Path)); d != "" {
				t.Error(d)
			}
			notes := strings.Join(got.Notes, "\n")
			if want := strings.ReplaceAll(c.notes, "DIR", dir); !strings.Contains(notes, want) || want == "" && notes != "" {
				t.Errorf("notes %q, want %q", notes, want)
			}
			checks, err := Verify(got.Path)
			if err != nil || checks[0].Problems != nil {
				t.Errorf("%+v, %v", checks, err)
			}
		})
	}
}

func TestASymlinkedProgramMeansTheDirectoryWhereItReallyIs(t *testing.T) {
	// dyld resolves symlinks before it looks beside the program.
	dir := tree(t, map[string]string{
		"cellar/p": string(fixture.Program{Loads: []fixture.Load{{Cmd: macho.LCRpath, Path: "@loader_path/../lib"}}, Sign: &fixture.Signature{}}.Bytes()),
		"bin/p":    "-> ../cellar/p",
	})
	p := testPatcher(t, Options{})
	c := patch(t, p, dir+"/bin/p")
	if d := cmp.Diff([]string{"LC_RPATH " + dir + "/cellar/../lib"}, loadStrings(t, c.Path)); d != "" {
		t.Error(d)
	}
	// What it is called stays what it was asked for by: programs go by their argv[0].
	if got := p.StripPrefix(c.Path); got != dir+"/bin/p" || c.Original != got {
		t.Errorf("original %s, without the prefix %s", c.Original, got)
	}
}

func TestACopyHasTheOriginalsPermissionsButNoSetuid(t *testing.T) {
	for _, mode := range []os.FileMode{0o755, 0o700, 0o555, 0o755 | os.ModeSetuid, 0o755 | os.ModeSetgid, 0o711 | os.ModeSetuid | os.ModeSetgid} {
		dir := tree(t, map[string]string{"p": hardened})
		if err := os.Chmod(dir+"/p", mode); err != nil {
			t.Fatal(err)
		}
		p := testPatcher(t, Options{})
		for _, output := range []string{"", dir + "/copy"} {
			c, err := p.PatchTo(t.Context(), dir+"/p", output)
			if err != nil {
				t.Fatal(err)
			}
			info, err := os.Stat(c.Path)
			if err != nil {
				t.Fatal(err)
			}
			if info.Mode() != mode.Perm() {
				t.Errorf("%v: the copy has %v", mode, info.Mode())
			}
			told := strings.Contains(strings.Join(c.Notes, "\n"), "not setuid")
			if set := mode&(os.ModeSetuid|os.ModeSetgid) != 0; told != set {
				t.Errorf("%v: notes %q", mode, c.Notes)
			}
		}
	}
}

// scripts is a world of programs that are protected and programs that are not.
func scripts(t *testing.T, more map[string]string) (dir string, p *Patcher) {
	t.Helper()
	files := map[string]string{"bin/sh": hardened, "bin/env": hardened, "free/sh": plain, "free/env": plain, "app/node": hardened, "brew/node": plain}
	for k, v := range more {
		files[k] = v
	}
	dir = tree(t, files)
	return dir, testPatcher(t, Options{Dir: dir, Env: []string{"PATH=" + dir + "/app"}})
}

func TestACopiedScriptLeadsToTheCopiedInterpreter(t *testing.T) {
	const body = "\necho \"$0\"\x00\xff\r\nlast line without its end"
	for name, c := range map[string]struct {
		line string // first line, DIR is the tree
		more map[string]string
		want string // CACHE is the cache and the key
	}{
		"an interpreter":             {line: "#!DIR/bin/sh -e", want: "#!CACHEDIR/bin/sh -e"},
		"a space":                    {line: "#! \tDIR/bin/sh\t-e  -u ", want: "#!CACHEDIR/bin/sh -e -u"},
		"a relative one":             {line: "#!bin/sh", want: "#!CACHEDIR/bin/sh"},
		"a free one":                 {line: "#!DIR/free/sh -e", want: "#!DIR/free/sh -e"},
		"a free relative one":        {line: "#!free/sh", want: "#!DIR/free/sh"},
		"env":                        {line: "#!DIR/bin/env node", want: "#!CACHEDIR/bin/env CACHEDIR/app/node"},
		"env of a free program":      {line: "#!DIR/bin/env -P DIR/brew node", want: "#!CACHEDIR/bin/env -P DIR/brew node"},
		"a free env":                 {line: "#!DIR/free/env -i X=y PATH=DIR/app node --z", want: "#!DIR/free/env -i X=y PATH=DIR/app CACHEDIR/app/node --z"},
		"env -S":                     {line: "#!DIR/bin/env -S node --z", want: "#!CACHEDIR/bin/env -S CACHEDIR/app/node --z"},
		"env -Snode":                 {line: "#!DIR/bin/env -Snode --z", want: "#!CACHEDIR/bin/env -SCACHEDIR/app/node --z"},
		"env -u and --":              {line: "#!DIR/free/env -u X -- node", want: "#!DIR/free/env -u X -- CACHEDIR/app/node"},
		"a nested script":            {line: "#!DIR/t -x", more: map[string]string{"t": "#!DIR/bin/sh\n"}, want: "#!CACHEDIR/t -x"},
		"a command that is a script": {line: "#!DIR/free/env tool", more: map[string]string{"app/tool": "#!DIR/bin/sh\n"}, want: "#!DIR/free/env CACHEDIR/app/tool"},
	} {
		t.Run(name, func(t *testing.T) {
			more := map[string]string{"s": c.line + body}
			for k, v := range c.more {
				more[k] = v
			}
			dir, p := scripts(t, more)
			got := patch(t, p, dir+"/s")
			if got.Kind != KindScript {
				t.Errorf("kind %s", got.Kind)
			}
			data, err := os.ReadFile(got.Path)
			if err != nil {
				t.Fatal(err)
			}
			line := strings.TrimSuffix(string(data), body)
			line = strings.ReplaceAll(p.strip.ReplaceAllString(line, "CACHE/"), dir, "DIR")
			if d := cmp.Diff(c.want, line); d != "" {
				t.Error(d)
			}
			if !strings.HasSuffix(string(data), body) {
				t.Errorf("the rest is another one: %q", data)
			}
			r, err := p.Inspect(got.Path)
			if err != nil || r.Protected {
				t.Errorf("the copy: %+v, %v", r, err)
			}
			if p.StripPrefix(got.Path) != dir+"/s" {
				t.Errorf("%s does not lead back", got.Path)
			}
		})
	}
}

func TestAScriptThatCannotBeCopiedIsToldWhy(t *testing.T) {
	for name, c := range map[string]struct{ line, want string }{
		"no interpreter":   {"#!DIR/nowhere", "nowhere: not there"},
		"CRLF":             {"#!DIR/bin/sh\r", `bin/sh\r: not there`},
		"a cycle":          {"#!DIR/s", "a cycle"},
		"an over-long one": {"#!DIR/bin/sh " + strings.Repeat("x", 512), "more than 512 bytes"},
		"env of nothing":   {"#!DIR/bin/env", "no command"},
		"a quoted command": {"#!DIR/bin/env -S'node'", "cannot be rewritten"},
		"no room in 512":   {"#!DIR/bin/sh " + strings.Repeat("x", 430), "its first line would have"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, p := scripts(t, map[string]string{"s": c.line + "\n"})
			got, err := p.Patch(t.Context(), dir+"/s")
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("%+v, %v", got, err)
			}
			if fault.Hint(err) == "" {
				t.Errorf("no hint: %v", err)
			}
		})
	}
	// A blank in the cache's name would be split by the kernel.
	dir := tree(t, map[string]string{"s": "#!DIR/sh\n", "sh": hardened})
	p := testPatcher(t, Options{Cache: dir + "/a cache"})
	if c, err := p.Patch(t.Context(), dir+"/s"); err == nil || !strings.Contains(fault.Hint(err), "without blanks") {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestOnlyWhatIsProtectedAndWantedIsCopied(t *testing.T) {
	dir, _ := scripts(t, map[string]string{"s": "#!DIR/bin/env node\n", "f": "#!DIR/free/sh\n"})
	for name, c := range map[string]struct {
		skip, only []string // DIR is the tree
		file       string
		copied     bool
		line       string // of a copied script
	}{
		"protected":               {file: "bin/sh", copied: true},
		"not protected":           {file: "free/sh"},
		"a script":                {file: "s", copied: true, line: "CACHEDIR/bin/env CACHEDIR/app/node"},
		"a free script":           {file: "f"},
		"skipped by its name":     {file: "bin/sh", skip: []string{"bash", "sh"}},
		"skipped by its path":     {file: "bin/sh", skip: []string{"DIR/bin/../bin/sh"}},
		"another path is skipped": {file: "bin/sh", skip: []string{"DIR/free/sh", "bin/sh"}, copied: true},
		"a part of its name":      {file: "bin/sh", skip: []string{"s"}, copied: true},
		"its interpreter skipped": {file: "s", skip: []string{"env"}, copied: true, line: "DIR/bin/env CACHEDIR/app/node"},
		"its command skipped":     {file: "s", skip: []string{"DIR/app/node"}, copied: true, line: "CACHEDIR/bin/env node"},
		"only others":             {file: "bin/sh", only: []string{"node"}},
		"only it":                 {file: "bin/sh", only: []string{"node", "sh"}, copied: true},
		"only its command":        {file: "s", only: []string{"node"}, copied: true, line: "CACHEDIR/bin/env CACHEDIR/app/node"},
		"only it, but skipped":    {file: "bin/sh", only: []string{"sh"}, skip: []string{"sh"}},
	} {
		t.Run(name, func(t *testing.T) {
			list := func(l []string) (out []string) {
				for _, s := range l {
					out = append(out, strings.ReplaceAll(s, "DIR", dir))
				}
				return out
			}
			p := testPatcher(t, Options{Dir: dir, Env: []string{"PATH=" + dir + "/app"}, Skip: list(c.skip), Only: list(c.only)})
			got, err := p.Runnable(t.Context(), c.file)
			if err != nil {
				t.Fatal(err)
			}
			if copied := got.Path != dir+"/"+c.file; copied != c.copied || got.Original != dir+"/"+c.file {
				t.Fatalf("%+v", got)
			}
			if c.line != "" {
				data, err := os.ReadFile(got.Path)
				if err != nil {
					t.Fatal(err)
				}
				line := strings.ReplaceAll(p.strip.ReplaceAllString(string(data), "CACHE/"), dir, "DIR")
				if want := "#!" + c.line + "\n"; line != want {
					t.Errorf("%q, want %q", line, want)
				}
			}
		})
	}
}

func TestAProgramSeesItsOriginalPath(t *testing.T) {
	p := testPatcher(t, Options{Cache: "/home/me/.cache/stead/sip"})
	const copied = "/home/me/.cache/stead/sip/v1/0123456789abcdef0123456789abcdef"
	for in, want := range map[string]string{
		copied + "/usr/bin/env":              "/usr/bin/env",
		copied + "/usr/bin":                  "/usr/bin",
		copied + "/":                         "/",
		copied:                               "/",
		copied + "0/usr/bin/env":             copied + "0/usr/bin/env",
		"/x" + copied + "/usr/bin/env":       "/x" + copied + "/usr/bin/env",
		"/usr/bin/env":                       "/usr/bin/env",
		"env":                                "env",
		"":                                   "",
		"/home/me/.cache/stead/sip/v1/short": "/home/me/.cache/stead/sip/v1/short",
		// A copy of an older version is one all the same.
		strings.Replace(copied, "/v1/", "/v07/", 1) + "/bin/sh": "/bin/sh",
	} {
		if got := p.StripPrefix(in); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
	argv := []string{copied + "/bin/sh", "-c", "--config=" + copied + "/etc/x", copied + "/a:" + copied + "/b", "v", "/v1/x"}
	before := slices.Clone(argv)
	want := []string{"/bin/sh", "-c", "--config=/etc/x", "/a:/b", "v", "/v1/x"}
	if d := cmp.Diff(want, p.StripArgv(argv)); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(before, argv); d != "" {
		t.Errorf("the argument was changed: %s", d)
	}
	if d := cmp.Diff([]string{"ls", "/v1/"}, p.StripArgv([]string{"ls", "/v1/"})); d != "" {
		t.Error(d)
	}
}

func TestACacheBehindASymlinkIsKnownByBothNames(t *testing.T) {
	dir := tree(t, map[string]string{"real/x!": "", "link": "-> real", "p": hardened})
	p := testPatcher(t, Options{Cache: dir + "/link"})
	c := patch(t, p, dir+"/p")
	real, err := filepath.EvalSymlinks(c.Path)
	if err != nil || real == c.Path {
		t.Fatalf("%s, %v", real, err)
	}
	for _, path := range []string{c.Path, real} {
		if got := p.StripPrefix(path); got != dir+"/p" {
			t.Errorf("%s: %s", path, got)
		}
	}
}

func TestTheSameContentIsCopiedOnceAndOtherContentAnew(t *testing.T) {
	dir := tree(t, map[string]string{"p": hardened, "s": "#!DIR/p\none"})
	cache := filepath.Join(t.TempDir(), "cache")
	p := testPatcher(t, Options{Cache: cache})
	seen := map[string]string{}
	step := func(name, file string, cached bool) {
		t.Helper()
		c := patch(t, p, dir+"/"+file)
		if c.Cached != cached {
			t.Errorf("%s: cached %v", name, c.Cached)
		}
		if other := seen[c.Path]; !cached && other != "" {
			t.Errorf("%s: the same path as for %s", name, other)
		}
		seen[c.Path] = name
	}
	step("the program", "p", false)
	step("the program again", "p", true)
	step("the script", "s", false)
	step("the script again", "s", true)
	os.Chmod(dir+"/p", 0o711)
	step("another mode", "p", false)
	data := []byte(hardened)
	data[0x3fff] ^= 1
	if err := os.WriteFile(dir+"/p", data, 0o711); err != nil {
		t.Fatal(err)
	}
	step("another byte", "p", false)
	if err := os.WriteFile(dir+"/s", []byte("#!"+dir+"/p\ntwo"), 0o755); err != nil {
		t.Fatal(err)
	}
	step("another body", "s", false)
	for _, d := range []string{cache, cache + "/v1", cache + "/v1/.tmp"} {
		if info, err := os.Stat(d); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v", d, info.Mode(), err)
		}
	}
}

func TestADirectoryOfOthersKeepsItsMode(t *testing.T) {
	dir := tree(t, map[string]string{"p": hardened, "cache/mine!": "x", "cache/v1/x!": ""})
	if err := os.Chmod(dir+"/cache", 0o755); err != nil {
		t.Fatal(err)
	}
	p := testPatcher(t, Options{Cache: dir + "/cache"})
	patch(t, p, dir+"/p")
	for d, want := range map[string]os.FileMode{"/cache": 0o755, "/cache/v1": 0o700} {
		if info, err := os.Stat(dir + d); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", d, info.Mode(), err)
		}
	}
	if _, err := p.Clean(t.Context(), Limits{All: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir + "/cache/mine"); err != nil {
		t.Error(err)
	}
}

func TestTheOutputIsWrittenWhereItIsAskedFor(t *testing.T) {
	dir := tree(t, map[string]string{"p": hardened, "old": "old", "link": "-> p", "folder/x": ""})
	p := testPatcher(t, Options{})
	for _, to := range []string{"new", "old"} {
		c, err := p.PatchTo(t.Context(), dir+"/p", dir+"/"+to)
		if err != nil || c.Path != dir+"/"+to {
			t.Fatalf("%+v, %v", c, err)
		}
		if checks, err := Verify(c.Path); err != nil || checks[0].Problems != nil {
			t.Errorf("%+v, %v", checks, err)
		}
	}
	for _, to := range []string{"p", "link", "folder", "no/such"} {
		if c, err := p.PatchTo(t.Context(), dir+"/p", dir+"/"+to); err == nil {
			t.Errorf("%s: %+v", to, c)
		}
	}
	if data, err := os.ReadFile(dir + "/p"); err != nil || string(data) != hardened {
		t.Errorf("the original is another one: %v", err)
	}
	if left, _ := filepath.Glob(dir + "/.*"); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

func TestWhatIsNoProgramIsNotCopied(t *testing.T) {
	dir := tree(t, map[string]string{"text": "hello", "empty": "", "d/x": "", "object": string(fixture.Program{Type: macho.Object}.Bytes())})
	p := testPatcher(t, Options{})
	for _, name := range []string{"text", "empty", "d", "object", "gone"} {
		if c, err := p.Patch(t.Context(), dir+"/"+name); err == nil {
			t.Errorf("%s: %+v", name, c)
		} else if name == "gone" != errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// used makes a copy's last use so long ago.
func used(t *testing.T, p *Patcher, c *Copy, ago time.Duration) {
	t.Helper()
	entry := filepath.Join(p.store.version(), strings.Split(strings.TrimPrefix(c.Path, p.store.version()+"/"), "/")[0])
	at := time.Now().Add(-ago)
	if err := os.Chtimes(entry, at, at); err != nil {
		t.Fatal(err)
	}
}

// left3 names those of the copies that are there: a, b, c.
func left3(t *testing.T, copies []*Copy) (out string) {
	t.Helper()
	for i, c := range copies {
		if there(c.Path) {
			out += string(rune('a' + i))
		}
	}
	return out
}

func TestCopiesAreCleanedByAgeAndBySize(t *testing.T) {
	hour, day := time.Hour, 24*time.Hour
	for name, c := range map[string]struct {
		ages   [3]time.Duration
		limits Limits
		left   string
	}{
		"all are young":              {[3]time.Duration{0, hour, day}, Limits{}, "abc"},
		"by age":                     {[3]time.Duration{0, 29 * day, 31 * day}, Limits{}, "ab"},
		"by an age of one's own":     {[3]time.Duration{0, hour, 3 * hour}, Limits{MaxAge: 2 * hour}, "ab"},
		"by size the oldest first":   {[3]time.Duration{hour, 3 * hour, 2 * hour}, Limits{MaxSize: int64(2*len(hardened) + 1000)}, "ac"},
		"by size none that is young": {[3]time.Duration{0, time.Minute, 2 * time.Minute}, Limits{MaxSize: 1}, "abc"},
		"by size all but the young":  {[3]time.Duration{0, hour, hour}, Limits{MaxSize: 1}, "a"},
		"all":                        {[3]time.Duration{0, 0, 0}, Limits{All: true}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			files := map[string]string{}
			for _, f := range []string{"a", "b", "c"} {
				files[f] = string(fixture.Program{Text: 100 + 8*int(f[0]), Sign: &fixture.Signature{Flags: codesign.FlagRuntime}}.Bytes())
			}
			dir := tree(t, files)
			p := testPatcher(t, Options{})
			if r, err := p.Clean(t.Context(), c.limits); err != nil || r != (Cleaned{}) {
				t.Errorf("an empty cache: %+v, %v", r, err)
			}
			var copies []*Copy
			for i, f := range []string{"a", "b", "c"} {
				copies = append(copies, patch(t, p, dir+"/"+f))
				used(t, p, copies[i], c.ages[i])
			}
			older := filepath.Join(p.o.Cache, "v0", "copy")
			if err := os.MkdirAll(older, 0o700); err != nil {
				t.Fatal(err)
			}
			r, err := p.Clean(t.Context(), c.limits)
			if err != nil {
				t.Fatal(err)
			}
			if got := left3(t, copies); got != c.left || r.Kept != len(c.left) || r.Removed != 3-len(c.left) {
				t.Errorf("left %q, want %q: %+v", got, c.left, r)
			}
			if r.RemovedBytes+r.KeptBytes < int64(3*len(hardened)/2) {
				t.Errorf("%+v", r)
			}
			if _, err := os.Stat(older); err == nil {
				t.Error("a copy of another version is there")
			}
			for i, f := range []string{"a", "b", "c"} {
				if again := patch(t, p, dir+"/"+f); again.Cached != strings.Contains(c.left, f) || again.Path != copies[i].Path {
					t.Errorf("%s again: %+v", f, again)
				}
			}
		})
	}
}

func TestACopyThatIsAskedForAgainIsNotTheNextToGo(t *testing.T) {
	dir := tree(t, map[string]string{"a": hardened})
	p := testPatcher(t, Options{})
	c := patch(t, p, dir+"/a")
	used(t, p, c, 2*time.Minute) // a note older than that of one minute
	entries, err := p.store.entries()
	if err != nil || len(entries) != 1 {
		t.Fatal(entries, err)
	}
	patch(t, p, dir+"/a")
	// A cleaner that had looked at it before does not remove it now.
	if gone, err := p.store.remove(t.Context(), entries[0], false); gone || err != nil {
		t.Errorf("removed %v, %v", gone, err)
	}
	if !there(c.Path) {
		t.Error("the copy is gone")
	}
	if gone, err := p.store.remove(t.Context(), entries[0], true); !gone || err != nil || there(c.Path) {
		t.Errorf("removed %v, %v", gone, err)
	}
}

func TestACopyThatIsBeingWrittenIsNotCleaned(t *testing.T) {
	p := testPatcher(t, Options{})
	key := strings.Repeat("a", 32)
	writing, goOn, done := make(chan struct{}), make(chan struct{}), make(chan error)
	go func() {
		_, _, err := p.store.get(t.Context(), key, "/x", 0o755, func(f *os.File) error {
			close(writing)
			<-goOn
			_, err := f.WriteString("whole")
			return err
		})
		done <- err
	}()
	<-writing
	r, err := p.Clean(t.Context(), Limits{All: true})
	if err != nil {
		t.Fatal(err)
	}
	close(goOn)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(filepath.Join(p.store.version(), key, "x")); err != nil || string(data) != "whole" {
		t.Errorf("%q, %v; cleaned %+v", data, err, r)
	}
}

func TestAWriteThatFailsLeavesNothing(t *testing.T) {
	p := testPatcher(t, Options{})
	key := strings.Repeat("b", 32)
	_, _, err := p.store.get(t.Context(), key, "/a/b/x", 0o755, func(f *os.File) error {
		f.WriteString("half")
		return errors.New("broken")
	})
	if err == nil || !strings.Contains(err.Error(), "broken") {
		t.Fatal(err)
	}
	filepath.WalkDir(p.o.Cache, func(path string, d fs.DirEntry, err error) error {
		if d.Type().IsRegular() && filepath.Base(filepath.Dir(path)) != ".lock" || d.Name() == key && d.IsDir() {
			t.Errorf("left: %s", path)
		}
		return err
	})
}

func TestManyWhoCopyAndManyWhoCleanDoNotHinderOneAnother(t *testing.T) {
	files := map[string]string{}
	for _, f := range []string{"a", "b", "c", "d"} {
		files[f] = string(fixture.Program{Text: 100 + 8*int(f[0]), Sign: &fixture.Signature{Flags: codesign.FlagRuntime}}.Bytes())
	}
	dir := tree(t, files)
	cache := filepath.Join(t.TempDir(), "cache")
	var all sync.WaitGroup
	for i := range 12 {
		all.Go(func() {
			p := testPatcher(t, Options{Cache: cache})
			for j := range 20 {
				if i%3 == 0 {
					if _, err := p.Clean(t.Context(), Limits{All: true}); err != nil {
						t.Error(err)
					}
					continue
				}
				name := string(rune('a' + (i+j)%4))
				if c, err := p.Patch(t.Context(), dir+"/"+name); err != nil || p.StripPrefix(c.Path) != dir+"/"+name {
					t.Errorf("%+v, %v", c, err)
				}
			}
		})
	}
	all.Wait()
	p := testPatcher(t, Options{Cache: cache})
	for name := range files {
		c := patch(t, p, dir+"/"+name)
		if checks, err := Verify(c.Path); err != nil || checks[0].Problems != nil {
			t.Errorf("%+v, %v", checks, err)
		}
	}
}

func TestAProgramThatChangesWhileItIsCopiedGivesAWholeCopyOrAnError(t *testing.T) {
	dir := tree(t, map[string]string{"p": string(fixture.Program{Text: 4 << 20, Sign: &fixture.Signature{Flags: codesign.FlagRuntime}}.Bytes())})
	path := dir + "/p"
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() { // as a linker or a package manager that writes in place
		for {
			select {
			case <-stop:
				os.WriteFile(path, data, 0o755)
				return
			default:
				os.WriteFile(path, data[:len(data)/2], 0o755)
				os.WriteFile(path, data, 0o755)
			}
		}
	})
	p := testPatcher(t, Options{})
	failed := 0
	for range 60 {
		c, err := p.Patch(t.Context(), path)
		if err != nil {
			failed++
			if f := (*macho.FormatError)(nil); !errors.Is(err, mapped.ErrChanged) && !errors.As(err, &f) && !strings.Contains(err.Error(), "an empty file") {
				t.Error(err)
			}
			continue
		}
		if checks, err := Verify(c.Path); err != nil || checks[0].Problems != nil {
			t.Fatalf("%+v, %v", checks, err)
		}
	}
	close(stop)
	writer.Wait()
	if failed == 0 {
		t.Error("the file never changed under anybody's hands")
	}
	patch(t, p, path)
}
