package sip

import (
	"bytes"
	gomacho "debug/macho"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stead-dev/stead/internal/sip/fixture"
	"github.com/stead-dev/stead/internal/sip/macho"
)

var update = flag.Bool("update", false, "write the golden files anew")

// realProgram is a program that others made, and what is expected of it.
type realProgram struct {
	name, path string // path below the tools' directory, "" for one that Go's linker makes here
	protected  bool
	because    string // part of a reason; "" for no reason at all
	slices     []string
	entitled   map[string]bool // of the slice that runs
	onARM      string          // CPU of the copy for an arm64 host; "" where there can be none
	onIntel    string
}

var realPrograms = []realProgram{
	cmake("cmake"), cmake("ctest"), cmake("cpack"), cmake("ccmake"),
	{
		name: "ninja", path: "ninja/ninja-1.13.2.data/scripts/ninja",
		slices: []string{"x86_64 unsigned", "arm64 signed runs"}, onARM: "arm64", onIntel: "x86_64",
	},
	{
		name: "node", path: "node/package/bin/node", because: "its entitlements allow DYLD_ variables and foreign libraries",
		slices: []string{"arm64 signed hardened runs"}, onARM: "arm64",
		entitled: map[string]bool{
			allowDyld: true, disableLV: true, "com.apple.security.cs.allow-jit": true,
			"com.apple.security.cs.allow-unsigned-executable-memory": true, "com.apple.security.cs.disable-executable-page-protection": true,
			"com.apple.security.get-task-allow": true,
		},
	},
	{
		name: "esbuild-arm64", path: "esbuild-arm64/package/bin/esbuild",
		slices: []string{"arm64 signed runs"}, onARM: "arm64",
	},
	{
		name: "esbuild-x64", path: "esbuild-x64/package/bin/esbuild", because: "needs Rosetta",
		slices: []string{"x86_64 unsigned runs"}, onARM: "x86_64", onIntel: "x86_64",
	},
	{
		name: "libzmq.dylib", path: "pyzmq/zmq/.dylibs/libzmq.5.dylib", because: "not a program by itself (dynamic library)",
		slices: []string{"x86_64 signed", "arm64 signed runs"}, onARM: "arm64", onIntel: "x86_64",
	},
	{name: "go-arm64", slices: []string{"arm64 signed runs"}, onARM: "arm64"},
	{name: "go-amd64", because: "needs Rosetta", slices: []string{"x86_64 unsigned runs"}, onARM: "x86_64", onIntel: "x86_64"},
}

// cmake's programs let DYLD_ variables pass, but refuse a library that their maker did not sign.
func cmake(name string) realProgram {
	return realProgram{
		name: name, path: "cmake/cmake/data/bin/" + name, protected: true, because: "library validation without the entitlement " + disableLV,
		slices:   []string{"x86_64 signed hardened", "arm64 signed hardened runs"},
		entitled: map[string]bool{allowDyld: true}, onARM: "arm64", onIntel: "x86_64",
	}
}

// executable returns a path to the program at which it may be executed: wheels carry no modes.
func (r realProgram) executable(t testing.TB) string {
	t.Helper()
	if r.path == "" {
		return goProgram(t, strings.TrimPrefix(r.name, "go-"))
	}
	from, err := filepath.EvalSymlinks(filepath.Join(fixture.Tools(t), r.path))
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(from); err != nil {
		t.Fatal(err)
	} else if info.Mode().Perm()&0o100 != 0 {
		return from
	}
	to := filepath.Join(t.TempDir(), r.name)
	data, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, data, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	return to
}

