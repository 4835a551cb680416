package codesign_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stead-dev/stead/internal/sip/codesign"
	"github.com/stead-dev/stead/internal/sip/fixture"
	"github.com/stead-dev/stead/internal/sip/macho"
)

func run(t *testing.T, dir string, env []string, name string, args ...string) {
	t.Helper()
	c := exec.Command(name, args...)
	c.Dir, c.Env = dir, append(os.Environ(), env...)
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func direct(fn func()) error { fn(); return nil }

// sameAs signs each slice of a file again, with the parameters of the signature that it has, and
// compares. It returns how many slices there are.
func sameAs(t *testing.T, path string, layout codesign.Layout, wantFlags uint32, blobs ...codesign.NewBlob) int {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := macho.Read(data)
	if err != nil {
		t.Fatal(err)
	}
	for i := range f.Slices {
		m, err := f.Slices[i].Image()
		if err != nil {
			t.Fatal(err)
		}
		theirs, err := codesign.Read(m)
		if err != nil {
			t.Fatal(err)
		}
		if theirs == nil {
			t.Fatalf("%s is not signed", path)
		}
		d := theirs.Directories[0]
		if d.Flags != wantFlags || d.Version != 0x20400 {
			t.Fatalf("flags %#x, version %#x: not the signer that this test knows", d.Flags, d.Version)
		}
		p := codesign.Params{
			Identifier: d.Identifier, Flags: d.Flags, CodeLimit: m.Signature.DataOff,
			ExecSegBase: m.Text.FileOff, ExecSegLimit: m.Text.FileSize, Blobs: blobs, Layout: layout,
		}
		if m.Type == macho.Execute {
			p.ExecSegFlags = codesign.ExecSegMain
		}
		s := m.Signature
		ours := encode(t, p, m.Data)
		want := m.Data[s.DataOff : s.DataOff+s.DataSize]
		if len(ours) > len(want) || !bytes.Equal(ours, want[:len(ours)]) {
			t.Fatalf("%s, %v: our signature is not theirs (ours %d bytes, theirs %d):\n%s", path, m.Arch, len(ours), len(want), cmp.Diff(want[:min(len(want), 256)], ours[:min(len(ours), 256)]))
		}
		// Linkers give a signature the bytes that it takes, codesign reserves more.
		if rest := want[len(ours):]; blobs == nil && len(rest) > 0 || !bytes.Equal(rest, make([]byte, len(rest))) {
			t.Errorf("%s, %v: theirs goes on for %d bytes", path, m.Arch, len(rest))
		}
		if bad := theirs.Verify(m); bad != nil {
			t.Errorf("%s, %v: %v", path, m.Arch, bad)
		}
	}
	return len(f.Slices)
}

// encode returns the signature of code up to the parameters' limit.
func encode(t *testing.T, p codesign.Params, code []byte) []byte {
	t.Helper()
	pages, err := codesign.HashPages(code[:p.CodeLimit], direct)
	if err != nil {
		t.Fatal(err)
	}
	b, err := p.Encode(pages)
	if err != nil {
		t.Fatal(err)
	}
	if p.Size() != len(b) {
		t.Errorf("Size says %d, the signature has %d bytes", p.Size(), len(b))
	}
	return b
}

// goPrograms are compiled by go build, whose linker signs what is for arm64.
var goPrograms = map[string]string{
	"tiny":      "package main\nfunc main() { println(1) }\n",
	"data":      "package main\nvar big = [100000]byte{1, 2, 3}\nvar bss [1 << 20]byte\nfunc main() { println(big[2], bss[7]) }\n",
	"maps-long": "package main\nfunc main() { m := map[string]int{}\nfor i := range 100 { m[string(rune(i))] = i }\ngo func() { println(len(m)) }()\nselect {} }\n",
}

func TestOurSignatureOfAGoProgramIsThatOfGosOwnLinker(t *testing.T) {
	for name, source := range goPrograms {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sameAs(t, goBuild(t, name, source, "arm64"), codesign.Layout{}, codesign.FlagAdhoc|codesign.FlagLinkerSigned)
		})
	}
}

// goBuild links a program for macOS and returns its path.
func goBuild(t *testing.T, name, source, arch string) string {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "main.go"), source)
	write(t, filepath.Join(dir, "go.mod"), "module example.org/"+name+"\n\ngo 1.26\n")
	run(t, dir, []string{"GOOS=darwin", "GOARCH=" + arch, "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off"}, "go", "build", "-o", name)
	return filepath.Join(dir, name)
}

// signer is a program around the linker's own package: it writes the signature of a file's bytes.
const signer = `package main

import (
	"os"
	"strconv"

	"example.org/signer/codesign"
)

func main() {
	data, err := os.Open(os.Args[1])
	if err != nil {
		panic(err)
	}
	n := func(i int) int64 { v, err := strconv.ParseInt(os.Args[i], 10, 64); if err != nil { panic(err) }; return v }
	out := make([]byte, codesign.Size(n(3), os.Args[2]))
	codesign.Sign(out, data, os.Args[2], n(3), n(4), n(5), true)
	os.Stdout.Write(out)
}
`

