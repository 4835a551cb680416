package sip

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/stead-dev/stead/internal/fault"
	"github.com/stead-dev/stead/internal/sip/codesign"
	"github.com/stead-dev/stead/internal/sip/macho"
	"github.com/stead-dev/stead/internal/sip/mapped"
	"github.com/stead-dev/stead/internal/sip/shebang"
)

// Kind is what a file is.
type Kind string

const (
	KindMachO  Kind = "macho"  // an executable of macOS, for one or several CPUs
	KindScript Kind = "script" // begins with #!
	KindOther  Kind = "other"  // neither: what execve refuses and a shell may take for a script
)

const (
	maxChain    = 16              // scripts that lead to scripts
	defaultPath = "/usr/bin:/bin" // execvp's of macOS where PATH is not set
)

// finding is what was found out about a file of a chain, and about the files that it leads to.
// Exactly one of the kinds' fields is set.
type finding struct {
	path string // absolute, as it was asked for
	real string // symlinks resolved
	info os.FileInfo
	kind Kind

	protected bool // by itself
	reasons   []string

	archs []arch // KindMachO; valid while the file is mapped only, see look
	runs  *arch

	line    shebang.Line // KindScript
	lineErr error
	interp  *finding
	env     *shebang.Env // set where interp is env
	command *finding     // what env runs
	missing []string     // links of the chain that are not there, and why

	slices []SliceReport
}

// where is the world in which names of a chain are looked up.
type where struct {
	dir    string
	lookup func(string) (string, bool)
}

func (p *Patcher) where() where {
	return where{p.o.Dir, func(name string) (string, bool) {
		for i := len(p.o.Env) - 1; i >= 0; i-- {
			if v, ok := strings.CutPrefix(p.o.Env[i], name+"="); ok {
				return v, true
			}
		}
		return "", false
	}}
}

// look finds out about the file at path and all that it leads to. above are the files that led
// here.
func (p *Patcher) look(path string, w where, above []string) (*finding, error) {
	if !filepath.IsAbs(path) {
		path = filepath.Join(w.dir, path)
	}
	f := &finding{path: filepath.Clean(path), kind: KindOther}
	var err error
	if f.real, err = filepath.EvalSymlinks(f.path); err != nil {
		if pe := (*fs.PathError)(nil); errors.As(err, &pe) && pe.Path == f.path {
			err = pe.Err // lstat is not what anybody asked for
		}
		return nil, fmt.Errorf("%s: %w", f.path, err)
	}
	if f.info, err = os.Stat(f.real); err != nil {
		return nil, err
	}
	switch mode := f.info.Mode(); {
	case mode.IsDir():
		f.say("a directory")
		return f, nil
	case !mode.IsRegular():
		f.say("not a regular file (%v)", mode)
		return f, nil
	case f.info.Size() == 0:
		f.say("an empty file")
		return f, nil
	}
	m, err := mapped.Open(f.real)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	err2 := m.Guard(func() { err = f.classify(m.Data) })
	if err = errors.Join(err2, err); err != nil {
		return nil, fmt.Errorf("%s: %w", f.path, damaged(err))
	}
	p.restrictions(f)
	if f.kind == KindMachO {
		// The verdict is text by now; the slices' bytes go with the mapping.
		if err := m.Guard(func() { f.judge(p.o.Host) }); err != nil {
			return nil, err
		}
		f.archs, f.runs = nil, nil
	}
	if f.kind == KindScript {
		p.follow(f, w, append(above[:len(above):len(above)], f.real))
	}
	if f.info.Mode().Perm()&0o111 == 0 {
		f.say("not executable (%v)", f.info.Mode().Perm())
		f.protected = false
	}
	return f, nil
}

// damaged adds advice to the error of a file that breaks its format.
func damaged(err error) error {
	if f := (*macho.FormatError)(nil); errors.As(err, &f) {
		return fault.With(err, "the file is cut or damaged, a Mac would not run it either: install it anew")
	}
	return err
}

func (f *finding) say(format string, args ...any) {
	f.reasons = append(f.reasons, fmt.Sprintf(format, args...))
}

// classify reads what the bytes say.
func (f *finding) classify(data []byte) (err error) {
	f.line, f.lineErr = shebang.Parse(data[:min(len(data), shebang.MaxLine+1)])
	switch {
	case macho.Sniff(data):
		f.kind = KindMachO
		f.archs, err = readArchs(data)
	case f.lineErr != shebang.ErrNone:
		f.kind = KindScript
	default:
		f.say("neither Mach-O nor a script with #!")
	}
	return err
}