// goProgram returns a program that Go's linker has made.
func goProgram(t testing.TB, arch string) string {
	t.Helper()
	dir := tree(t, map[string]string{"main.go": "package main\n\nfunc main() { println(1) }\n", "go.mod": "module example.org/x\n\ngo 1.26\n"})
	c := exec.Command("go", "build", "-o", "program")
	c.Dir = dir
	c.Env = append(os.Environ(), "GOOS=darwin", "GOARCH="+arch, "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return filepath.Join(dir, "program")
}

func TestRealProgramsAreInspectedAsExpected(t *testing.T) {
	p := testPatcher(t, Options{})
	for _, want := range realPrograms {
		t.Run(want.name, func(t *testing.T) {
			path := want.executable(t)
			r, err := p.Inspect(path)
			if err != nil {
				t.Fatal(err)
			}
			if r.Kind != KindMachO || r.Protected != want.protected {
				t.Errorf("kind %s, protected %v: %q", r.Kind, r.Protected, r.Reasons)
			}
			if all := strings.Join(r.Reasons, "\n"); !strings.Contains(all, want.because) || want.because == "" && all != "" {
				t.Errorf("reasons %q, want %q", all, want.because)
			}
			var slices []string
			entitled := map[string]bool(nil)
			for _, s := range r.Slices {
				w := s.CPU
				if s.Subtype != "all" {
					w += "/" + s.Subtype
				}
				for _, x := range []struct {
					is   bool
					word string
				}{{s.Signed, " signed"}, {!s.Signed, " unsigned"}, {s.Hardened, " hardened"}, {s.Runs, " runs"}} {
					if x.is {
						w += x.word
					}
				}
				slices = append(slices, w)
				for k, v := range s.Entitlements {
					if s.Runs {
						if entitled == nil {
							entitled = map[string]bool{}
						}
						entitled[k], _ = v.(bool)
					}
				}
			}
			if d := cmp.Diff(want.slices, slices); d != "" {
				t.Error(d)
			}
			if d := cmp.Diff(want.entitled, entitled); d != "" {
				t.Error(d)
			}
			if d := cmp.Diff([]string{path}, r.Chain); d != "" {
				t.Error(d)
			}
			checks, err := Verify(path)
			if err != nil {
				t.Fatal(err)
			}
			for i, c := range checks {
				if len(c.Problems) > 0 || c.Signed != r.Slices[i].Signed {
					t.Errorf("slice %v as it is distributed: %v", c.Arch, c.Problems)
				}
			}
		})
	}
}

// specimen is a copy to be made of a program.
type specimen struct {
	name string // of the program and of the CPU
	path string
	host macho.CPU
	cpu  string
}

// specimens are the copies of the real programs for both hosts, each slice once.
func specimens(t *testing.T) (out []specimen) {
	t.Helper()
	for _, r := range realPrograms {
		path := r.executable(t)
		if r.onARM != "" {
			out = append(out, specimen{r.name + "-" + r.onARM, path, macho.ARM64, r.onARM})
		}
		if r.onIntel != "" && r.onIntel != r.onARM {
			out = append(out, specimen{r.name + "-" + r.onIntel, path, macho.X86_64, r.onIntel})
		}
	}
	return out
}

func TestNoCopyIsMadeOfAProgramThatHasNoSliceForTheHost(t *testing.T) {
	for _, r := range realPrograms {
		if r.onIntel == "" {
			c, err := testPatcher(t, Options{Host: macho.X86_64}).Patch(t.Context(), r.executable(t))
			if err == nil || !strings.Contains(err.Error(), "no slice for x86_64; there is arm64") {
				t.Errorf("%s: %+v, %v", r.name, c, err)
			}
		}
	}
}

func TestACopyDiffersFromTheOriginalSliceOnlyWhereItMust(t *testing.T) {
	for _, s := range specimens(t) {
		t.Run(s.name, func(t *testing.T) {
			c, err := testPatcher(t, Options{Host: s.host}).Patch(t.Context(), s.path)
			if err != nil {
				t.Fatal(err)
			}
			if c.CPU != s.cpu {
				t.Errorf("the copy is for %s", c.CPU)
			}
			copied, err := os.ReadFile(c.Path)
			if err != nil {
				t.Fatal(err)
			}
			original := slice(t, s.path, c.CPU)
			for at := range copied {
				if (at >= len(original) || original[at] != copied[at]) && !declared(c.Changes, at) {
					t.Fatalf("byte %#x differs, which no change explains: %+v", at, c.Changes)
				}
			}
			// Where everything lies in them changes with Go, and with the length of a directory's name.
			floating := strings.HasPrefix(s.name, "go-") || strings.HasPrefix(s.name, "libzmq")
			var list strings.Builder
			if !floating {
				fmt.Fprintf(&list, "original slice %#x bytes, copy %#x\n", len(original), len(copied))
			}
			for _, ch := range c.Changes {
				if !floating {
					fmt.Fprintf(&list, "%#x to %#x: ", ch.From, ch.To)
				}
				fmt.Fprintln(&list, ch.Why)
			}
			golden(t, filepath.Join("testdata", "ranges", s.name), list.String())
		})
	}
}

func declared(changes []Change, at int) bool {
	for _, c := range changes {
		if uint64(at) >= c.From && uint64(at) < c.To {
			return true
		}
	}
	return false
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Error(d)
	}
}