// Go's linker signs what is for arm64 only. What it would write for x86_64 its own package tells,
// taken out of the Go that runs this test.
func TestOurSignatureOfAGoProgramForIntelIsThatOfTheLinkersOwnPackage(t *testing.T) {
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(root)), "src/cmd/internal/codesign/codesign.go"))
	if err != nil {
		t.Fatal(err)
	}
	// Its one import that others may not have tells the size of a hash.
	text := strings.NewReplacer("\"cmd/internal/hash\"", "", "hash.Size32", "sha256.Size").Replace(string(theirs))
	dir := t.TempDir()
	write(t, filepath.Join(dir, "codesign/codesign.go"), text)
	write(t, filepath.Join(dir, "main.go"), signer)
	write(t, filepath.Join(dir, "go.mod"), "module example.org/signer\n\ngo 1.26\n")
	run(t, dir, []string{"CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off"}, "go", "build", "-o", "signer")
	for name, source := range goPrograms {
		t.Run(name, func(t *testing.T) {
			path := goBuild(t, name, source, "amd64")
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			m := image(t, data)
			if m.Signature != nil || m.CPU != macho.X86_64 {
				t.Fatalf("signature %+v of code for %v: not what this test is about", m.Signature, m.CPU)
			}
			p := codesign.Params{
				Identifier: "a.out", Flags: codesign.FlagAdhoc | codesign.FlagLinkerSigned, CodeLimit: uint64(len(data)),
				ExecSegBase: m.Text.FileOff, ExecSegLimit: m.Text.FileSize, ExecSegFlags: codesign.ExecSegMain,
			}
			want, err := exec.Command(filepath.Join(dir, "signer"), path, p.Identifier, fmt.Sprint(p.CodeLimit), fmt.Sprint(p.ExecSegBase), fmt.Sprint(p.ExecSegLimit)).Output()
			if err != nil {
				t.Fatal(err)
			}
			if ours := encode(t, p, data); len(want) < 1000 || !bytes.Equal(ours, want) {
				t.Errorf("our signature is not theirs (ours %d bytes, theirs %d)", len(ours), len(want))
			}
		})
	}
}

// What Apple's own tool writes: the libraries of this wheel were signed by `codesign -s -` when it
// was made on a Mac.
func TestOurSignatureIsThatOfApplesCodesign(t *testing.T) {
	dir := filepath.Join(fixture.Tools(t), "pyzmq/zmq")
	for _, name := range []string{".dylibs/libzmq.5.dylib", ".dylibs/libsodium.26.dylib", "backend/cython/_zmq.abi3.so"} {
		if n := sameAs(t, filepath.Join(dir, name), codesign.Layout{}, codesign.FlagAdhoc, codesign.AdhocBlobs()...); n != 2 {
			t.Errorf("%s has %d slices, not both CPUs", name, n)
		}
	}
}

const libSystem = `--- !tapi-tbd
tbd-version: 4
targets: [ x86_64-macos, arm64-macos ]
install-name: '/usr/lib/libSystem.B.dylib'
exports:
  - targets: [ x86_64-macos, arm64-macos ]
    symbols: [ dyld_stub_binder, _puts, _getenv, _malloc ]
...
`

var cPrograms = []struct{ name, source string }{
	{"one", "int puts(const char *); int main(void) { return puts(\"one\"); }\n"},
	{"data", "char *getenv(const char *); int big[200000] = {1}; int main(void) { return big[getenv(\"X\") != 0]; }\n"},
	// 15 bytes of name: with its NUL the hashes' alignment is met without padding.
	{"a-name-of-15-by", "void *malloc(unsigned long); static char zero[1 << 20]; int main(int c, char **v) { return malloc(c) == zero + c; }\n"},
}

func TestOurSignatureOfACProgramIsThatOfLLD(t *testing.T) {
	fixture.Tools(t)
	for _, cpu := range []string{"arm64", "x86_64"} {
		dir := t.TempDir()
		write(t, filepath.Join(dir, "libSystem.tbd"), libSystem)
		for _, p := range cPrograms {
			t.Run(cpu+" "+p.name, func(t *testing.T) {
				link(t, dir, cpu, p.name, p.source, "-e", "_main")
				sameAs(t, filepath.Join(dir, p.name), codesign.LLD, codesign.FlagAdhoc|codesign.FlagLinkerSigned)
			})
		}
		t.Run(cpu+" dylib", func(t *testing.T) {
			link(t, dir, cpu, "lib.dylib", "int answer(void) { return 42; }\n", "-dylib", "-install_name", "@rpath/lib.dylib")
			sameAs(t, filepath.Join(dir, "lib.dylib"), codesign.LLD, codesign.FlagAdhoc|codesign.FlagLinkerSigned)
		})
	}
}

func link(t *testing.T, dir, cpu, name, source string, args ...string) {
	t.Helper()
	write(t, filepath.Join(dir, name+".c"), source)
	run(t, dir, nil, "clang-16", "-target", cpu+"-apple-macos11", "-O1", "-c", name+".c", "-o", name+".o")
	run(t, dir, nil, "ld64.lld-16", append([]string{
		"-arch", cpu, "-platform_version", "macos", "11.0", "11.0", "-adhoc_codesign",
		name + ".o", "libSystem.tbd", "-o", name}, args...)...)
}

func TestASignatureHasThePartsThatCodesignWrites(t *testing.T) {
	p := codesign.Params{Identifier: "x", Flags: codesign.FlagAdhoc, CodeLimit: 5000, Blobs: codesign.AdhocBlobs()}
	pages, _ := codesign.HashPages(make([]byte, 5000), direct)
	b, err := p.Encode(pages)
	if err != nil {
		t.Fatal(err)
	}
	s, err := codesign.Parse(b, 0)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, b := range s.Blobs {
		got = append(got, fmt.Sprintf("slot %#x %#x %d bytes", b.Slot, b.Magic, len(b.Data)))
	}
	want := []string{"slot 0x0 0xfade0c02 218 bytes", "slot 0x2 0xfade0c01 12 bytes", "slot 0x10000 0xfade0b01 8 bytes"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if d := s.Directories[0]; d.Special != 2 || d.Code != 2 || d.Version != 0x20400 || d.HashType != codesign.SHA256 {
		t.Errorf("%+v", d)
	}
	if _, err := p.Encode(pages[:1]); err == nil {
		t.Error("a signature of two pages was made of one hash")
	}
}