// restrictions adds what the file's flags and mode say.
func (p *Patcher) restrictions(f *finding) {
	if f.kind == KindScript {
		return // the kernel goes by the interpreter's
	}
	switch restricted, err := p.o.Flags.Restricted(f.real); {
	case restricted:
		f.protected = true
		f.say("restricted by its file flag (SF_RESTRICTED)")
	case err != nil:
		if d := hinted(f.real); d != "" {
			f.say("in %s, which macOS protects (its file flag cannot be read here)", d)
		}
	}
	if f.kind == KindMachO && f.info.Mode()&(fs.ModeSetuid|fs.ModeSetgid) != 0 {
		f.protected = true
		f.say("setuid or setgid")
	}
}

// judge adds what the slice that would run says, and makes the report of all slices.
func (f *finding) judge(host macho.CPU) {
	f.runs = choose(f.archs, host, false)
	for i := range f.archs {
		a := &f.archs[i]
		f.slices = append(f.slices, SliceReport{
			CPU: a.CPU.String(), Subtype: a.SubtypeName(), Signed: a.sig != nil, Hardened: a.flags()&codesign.FlagRuntime != 0,
			Entitlements: a.entitlements(), Runs: a == f.runs,
		})
	}
	if f.runs == nil {
		var names []string
		arm64e := false
		for _, a := range f.archs {
			names = append(names, a.String())
			arm64e = arm64e || a.IsARM64E()
		}
		f.say("no slice for %v that runs on a Mac (%s)", host, strings.Join(names, ", "))
		if arm64e {
			f.say("arm64e code runs only when Apple signed it")
		}
		return
	}
	protected, reasons := judge(f.runs)
	f.protected = f.protected || protected
	f.reasons = append(f.reasons, reasons...)
	if f.runs.image.Type != macho.Execute {
		f.say("not a program by itself (%v)", f.runs.image.Type)
		f.protected = false
	}
	if f.runs.CPU != host {
		f.say("%v code needs Rosetta on %v", f.runs.CPU, host)
	}
}

// follow finds the programs that a script leads to.
func (p *Patcher) follow(f *finding, w where, above []string) {
	if f.lineErr != nil {
		f.say("cannot be executed: %v", f.lineErr)
		f.missing = append(f.missing, f.lineErr.Error())
		return
	}
	if f.line.CRLF {
		f.say("its first line ends in CRLF; the carriage return is part of the last word")
	}
	f.interp = p.link(f, "interpreter", f.line.Interp, w, above)
	if f.interp == nil {
		return
	}
	if f.interp.kind == KindScript {
		f.say("its interpreter %s is a script: the kernel of macOS refuses that, a shell runs it", f.interp.path)
	}
	if filepath.Base(f.interp.path) != "env" && filepath.Base(f.interp.real) != "env" {
		return
	}
	e, err := shebang.ParseEnv(f.line.Args, func(n string) string { v, _ := w.lookup(n); return v })
	if err != nil {
		f.say("%v", err)
		f.missing = append(f.missing, err.Error())
		return
	}
	f.env = &e
	inner := where{dir: w.dir, lookup: func(n string) (string, bool) { return e.Apply(n, w.lookup) }}
	if e.Dir != "" {
		inner.dir = e.Dir
		if !filepath.IsAbs(e.Dir) {
			inner.dir = filepath.Join(w.dir, e.Dir)
		}
	}
	command, err := inner.find(e.Command, e.AltPath)
	if err != nil {
		f.say("%v", err)
		f.missing = append(f.missing, err.Error())
		return
	}
	f.command = p.link(f, "command of env", command, inner, above)
}

// link looks at a file that f leads to.
func (p *Patcher) link(f *finding, what, path string, w where, above []string) *finding {
	gone := func(why any) *finding {
		s := fmt.Sprintf("%s %s: %v", what, strings.ReplaceAll(path, "\r", `\r`), why)
		f.reasons = append(f.reasons, s)
		f.missing = append(f.missing, s)
		return nil
	}
	if len(above) >= maxChain {
		return gone("too many scripts that lead to scripts")
	}
	abs := path
	if !filepath.IsAbs(abs) {
		abs = filepath.Join(w.dir, abs)
	}
	if real, err := filepath.EvalSymlinks(abs); err == nil {
		for _, a := range above {
			if a == real {
				return gone("a cycle")
			}
		}
	}
	g, err := p.look(abs, w, above)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return gone("not there")
	case err != nil:
		return gone(err)
	case g.info.IsDir() || g.info.Mode().Perm()&0o111 == 0:
		return gone("not executable")
	}
	return g
}

// find looks a command up as execvp does: in alt where that is given, else in PATH.
func (w where) find(name, alt string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	path, ok := alt, alt != ""
	if !ok {
		if path, ok = w.lookup("PATH"); !ok {
			path = defaultPath
		}
	}
	for _, d := range filepath.SplitList(path) {
		if !filepath.IsAbs(d) {
			d = filepath.Join(w.dir, d)
		}
		c := filepath.Join(d, name)
		if info, err := os.Stat(c); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0 {
			return c, nil
		}
	}
	return "", fmt.Errorf("command of env %s: not in PATH %s", strings.ReplaceAll(name, "\r", `\r`), path)
}