// slice returns the bytes of a slice, found by the standard library.
func slice(t *testing.T, path, cpu string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := gomacho.NewFatFile(bytes.NewReader(data))
	if err != nil {
		return data // thin
	}
	want := map[string]gomacho.Cpu{"arm64": gomacho.CpuArm64, "x86_64": gomacho.CpuAmd64}[cpu]
	for _, a := range f.Arches {
		if a.Cpu == want {
			return data[a.Offset : a.Offset+a.Size]
		}
	}
	t.Fatalf("%s has no slice %s", path, cpu)
	return nil
}

// lief's view of a signature: it finds it, this script reads it with Python's own means and
// hashes the pages with hashlib.
const liefScript = `
import hashlib, json, lief, struct, sys
out = []
for path in sys.argv[1:]:
    fat = lief.MachO.parse(path)
    assert fat is not None and fat.size == 1, path
    b = fat.at(0)
    ok, why = lief.MachO.check_layout(b)
    data = open(path, "rb").read()
    cs = b.code_signature
    sig = data[cs.data_offset:cs.data_offset + cs.data_size]
    assert bytes(cs.content) == sig
    magic, length, count = struct.unpack(">III", sig[:12])
    assert magic == 0xfade0cc0 and length <= len(sig), hex(magic)
    blobs = dict(struct.unpack(">II", sig[12 + 8*i:20 + 8*i]) for i in range(count))
    cd = sig[blobs[0]:]
    (magic, length, version, flags, hash_offset, ident, special, slots, limit) = struct.unpack(">9I", cd[:36])
    size, kind, platform, bits = cd[36:40]
    assert magic == 0xfade0c02 and kind == 2 and size == 32
    page = 1 << bits
    assert slots == (limit + page - 1) // page
    bad = [i for i in range(slots)
           if hashlib.sha256(data[i*page:min((i+1)*page, limit)]).digest() != cd[hash_offset + 32*i:hash_offset + 32*(i+1)]]
    req = sig[blobs[2]:blobs[2] + 12]
    req_ok = hashlib.sha256(req).digest() == cd[hash_offset - 64:hash_offset - 32]
    text = b.get_segment("__TEXT")
    base, seglimit, segflags = struct.unpack(">QQQ", cd[64:88])
    out.append(dict(
        layout=bool(ok), why=str(why), flags=flags, version=version, slots=sorted(blobs), limit_is_signature=limit == cs.data_offset,
        ends=cs.data_offset + cs.data_size == len(data), bad_pages=bad, requirements=req_ok, platform=platform,
        exec_segment=(base, seglimit) == (text.file_offset, text.file_size), exec_flags=segflags,
        linkedit_ends=b.get_segment("__LINKEDIT").file_offset + b.get_segment("__LINKEDIT").file_size == len(data),
        cpu=str(b.header.cpu_type).split(".")[-1], restrict=b.get_segment("__RESTRICT") is not None,
        rpaths=[str(r.path) for r in b.rpaths], entitlements=5 in blobs or 7 in blobs))
json.dump(out, sys.stdout)
`

