package sip

import (
	"bytes"
	"encoding/json"
	"errors"
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

// world makes the files that the commands are tried on, and returns their directory.
func world(t *testing.T) string {
	t.Helper()
	dir := realDir(t)
	free := fixture.Program{Sign: &fixture.Signature{Flags: codesign.FlagAdhoc}}.Bytes()
	bad := bytes.Clone(free)
	bad[0x3fff] ^= 1
	for name, data := range map[string]string{
		"free": string(free), "bad": string(bad), "cut": string(free[:100]), "env": string(free),
		"unsigned-arm": string(fixture.Program{}.Bytes()), "unsigned-intel": string(fixture.Program{CPU: macho.X86_64}.Bytes()),
		"hard": string(fixture.Program{Loads: []fixture.Load{{Cmd: macho.LCRpath, Path: "@loader_path/lib"}}, Sign: &fixture.Signature{
			Flags: codesign.FlagRuntime, XML: fixture.XML("<key>com.apple.security.get-task-allow</key><true/>")}}.Bytes()),
		"script": "#!" + dir + "/env hard\nbody\n", "broken": "#!" + dir + "/nothing\n", "text": "hello\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// run runs stead with args in dir, where PATH begins, and returns what it said with dir left out.
func run(t *testing.T, dir string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	c := exec.Command(stead, args...)
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	c.Dir = dir
	c.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "XDG_CACHE_HOME="+dir+"/home")
	err := c.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	short := strings.NewReplacer(dir, "DIR")
	return short.Replace(out.String()), short.Replace(errs.String()), c.ProcessState.ExitCode()
}

func TestTheCommandsSayWhatTheyFindAndDo(t *testing.T) {
	dir := world(t)
	for _, c := range []struct {
		args           string
		stdout, stderr string
		code           int
	}{
		{"inspect free", "free: macho, not protected\n  slice arm64, signed, runs\n", "", 0},
		{"inspect hard", "hard: macho, protected\n  hardened runtime (CS_RUNTIME) without the entitlement com.apple.security.cs.allow-dyld-environment-variables\n" +
			"  slice arm64, signed, hardened, runs\n", "", 0},
		{"inspect unsigned-intel", "unsigned-intel: macho, not protected\n  x86_64 code needs Rosetta on arm64\n  slice x86_64, not signed, runs\n", "", 0},
		{"inspect script", "script: script, protected\n  DIR/hard: hardened runtime (CS_RUNTIME) without the entitlement com.apple.security.cs.allow-dyld-environment-variables\n" +
			"  chain: DIR/script -> DIR/env -> DIR/hard\n", "", 0},
		{"inspect broken", "broken: script, not protected\n  interpreter DIR/nothing: not there\n", "", 0},
		{"inspect cut free gone", "free: macho, not protected\n  slice arm64, signed, runs\n",
			"error: inspect DIR/cut: slice arm64: offset 0x14: load commands of 360 bytes in a slice of 100; inspect DIR/gone: no such file or directory\n" +
				"hint: the file is cut or damaged, a Mac would not run it either: install it anew\n", 125},
		{"inspect", "", "error: no file\nhint: stead sip inspect /usr/bin/env\n", 125},
		{"inspect -o yaml free", "", "error: --output yaml: no such format\nhint: --output text or json\n", 125},
		{"patch cut", "", "error: patch DIR/cut: slice arm64: offset 0x14: load commands of 360 bytes in a slice of 100\n" +
			"hint: the file is cut or damaged, a Mac would not run it either: install it anew\n", 125},
		{"patch broken", "", "error: patch DIR/broken: interpreter DIR/nothing: not there\nhint: stead sip inspect DIR/broken\n", 125},
		{"patch free hard", "", "error: 2 files, stead sip patch takes one\nhint: stead sip patch /usr/bin/env\n", 125},
		{"patch hard --output hard", "", "error: patch hard: the output is the file itself\nhint: give another name to --output\n", 125},
		{"patch hard --output copy", "DIR/copy\n", "", 0},
		{"patch unsigned-intel --output copy-intel", "DIR/copy-intel\n", "note: x86_64 code: it needs Rosetta (softwareupdate --install-rosetta)\n", 0},
		{"verify copy", "copy: slice arm64: 5 pages and all offsets are right\n", "", 0},
		{"verify copy-intel", "copy-intel: slice x86_64: 5 pages and all offsets are right\n", "", 0},
		{"inspect copy", "copy: macho, not protected\n  slice arm64, signed, runs\n", "", 0},
		{"verify unsigned-intel", "unsigned-intel: slice x86_64: not signed, and need not be\n", "", 0},
		{"verify unsigned-arm", "unsigned-arm: slice arm64: not signed\n",
			"error: verify unsigned-arm: slice arm64: not signed\nhint: make a signed copy: stead sip patch unsigned-arm\n", 125},
		{"verify bad", "bad: slice arm64: wrong\n", "error: verify bad: slice arm64: offset 0x3000: page 3: its SHA-256 is not that in the CodeDirectory of slot 0x0\n" +
			"hint: the file was changed after it was signed; make a new copy: stead sip patch bad\n", 125},
		{"verify text", "", "error: verify text: offset 0x0: magic 0x68656c6c, not a Mach-O file\nhint: stead sip inspect text\n", 125},
		{"clean --max-age 0s", "", "error: --max-age and --max-size are more than nothing\nhint: stead sip clean --all removes everything\n", 125},
		{"clean --all", "removed 0 (0.0 MiB), kept 0 (0.0 MiB)\n", "", 0},
		{"nothing", "", "error: unknown command \"nothing\" for \"stead sip\"\nhint: stead sip --help\n", 125},
	} {
		t.Run(c.args, func(t *testing.T) {
			stdout, stderr, code := run(t, dir, append([]string{"sip"}, strings.Fields(c.args)...)...)
			if d := cmp.Diff(c.stdout, stdout); d != "" {
				t.Errorf("stdout: %s", d)
			}
			if d := cmp.Diff(c.stderr, stderr); d != "" {
				t.Errorf("stderr: %s", d)
			}
			if code != c.code {
				t.Errorf("exit code %d", code)
			}
		})
	}
}

func TestTheReportInJSONHasTheFieldsThatOthersRead(t *testing.T) {
	dir := world(t)
	stdout, stderr, code := run(t, dir, "sip", "inspect", "script", "hard", "-o", "json")
	if code != 0 || stderr != "" {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	var got any
	if err := json.Unmarshal([]byte(stdout), &got); err != nil {
		t.Fatal(err)
	}
	const why = "hardened runtime (CS_RUNTIME) without the entitlement com.apple.security.cs.allow-dyld-environment-variables"
	want := []any{
		map[string]any{
			"path": "script", "kind": "script", "protected": true, "reasons": []any{"DIR/hard: " + why},
			"chain": []any{"DIR/script", "DIR/env", "DIR/hard"}, "slices": []any{},
		},
		map[string]any{
			"path": "hard", "kind": "macho", "protected": true, "reasons": []any{why}, "chain": []any{"DIR/hard"},
			"slices": []any{map[string]any{
				"cpu": "arm64", "subtype": "all", "signed": true, "hardened": true, "runs": true,
				"entitlements": map[string]any{"com.apple.security.get-task-allow": true},
			}},
		},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestACopyOfAScriptGoesToTheUsersCacheAndIsCleanedFromThere(t *testing.T) {
	dir := world(t)
	stdout, stderr, code := run(t, dir, "sip", "patch", "script")
	if code != 0 || stderr != "" || !strings.HasPrefix(stdout, "DIR/home/stead/sip/v") || !strings.HasSuffix(stdout, "DIR/script\n") {
		t.Fatalf("%s %s %d", stdout, stderr, code)
	}
	if out, _, _ := run(t, dir, "sip", "inspect", strings.ReplaceAll(strings.TrimSpace(stdout), "DIR", dir)); !strings.Contains(out, "script, not protected") {
		t.Error(out)
	}
	for _, want := range []string{"removed 0 (0.0 MiB), kept 2 (0.0 MiB)\n", "removed 2 (0.0 MiB), kept 0 (0.0 MiB)\n"} {
		args := []string{"sip", "clean"}
		if strings.HasPrefix(want, "removed 2") {
			args = append(args, "--all")
		}
		if out, stderr, code := run(t, dir, args...); out != want || code != 0 {
			t.Errorf("%s%s: %d, want %s", out, stderr, code, want)
		}
	}
	if left := files(t, dir+"/home"); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}
