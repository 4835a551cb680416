package sip

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stead-dev/stead/internal/sip/codesign"
	"github.com/stead-dev/stead/internal/sip/fixture"
	"github.com/stead-dev/stead/internal/sip/macho"
)

// tree makes files below a new directory and returns it. A value that begins with "-> " is a
// symlink; a name that ends in "!" is not executable.
func tree(t testing.TB, files map[string]string) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for name, body := range files {
		mode := os.FileMode(0o755)
		if n, ok := strings.CutSuffix(name, "!"); ok {
			name, mode = n, 0o644
		}
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		body = strings.ReplaceAll(body, "DIR", dir)
		if to, ok := strings.CutPrefix(body, "-> "); ok {
			err = os.Symlink(to, path)
		} else {
			err = os.WriteFile(path, []byte(body), mode)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// restricted are the paths that carry SF_RESTRICTED.
type restricted []string

func (r restricted) Restricted(path string) (bool, error) {
	for _, p := range r {
		if p == path {
			return true, nil
		}
	}
	return false, nil
}

// Programs of the fixtures.
var (
	plain     = string(fixture.Program{Sign: &fixture.Signature{Flags: codesign.FlagAdhoc}}.Bytes())
	hardened  = string(fixture.Program{Sign: &fixture.Signature{Flags: codesign.FlagRuntime}}.Bytes())
	appleOnly = string(fixture.Fat(binary.BigEndian, false,
		fixture.Of(fixture.Program{CPU: macho.X86_64, Sign: &fixture.Signature{Platform: 14}}),
		fixture.Of(fixture.Program{Subtype: macho.SubtypeARM64E | 0x80<<24, Sign: &fixture.Signature{Platform: 14}})))
)

func TestAScriptIsFollowedToTheProgramThatRunsIt(t *testing.T) {
	bin := func(more map[string]string) map[string]string {
		m := map[string]string{
			"usr/bin/env": appleOnly, "bin/sh": appleOnly, "brew/node": plain, "brew/python3": plain, "app/node": hardened,
			"app/python3": hardened, "free/env": plain, "free/sh": plain,
		}
		for k, v := range more {
			m[k] = v
		}
		return m
	}
	for name, c := range map[string]struct {
		files     map[string]string
		path      string // PATH, DIR stands for the tree; default DIR/brew
		noPath    bool
		protected bool
		chain     string // names in the tree
		reason    string // part of the reasons
	}{
		"a shell of Apple":            {files: map[string]string{"s": "#!DIR/bin/sh\n"}, protected: true, chain: "s bin/sh", reason: "SF_RESTRICTED"},
		"with a space":                {files: map[string]string{"s": "#! DIR/bin/sh -e\n"}, protected: true, chain: "s bin/sh"},
		"without a newline":           {files: map[string]string{"s": "#!DIR/bin/sh"}, protected: true, chain: "s bin/sh"},
		"a free shell":                {files: map[string]string{"s": "#!DIR/free/sh\n"}, chain: "s free/sh"},
		"a relative interpreter":      {files: map[string]string{"s": "#!bin/sh\n"}, protected: true, chain: "s bin/sh"},
		"CRLF":                        {files: map[string]string{"s": "#!DIR/bin/sh\r\n"}, chain: "s", reason: "CRLF"},
		"CRLF, the cause is told":     {files: map[string]string{"s": "#!DIR/bin/sh\r\n"}, chain: "s", reason: `bin/sh\r: not there`},
		"no such interpreter":         {files: map[string]string{"s": "#!DIR/nowhere\n"}, chain: "s", reason: "nowhere: not there"},
		"an interpreter without x":    {files: map[string]string{"s": "#!DIR/i\n", "i!": plain}, chain: "s", reason: "not executable"},
		"an interpreter of a folder":  {files: map[string]string{"s": "#!DIR/bin\n"}, chain: "s", reason: "not executable"},
		"an over-long line":           {files: map[string]string{"s": "#!DIR/bin/sh " + strings.Repeat("x", 600) + "\n"}, chain: "s", reason: "more than 512 bytes"},
		"nothing after #!":            {files: map[string]string{"s": "#!\n"}, chain: "s", reason: "no interpreter"},
		"a symlink to a script":       {files: map[string]string{"s": "-> t", "t": "#!DIR/bin/sh\n"}, protected: true, chain: "s t bin/sh"},
		"an interpreter by a symlink": {files: map[string]string{"s": "#!DIR/l\n", "l": "-> bin/sh"}, protected: true, chain: "s l bin/sh"},
		"a nested script":             {files: map[string]string{"s": "#!DIR/t\n", "t": "#!DIR/bin/sh\n"}, protected: true, chain: "s t bin/sh", reason: "is a script"},
		"a cycle of one":              {files: map[string]string{"s": "#!DIR/s\n"}, chain: "s", reason: "a cycle"},
		"a cycle of two":              {files: map[string]string{"s": "#!DIR/t\n", "t": "#!DIR/s\n"}, chain: "s t", reason: "a cycle"},
		"a cycle by a symlink":        {files: map[string]string{"s": "#!DIR/l\n", "l": "-> s"}, chain: "s", reason: "a cycle"},
		"a cycle by env":              {files: map[string]string{"s": "#!DIR/free/env s\n"}, path: "DIR", chain: "s free/env", reason: "a cycle"},
		"env of Apple":                {files: map[string]string{"s": "#!DIR/usr/bin/env node\n"}, protected: true, chain: "s usr/bin/env brew/node"},
		"a hardened node":             {files: map[string]string{"s": "#!DIR/free/env node\n"}, path: "DIR/app", protected: true, chain: "s free/env app/node", reason: "hardened runtime"},
		"a free env":                  {files: map[string]string{"s": "#!DIR/free/env node\n"}, chain: "s free/env brew/node"},
		"python3 by the PATH":         {files: map[string]string{"s": "#!DIR/free/env python3\n"}, path: "DIR/none:DIR/app:DIR/brew", protected: true, chain: "s free/env app/python3"},
		"a PATH of the working directory": {files: map[string]string{"s": "#!DIR/free/env node\n", "node": hardened}, path: ":DIR/brew", protected: true,
			chain: "s free/env node"},
		"a file in PATH without x":      {files: map[string]string{"s": "#!DIR/free/env tool\n", "app/tool!": hardened, "brew/tool": plain}, path: "DIR/app:DIR/brew", chain: "s free/env brew/tool"},
		"env -S":                        {files: map[string]string{"s": "#!DIR/free/env -S node --x\n"}, path: "DIR/app", protected: true, chain: "s free/env app/node"},
		"env -Snode":                    {files: map[string]string{"s": "#!DIR/free/env -Snode\n"}, path: "DIR/app", protected: true, chain: "s free/env app/node"},
		"env -u PATH":                   {files: map[string]string{"s": "#!DIR/free/env -u PATH no-such-tool\n"}, chain: "s free/env", reason: "not in PATH /usr/bin:/bin"},
		"env -i":                        {files: map[string]string{"s": "#!DIR/free/env -i no-such-tool\n"}, chain: "s free/env", reason: "not in PATH /usr/bin:/bin"},
		"env -P":                        {files: map[string]string{"s": "#!DIR/free/env -P DIR/app node\n"}, protected: true, chain: "s free/env app/node"},
		"env PATH=":                     {files: map[string]string{"s": "#!DIR/free/env -i PATH=DIR/app node\n"}, protected: true, chain: "s free/env app/node"},
		"env --":                        {files: map[string]string{"s": "#!DIR/free/env -- node\n"}, path: "DIR/app", protected: true, chain: "s free/env app/node"},
		"env VAR=x":                     {files: map[string]string{"s": "#!DIR/free/env A=1 node\n"}, path: "DIR/app", protected: true, chain: "s free/env app/node"},
		"env -C":                        {files: map[string]string{"s": "#!DIR/free/env -C app ./node\n"}, protected: true, chain: "s free/env app/node"},
		"env of nothing":                {files: map[string]string{"s": "#!DIR/usr/bin/env\n"}, protected: true, chain: "s usr/bin/env", reason: "no command"},
		"an unknown option of env":      {files: map[string]string{"s": "#!DIR/free/env --split-string node\n"}, chain: "s free/env", reason: "option"},
		"env of a command not there":    {files: map[string]string{"s": "#!DIR/free/env nothing\n"}, chain: "s free/env", reason: "nothing: not in PATH"},
		"env of a script through env":   {files: map[string]string{"s": "#!DIR/free/env tool\n", "brew/tool": "#!DIR/free/env node\n"}, path: "DIR/brew", chain: "s free/env brew/tool free/env brew/node"},
		"env's PATH counts further on":  {files: map[string]string{"s": "#!DIR/free/env PATH=DIR/app DIR/tool\n", "tool": "#!DIR/free/env node\n"}, protected: true, chain: "s free/env tool free/env app/node"},
		"no PATH at all":                {files: map[string]string{"s": "#!DIR/free/env no-such-tool\n"}, noPath: true, chain: "s free/env", reason: "/usr/bin:/bin"},
		"env by a symlink":              {files: map[string]string{"s": "#!DIR/e\n", "e": "-> free/env"}, chain: "s e free/env", reason: "no command"},
		"something that is called envy": {files: map[string]string{"s": "#!DIR/envy node\n", "envy": plain}, chain: "s envy"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := tree(t, bin(c.files))
			path := strings.ReplaceAll(c.path, "DIR", dir)
			if path == "" {
				path = dir + "/brew"
			}
			env := []string{"PATH=/wrong", "PATH=" + path}
			if c.noPath {
				env = []string{"HOME=/"}
			}
			p := testPatcher(t, Options{Dir: dir, Env: env, Flags: restricted{dir + "/bin/sh", dir + "/usr/bin/env"}})
			r, err := p.Inspect("s")
			if err != nil {
				t.Fatal(err)
			}
			if r.Kind != KindScript || r.Protected != c.protected {
				t.Errorf("kind %s, protected %v", r.Kind, r.Protected)
			}
			var chain []string
			for _, f := range r.Chain {
				chain = append(chain, strings.TrimPrefix(f, dir+"/"))
			}
			if d := cmp.Diff(c.chain, strings.Join(chain, " ")); d != "" {
				t.Error(d)
			}
			if all := strings.Join(r.Reasons, "\n"); !strings.Contains(all, c.reason) {
				t.Errorf("reasons %q, none with %q", all, c.reason)
			}
		})
	}
}

func TestAChainOfManyScriptsEnds(t *testing.T) {
	files := map[string]string{"s30": "#!DIR/sh\n", "sh": plain}
	for i := range 30 {
		files["s"+string(rune('A'+i))] = "#!DIR/s" + string(rune('A'+i+1)) + "\n"
	}
	dir := tree(t, files)
	r, err := testPatcher(t, Options{}).Inspect(dir + "/sA")
	if err != nil {
		t.Fatal(err)
	}
	if all := strings.Join(r.Reasons, "\n"); !strings.Contains(all, "too many scripts") || len(r.Chain) > maxChain+1 {
		t.Errorf("%d files in the chain: %q", len(r.Chain), all)
	}
}

func TestOtherFilesAreToldForWhatTheyAre(t *testing.T) {
	dir := tree(t, map[string]string{
		"empty": "", "text": "echo hello\n", "elf": "\x7fELF\x02", "dir/x": "", "hard!": hardened, "script!": "#!DIR/plain\n", "plain": plain,
		"class": "\xca\xfe\xba\xbe\x00\x00\x00\x41" + strings.Repeat("x", 100), "l": "-> m", "m": "-> plain", "gone": "-> nothing", "loop": "-> loop",
		"protected-elf": "\x7fELF\x02", "short": "\xca\xfe", "object": string(fixture.Program{Type: macho.Object}.Bytes()),
		"dylib": string(fixture.Program{Type: macho.Dylib, Sign: &fixture.Signature{Flags: codesign.FlagRuntime}}.Bytes()), "setuid": plain,
	})
	if err := os.Chmod(dir+"/setuid", 0o755|os.ModeSetuid); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(dir+"/fifo", 0o755); err != nil {
		t.Fatal(err)
	}
	p := testPatcher(t, Options{Flags: restricted{dir + "/protected-elf"}})
	for name, want := range map[string]struct {
		kind      Kind
		protected bool
		reason    string
	}{
		"empty": {KindOther, false, "an empty file"}, "text": {KindOther, false, "neither"}, "elf": {KindOther, false, "neither"},
		"dir": {KindOther, false, "a directory"}, "fifo": {KindOther, false, "not a regular file"}, "hard": {KindMachO, false, "not executable"},
		"script": {KindScript, false, "not executable"}, "class": {KindOther, false, "neither"}, "l": {KindMachO, false, ""},
		"protected-elf": {KindOther, true, "SF_RESTRICTED"}, "short": {KindOther, false, "neither"},
		"object": {KindMachO, false, "(object file)"}, "dylib": {KindMachO, false, "(dynamic library)"}, "setuid": {KindMachO, true, "setuid"},
	} {
		r, err := p.Inspect(filepath.Join(dir, name))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if all := strings.Join(r.Reasons, "\n"); r.Kind != want.kind || r.Protected != want.protected || !strings.Contains(all, want.reason) {
			t.Errorf("%s: %s, protected %v, %q; want %+v", name, r.Kind, r.Protected, all, want)
		}
	}
	r, err := p.Inspect(dir + "/l")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{dir + "/l", dir + "/plain"}, r.Chain); d != "" {
		t.Error(d)
	}
	for _, name := range []string{"gone", "loop", "nothing"} {
		if r, err := p.Inspect(filepath.Join(dir, name)); err == nil {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

// unreadable flags are those of any other system.
type unreadable struct{}

func (unreadable) Restricted(string) (bool, error) { return false, errors.ErrUnsupported }

func TestTheDirectoriesOfMacOSAreAHintOnly(t *testing.T) {
	for path, want := range map[string]string{
		"/usr/bin/env": "/usr", "/bin/sh": "/bin", "/sbin/mount": "/sbin", "/System/x": "/System", "/usr/local/bin/node": "",
		"/opt/homebrew/bin/node": "", "/usrx": "", "/Applications/Safari.app/x": "/Applications/Safari.app", "/Applications/Mine.app/x": "",
		"/usr/localx": "/usr",
	} {
		if got := hinted(path); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
	// Where flags cannot be read, the hint is told and decides nothing.
	r, err := testPatcher(t, Options{Flags: unreadable{}}).Inspect("/usr/bin/env")
	if err != nil {
		t.Fatal(err)
	}
	if all := strings.Join(r.Reasons, "\n"); r.Protected || !strings.Contains(all, "/usr, which macOS protects") && !strings.Contains(all, "/bin, which macOS protects") {
		t.Errorf("protected %v: %q", r.Protected, all)
	}
}

func TestWhatProtectsAProgram(t *testing.T) {
	yes := func(keys ...string) []byte {
		s := ""
		for _, k := range keys {
			s += "<key>" + k + "</key><true/>"
		}
		return fixture.XML(s)
	}
	no := fixture.XML("<key>" + allowDyld + "</key><false/><key>" + disableLV + "</key><true/>")
	text := fixture.XML("<key>" + allowDyld + "</key><string>true</string><key>" + disableLV + "</key><true/>")
	der := func(dyld, lv bool) []byte {
		return fixture.DER(fixture.Bool{Key: allowDyld, Value: dyld}, fixture.Bool{Key: disableLV, Value: lv})
	}
	runtime, none := uint32(codesign.FlagRuntime), uint32(0)
	signed := func(s fixture.Signature) fixture.Program { return fixture.Program{Sign: &s} }
	for name, c := range map[string]struct {
		program   fixture.Program
		protected bool
		reason    string
	}{
		"no signature":                         {fixture.Program{CPU: macho.X86_64}, false, "needs Rosetta"},
		"ad hoc":                               {signed(fixture.Signature{Flags: codesign.FlagAdhoc}), false, ""},
		"hardened":                             {signed(fixture.Signature{Flags: runtime}), true, "without the entitlement " + allowDyld},
		"hardened by the second directory":     {signed(fixture.Signature{Second: &runtime}), true, "hardened"},
		"hardened by the first directory":      {signed(fixture.Signature{Flags: runtime, Second: &none}), true, "hardened"},
		"CS_RESTRICT":                          {signed(fixture.Signature{Flags: codesign.FlagRestrict}), true, "CS_RESTRICT"},
		"CS_RESTRICT in the second":            {signed(fixture.Signature{Second: ptr(uint32(codesign.FlagRestrict))}), true, "CS_RESTRICT"},
		"a __RESTRICT segment":                 {fixture.Program{Restrict: true, Sign: &fixture.Signature{}}, true, "__RESTRICT"},
		"a __RESTRICT segment, no signature":   {fixture.Program{Restrict: true, CPU: macho.X86_64}, true, "__RESTRICT"},
		"library validation":                   {signed(fixture.Signature{Flags: codesign.FlagRequireLV}), true, "library validation"},
		"library validation, forced":           {signed(fixture.Signature{Flags: codesign.FlagForcedLV}), true, "library validation"},
		"library validation, undone":           {signed(fixture.Signature{Flags: codesign.FlagRequireLV, XML: yes(disableLV)}), false, ""},
		"both entitlements":                    {signed(fixture.Signature{Flags: runtime, XML: yes(allowDyld, disableLV)}), false, "allow DYLD_ variables"},
		"both in DER alone":                    {signed(fixture.Signature{Flags: runtime, DER: der(true, true)}), false, "allow DYLD_ variables"},
		"both in both":                         {signed(fixture.Signature{Flags: runtime, XML: yes(allowDyld, disableLV), DER: der(true, true)}), false, ""},
		"DYLD_ allowed, libraries validated":   {signed(fixture.Signature{Flags: runtime, XML: yes(allowDyld)}), true, "our library would be refused"},
		"libraries not validated, DYLD_ taken": {signed(fixture.Signature{Flags: runtime, XML: yes(disableLV)}), true, allowDyld},
		"false is not true":                    {signed(fixture.Signature{Flags: runtime, XML: no}), true, allowDyld},
		"false in DER is not true":             {signed(fixture.Signature{Flags: runtime, DER: der(false, true)}), true, allowDyld},
		"DER says false, XML says true":        {signed(fixture.Signature{Flags: runtime, XML: yes(allowDyld, disableLV), DER: der(false, true)}), true, allowDyld},
		"XML says false, DER says true":        {signed(fixture.Signature{Flags: runtime, XML: no, DER: der(true, true)}), true, allowDyld},
		"the text true is not true":            {signed(fixture.Signature{Flags: runtime, XML: text}), true, allowDyld},
		"a program of macOS":                   {signed(fixture.Signature{Platform: 14}), true, "by Apple"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := tree(t, map[string]string{"p": string(c.program.Bytes())})
			r, err := testPatcher(t, Options{}).Inspect(dir + "/p")
			if err != nil {
				t.Fatal(err)
			}
			if all := strings.Join(r.Reasons, "\n"); r.Protected != c.protected || !strings.Contains(all, c.reason) || c.reason == "" && !c.protected && strings.Contains(all, "without") {
				t.Errorf("protected %v, reasons %q", r.Protected, all)
			}
			// Whatever protected it, a copy is not.
			p := testPatcher(t, Options{})
			copied, err := p.Patch(t.Context(), dir+"/p")
			if err != nil {
				t.Fatal(err)
			}
			if r, err = p.Inspect(copied.Path); err != nil || r.Protected || len(r.Slices[0].Entitlements) > 0 || r.Slices[0].Hardened {
				t.Errorf("the copy: %+v, %v", r, err)
			}
		})
	}
}

func ptr[T any](v T) *T { return &v }

func TestTheSliceThatWouldRunIsTheOneThatCounts(t *testing.T) {
	hard := &fixture.Signature{Flags: codesign.FlagRuntime}
	free := &fixture.Signature{Flags: codesign.FlagAdhoc}
	intel := func(s *fixture.Signature) fixture.Slice {
		return fixture.Of(fixture.Program{CPU: macho.X86_64, Sign: s})
	}
	arm := func(s *fixture.Signature) fixture.Slice { return fixture.Of(fixture.Program{Sign: s}) }
	armE := func(s *fixture.Signature) fixture.Slice {
		return fixture.Of(fixture.Program{Subtype: macho.SubtypeARM64E | 0x80<<24, Sign: s})
	}
	phone := fixture.Of(fixture.Program{Platform: 2, Sign: free})
	haswell := fixture.Of(fixture.Program{CPU: macho.X86_64, Subtype: macho.SubtypeHaswell, Sign: hard})
	apple := &fixture.Signature{Platform: 14}
	for name, c := range map[string]struct {
		slices    []fixture.Slice
		host      macho.CPU
		protected bool
		runs      string // "" for none
		copied    string // "" for none
		rosetta   bool
	}{
		"arm64 before x86_64":             {[]fixture.Slice{intel(hard), arm(free)}, macho.ARM64, false, "arm64", "arm64", false},
		"arm64 hardened":                  {[]fixture.Slice{intel(free), arm(hard)}, macho.ARM64, true, "arm64", "arm64", false},
		"on Intel x86_64 counts":          {[]fixture.Slice{intel(free), arm(hard)}, macho.X86_64, false, "x86_64", "x86_64", false},
		"x86_64 by Rosetta":               {[]fixture.Slice{intel(hard)}, macho.ARM64, true, "x86_64", "x86_64", true},
		"arm64e of Apple runs":            {[]fixture.Slice{intel(apple), armE(apple)}, macho.ARM64, true, "arm64e", "x86_64", true},
		"arm64e of others does not":       {[]fixture.Slice{intel(free), arm(free), armE(hard)}, macho.ARM64, false, "arm64", "arm64", false},
		"arm64e of Apple, arm64 there":    {[]fixture.Slice{arm(free), armE(apple)}, macho.ARM64, true, "arm64e", "arm64", false},
		"arm64e only":                     {[]fixture.Slice{armE(apple)}, macho.ARM64, true, "arm64e", "", false},
		"arm64e only, of others":          {[]fixture.Slice{armE(free)}, macho.ARM64, false, "", "", false},
		"arm64 for phones does not run":   {[]fixture.Slice{intel(hard), phone}, macho.ARM64, true, "x86_64", "x86_64", true},
		"arm64 on Intel does not run":     {[]fixture.Slice{arm(hard)}, macho.X86_64, false, "", "", false},
		"x86_64h on Intel":                {[]fixture.Slice{intel(free), haswell}, macho.X86_64, true, "x86_64h", "x86_64h", false},
		"x86_64h does not run by Rosetta": {[]fixture.Slice{intel(free), haswell}, macho.ARM64, false, "x86_64", "x86_64", true},
	} {
		for _, form := range []struct {
			name string
			data []byte
		}{
			{"FAT", fixture.Fat(binary.BigEndian, false, c.slices...)},
			{"FAT64", fixture.Fat(binary.BigEndian, true, c.slices...)},
			{"FAT, little-endian", fixture.Fat(binary.LittleEndian, false, c.slices...)},
			{"FAT64, little-endian", fixture.Fat(binary.LittleEndian, true, c.slices...)},
			{"thin", c.slices[0].Data},
		} {
			if form.name == "thin" && len(c.slices) > 1 {
				continue
			}
			t.Run(name+" "+form.name, func(t *testing.T) {
				dir := tree(t, map[string]string{"p": string(form.data)})
				p := testPatcher(t, Options{Host: c.host})
				r, err := p.Inspect(dir + "/p")
				if err != nil {
					t.Fatal(err)
				}
				runs := ""
				for _, s := range r.Slices {
					if s.Runs {
						runs += map[bool]string{true: s.CPU, false: s.Subtype}[s.Subtype == "all"]
					}
				}
				if r.Protected != c.protected || runs != c.runs {
					t.Errorf("protected %v, %q runs: %q", r.Protected, runs, r.Reasons)
				}
				got, err := p.Patch(t.Context(), dir+"/p")
				if c.copied == "" {
					if err == nil {
						t.Fatalf("a copy was made: %+v", got)
					}
					if strings.Contains(name, "arm64e") && !strings.Contains(err.Error(), "arm64e code runs only when Apple signed it") {
						t.Errorf("error: %v", err)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				if got.CPU != c.copied || got.Rosetta != c.rosetta || c.rosetta != strings.Contains(strings.Join(got.Notes, " "), "Rosetta") {
					t.Errorf("%+v", got)
				}
				if r, err := p.Inspect(got.Path); err != nil || r.Protected || len(r.Slices) != 1 || !r.Slices[0].Runs {
					t.Errorf("the copy: %+v, %v", r, err)
				}
			})
		}
	}
}