type liefView struct {
	Layout           bool
	Why              string
	Flags, Version   uint32
	Slots            []uint32
	LimitIsSignature bool `json:"limit_is_signature"`
	Ends             bool
	BadPages         []int `json:"bad_pages"`
	Requirements     bool
	Platform         int
	ExecSegment      bool `json:"exec_segment"`
	ExecFlags        int  `json:"exec_flags"`
	LinkeditEnds     bool `json:"linkedit_ends"`
	CPU              string
	Restrict         bool
	Rpaths           []string
	Entitlements     bool
}

func lief(t *testing.T, paths ...string) []liefView {
	t.Helper()
	c := exec.Command(filepath.Join(fixture.Tools(t), "venv/bin/python"), append([]string{"-c", liefScript}, paths...)...)
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		t.Fatalf("lief: %v\n%s", err, stderr.String())
	}
	var v []liefView
	if err := json.Unmarshal(out, &v); err != nil || len(v) != len(paths) {
		t.Fatalf("lief: %d answers, %v", len(v), err)
	}
	return v
}

func TestIndependentReadersAcceptEveryCopy(t *testing.T) {
	all := specimens(t)
	for name, path := range linked(t) {
		cpu := strings.TrimPrefix(name, "linked ")
		host := macho.ARM64
		if cpu == "fat" {
			cpu = "arm64"
		} else if cpu == "x86_64" {
			host = macho.X86_64
		}
		all = append(all, specimen{name, path, host, cpu})
	}
	var paths []string
	for _, s := range all {
		c, err := testPatcher(t, Options{Host: s.host}).Patch(t.Context(), s.path)
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, c.Path)
	}
	for i, got := range lief(t, paths...) {
		why := got.Why
		got.Why, got.Rpaths = "", nil
		want := liefView{
			Layout: true, Flags: 2, Version: 0x20400, Slots: []uint32{0, 2, 0x10000}, LimitIsSignature: true, Ends: true, BadPages: []int{},
			Requirements: true, ExecSegment: true, ExecFlags: 1, LinkeditEnds: true, CPU: strings.ToUpper(all[i].cpu),
		}
		if strings.Contains(all[i].name, "dylib") {
			want.ExecFlags = 0
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("lief, %s: %s\n%s", all[i].name, d, why)
		}
	}
	for i, path := range paths {
		s := all[i]
		checks, err := Verify(path)
		if err != nil || len(checks) != 1 || !checks[0].Signed || checks[0].Problems != nil || checks[0].Pages == 0 {
			t.Errorf("our own reader, %s: %+v, %v", s.name, checks, err)
		}
		if !bytes.Equal(codeOf(t, slice(t, s.path, s.cpu)), codeOf(t, slice(t, path, s.cpu))) {
			t.Errorf("debug/macho, %s: another __text", s.name)
		}
		before, after := objdump(t, s.path, s.cpu), objdump(t, path, s.cpu)
		if n := strings.Count(after, "cmd LC_CODE_SIGNATURE"); n != 1 {
			t.Errorf("llvm-objdump, %s: %d LC_CODE_SIGNATURE", s.name, n)
		}
		// What it finds odd in an original (Go's zero-filled sections) may stay.
		for _, odd := range []string{"past end of file", "Inconsistent", "incorrect"} {
			if strings.Count(after, odd) > strings.Count(before, odd) {
				t.Errorf("llvm-objdump, %s: %s\n%s", s.name, odd, after)
			}
		}
	}
}

func objdump(t *testing.T, path, cpu string) string {
	t.Helper()
	var stderr bytes.Buffer
	c := exec.Command("llvm-objdump-16", "--macho", "--private-headers", "--rpaths", "--dylibs-used", "--arch="+cpu, path)
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil || stderr.Len() > 0 {
		t.Errorf("llvm-objdump %s: %v\n%s", path, err, stderr.String())
	}
	return string(out)
}

// codeOf returns the section __text, as the standard library reads it.
func codeOf(t *testing.T, data []byte) []byte {
	t.Helper()
	f, err := gomacho.NewFile(bytes.NewReader(data))
	if err != nil {
		t.Fatalf("debug/macho: %v", err)
	}
	b, err := f.Section("__text").Data()
	if err != nil || len(b) == 0 {
		t.Fatalf("debug/macho: %d bytes of code, %v", len(b), err)
	}
	return b
}

// linked are programs that LLVM makes on the spot, for what the registries' do not have.
func linked(t *testing.T) map[string]string {
	t.Helper()
	dir := t.TempDir()
	put := func(name, s string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(s), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	run := func(name string, args ...string) {
		t.Helper()
		c := exec.Command(name, args...)
		c.Dir = dir
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
	}
	put("libSystem.tbd", "--- !tapi-tbd\ntbd-version: 4\ntargets: [ x86_64-macos, arm64-macos ]\ninstall-name: '/usr/lib/libSystem.B.dylib'\nexports:\n"+
		"  - targets: [ x86_64-macos, arm64-macos ]\n    symbols: [ dyld_stub_binder, _puts ]\n...\n")
	put("restrict.c", "int puts(const char *); __attribute__((section(\"__RESTRICT,__restrict\"))) int r = 1; int main(void) { return puts(\"x\"); }\n")
	put("Info.plist", "<plist><dict><key>CFBundleIdentifier</key><string>org.example.x</string></dict></plist>\n")
	out := map[string]string{}
	for _, cpu := range []string{"arm64", "x86_64"} {
		run("clang-16", "-target", cpu+"-apple-macos11", "-c", "restrict.c", "-o", cpu+".o")
		run("ld64.lld-16", "-arch", cpu, "-platform_version", "macos", "11.0", "11.0", "-e", "_main", "-headerpad", "0x400",
			"-rpath", "@executable_path/../lib", "-rpath", "@loader_path", "-sectcreate", "__TEXT", "__info_plist", "Info.plist", cpu+".o", "libSystem.tbd", "-o", cpu)
		out["linked "+cpu] = filepath.Join(dir, cpu)
	}
	run("llvm-lipo-16", "-create", "arm64", "x86_64", "-output", "fat")
	out["linked fat"] = filepath.Join(dir, "fat")
	return out
}

func TestACopyOfALinkedProgramKeepsItsRpathsAndLosesItsRestriction(t *testing.T) {
	p := testPatcher(t, Options{})
	for name, path := range linked(t) {
		before, err := p.Inspect(path)
		if err != nil {
			t.Fatal(err)
		}
		if !before.Protected || !strings.Contains(strings.Join(before.Reasons, "\n"), "__RESTRICT") {
			t.Errorf("%s: protected %v, %q", name, before.Protected, before.Reasons)
		}
		c, err := p.Patch(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		if c.Notes != nil && !c.Rosetta {
			t.Errorf("%s: %q", name, c.Notes)
		}
		v := lief(t, c.Path)[0]
		dir, err := filepath.EvalSymlinks(filepath.Dir(path))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff([]string{dir + "/../lib", dir}, v.Rpaths); d != "" || v.Restrict {
			t.Errorf("%s: restrict %v, rpaths %s", name, v.Restrict, d)
		}
		after, err := p.Inspect(c.Path)
		if err != nil || after.Protected {
			t.Errorf("%s: the copy is protected: %+v, %v", name, after, err)
		}
	}
}
