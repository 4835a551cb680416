package sip

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/stead-dev/stead/internal/fault"
	"github.com/stead-dev/stead/internal/sip/codesign"
	"github.com/stead-dev/stead/internal/sip/macho"
	"github.com/stead-dev/stead/internal/sip/mapped"
	"github.com/stead-dev/stead/internal/sip/shebang"
)

var (
	errARM64E = errors.New("arm64e code runs only when Apple signed it, so a copy of it cannot run")
	errNoRoom = errors.New("no room for LC_CODE_SIGNATURE")
)

// Copy is a runnable copy, or the original where none is needed.
type Copy struct {
	Path     string   // what to execute
	Original string   // what it is a copy of, absolute
	Kind     Kind     // KindOther where the original is used as it is
	CPU      string   // of a Mach-O copy
	Rosetta  bool     // x86_64 code for an arm64 host
	Cached   bool     // it was there before
	Notes    []string // what the user should know
	Changes  []Change // of a Mach-O copy: all bytes that differ from the original slice
}

// Runnable returns what to execute in place of path: a copy where path, or what it leads to, is
// protected and the lists allow it, else path itself.
func (p *Patcher) Runnable(ctx context.Context, path string) (*Copy, error) {
	f, err := p.look(path, p.where(), nil)
	if err != nil {
		return nil, fmt.Errorf("patch %w", err)
	}
	if len(p.o.Only) > 0 {
		only := false
		f.walk(func(g *finding) { only = only || wanted(p.o.Only, g.path, g.real) })
		if !only {
			return asItIs(f), nil
		}
	}
	return p.runnable(ctx, f)
}

// runnable is Runnable for a file of a chain.
func (p *Patcher) runnable(ctx context.Context, f *finding) (*Copy, error) {
	if !f.needsCopy() || wanted(p.o.Skip, f.path, f.real) {
		return asItIs(f), nil
	}
	return p.copyOf(ctx, f, "")
}

func asItIs(f *finding) *Copy { return &Copy{Path: f.path, Original: f.path, Kind: KindOther} }

// Patch makes a copy of a program or script, whether it is protected or not, and returns it. Of a
// script's chain it copies what is protected.
func (p *Patcher) Patch(ctx context.Context, path string) (*Copy, error) {
	return p.PatchTo(ctx, path, "")
}

// PatchTo is Patch with a place for the copy outside the cache; "" is the cache.
func (p *Patcher) PatchTo(ctx context.Context, path, output string) (*Copy, error) {
	f, err := p.look(path, p.where(), nil)
	if err != nil {
		return nil, fmt.Errorf("patch %w", err)
	}
	if output != "" {
		if output, err = filepath.Abs(output); err != nil {
			return nil, fmt.Errorf("patch %s: %w", path, err)
		}
		if real, err := filepath.EvalSymlinks(output); err == nil && real == f.real {
			return nil, fault.With(fmt.Errorf("patch %s: the output is the file itself", path), "give another name to --output")
		}
	}
	return p.copyOf(ctx, f, output)
}

func (p *Patcher) copyOf(ctx context.Context, f *finding, output string) (*Copy, error) {
	var c *Copy
	var err error
	switch f.kind {
	case KindMachO:
		// The file may be replaced while it is being read (a package manager at work).
		for range 3 {
			if c, err = p.copyMachO(ctx, f, output); !errors.Is(err, mapped.ErrChanged) {
				break
			}
		}
	case KindScript:
		c, err = p.copyScript(ctx, f, output)
	default:
		err = fault.With(errors.New(strings.Join(f.reasons, "; ")), "stead sip inspect "+f.path)
	}
	if err != nil {
		return nil, fmt.Errorf("patch %s: %w", f.path, err)
	}
	if f.info.Mode()&(fs.ModeSetuid|fs.ModeSetgid) != 0 {
		c.Notes = append(c.Notes, "the copy is not setuid or setgid: it runs with your rights")
	}
	return c, nil
}

func (p *Patcher) copyMachO(ctx context.Context, f *finding, output string) (*Copy, error) {
	m, err := mapped.Open(f.real)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	var (
		a *arch
		e *edit
	)
	guardErr := m.Guard(func() { a, e, err = p.plan(m.Data, f) })
	if err = errors.Join(guardErr, err); err != nil {
		return nil, err
	}
	pages, err := codesign.HashPages(a.image.Data, m.Guard)
	if err != nil {
		return nil, err
	}
	mode := m.Info.Mode().Perm()
	c := &Copy{
		Original: f.path, Kind: KindMachO, CPU: a.Arch.String(), Rosetta: a.CPU != p.o.Host,
		Notes: e.notes, Changes: e.changes,
	}
	if c.Rosetta {
		c.Notes = append(c.Notes, fmt.Sprintf("%v code: it needs Rosetta (softwareupdate --install-rosetta)", a.CPU))
	}
	write := func(w *os.File) error {
		if err := e.write(w, a.image.Data, pages, m.Guard); err != nil {
			return err
		}
		return unchanged(m)
	}
	if output != "" {
		c.Path = output
		return c, writeBeside(ctx, output, mode, write)
	}
	c.Path, c.Cached, err = p.store.get(ctx, e.key(pages, uint64(len(a.image.Data)), mode), f.path, mode, write)
	if err == nil && !c.Cached {
		if _, err := p.Clean(ctx, Limits{}); err != nil {
			c.Notes = append(c.Notes, err.Error()) // the copy is there all the same
		}
	}
	return c, err
}

// plan reads a file and decides on its copy.
func (p *Patcher) plan(data []byte, f *finding) (*arch, *edit, error) {
	archs, err := readArchs(data)
	if err != nil {
		return nil, nil, err
	}
	a := choose(archs, p.o.Host, true)
	if a == nil {
		err := fmt.Errorf("no slice for %v", p.o.Host)
		for _, x := range archs {
			if x.IsARM64E() {
				return nil, nil, fault.With(errARM64E, "run another build of this program, one for plain arm64 (Homebrew's, for example)")
			}
			err = fmt.Errorf("%w; there is %v", err, x.Arch)
		}
		return nil, nil, err
	}
	e, err := planEdit(a, filepath.Dir(f.real), filepath.Base(f.real))
	if errors.Is(err, errNoRoom) {
		err = fault.With(err, "link it with -headerpad 0x100, or sign it: codesign -s - "+f.path)
	}
	return a, e, err
}

// key is a hash of all that decides the bytes and the mode of a copy, but for its path: the
// original's pages, what is put in place of its head, and this patcher's version.
func (e *edit) key(pages []codesign.Hash, size uint64, mode os.FileMode) string {
	h := sha256.New()
	fmt.Fprintf(h, "stead sip %d macho %d %o %q\n", Version, size, mode, e.params.Identifier)
	binary.Write(h, binary.LittleEndian, uint64(len(e.head)))
	h.Write(e.head)
	for i := range pages {
		h.Write(pages[i][:])
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// write writes the copy of the slice data, whose pages had these hashes when the copy was named by
// them. It signs the bytes that it writes, and fails where they are not those of then.
func (e *edit) write(w io.Writer, data []byte, pages []codesign.Hash, guard func(func()) error) error {
	const pageSize = codesign.PageSize
	limit, head := e.params.CodeLimit, uint64(len(e.head))
	sums := make([]codesign.Hash, (limit+pageSize-1)/pageSize)
	buf := make([]byte, 256*pageSize)
	for at := uint64(0); at < limit; at += uint64(len(buf)) {
		b := buf[:min(uint64(len(buf)), limit-at)]
		if err := guard(func() { clear(b[copy(b, data[min(at, e.copied):e.copied]):]) }); err != nil {
			return err
		}
		copy(b, e.head[min(at, head):])
		for i := 0; i < len(b); i += pageSize {
			from := at + uint64(i)
			n := from / pageSize
			sums[n] = sha256.Sum256(b[i:min(i+pageSize, len(b))])
			if original := from >= head && from+pageSize <= e.copied; original && sums[n] != pages[n] {
				return mapped.ErrChanged
			}
		}
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
	sig, err := e.params.Encode(sums)
	if err != nil {
		return err
	}
	_, err = w.Write(append(sig, make([]byte, e.size-limit-uint64(len(sig)))...))
	return err
}

// writeBeside writes a file by way of a hidden one in the same directory, which is its own lock:
// what a killed process left there is written over by the next.
func writeBeside(ctx context.Context, path string, mode os.FileMode, write func(*os.File) error) error {
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".patching")
	unlock, err := lock(ctx, tmp, true)
	if err != nil {
		return noRoom(fmt.Errorf("write copy: %w", err))
	}
	defer unlock()
	return noRoom(writeAtomic(tmp, path, mode, write))
}

// copyScript makes a copy of a script whose first line leads to copies.
func (p *Patcher) copyScript(ctx context.Context, f *finding, output string) (*Copy, error) {
	if len(f.missing) > 0 {
		return nil, fault.With(errors.New(strings.Join(f.missing, "; ")), "stead sip inspect "+f.path)
	}
	c := &Copy{Original: f.path, Kind: KindScript}
	interp, err := p.runnable(ctx, f.interp)
	if err != nil {
		return nil, err
	}
	c.Notes = append(c.Notes, interp.Notes...)
	var command *Copy
	if f.command != nil {
		if command, err = p.runnable(ctx, f.command); err != nil {
			return nil, err
		}
		c.Notes = append(c.Notes, command.Notes...)
	}
	line, err := firstLine(f, interp, command)
	if err != nil {
		return nil, err
	}
	m, err := mapped.Open(f.real)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	mode := m.Info.Mode().Perm()
	key, err := scriptKey(m, f, mode, line)
	if err != nil {
		return nil, err
	}
	write := func(w *os.File) error {
		if _, err := w.WriteString(line); err != nil {
			return err
		}
		_, err := w.Write(m.Data[f.line.Len:])
		return errors.Join(err, unchanged(m))
	}
	if output != "" {
		c.Path = output
		return c, writeBeside(ctx, output, mode, write)
	}
	c.Path, c.Cached, err = p.store.get(ctx, key, f.path, mode, write)
	return c, err
}

// firstLine returns the first line of a script's copy, where its interpreter, and the command of
// env if it has one, are run by these.
func firstLine(f *finding, interp, command *Copy) (string, error) {
	words := f.line.Words()
	if interp.Path != f.interp.path || !filepath.IsAbs(words[0]) {
		words[0] = interp.Path
	}
	if command != nil && command.Path != f.command.path {
		if f.env.Word < 0 {
			err := fmt.Errorf("the command of env stands in a -S that cannot be rewritten: %s", strings.Join(f.line.Words(), " "))
			return "", fault.With(err, "write the command without quotes, escapes and variables")
		}
		words[1+f.env.Word] = f.env.Prefix + command.Path
	}
	line := "#!" + strings.Join(words, " ")
	if err := checkLine(line, words); err != nil {
		return "", fault.With(err, "use a cache directory with a shorter name, without blanks: stead sip patch --cache DIR")
	}
	return line, nil
}

// scriptKey is the key of a script's copy: a hash of its content and of its new first line.
func scriptKey(m *mapped.File, f *finding, mode os.FileMode, line string) (key string, err error) {
	guardErr := m.Guard(func() {
		var now shebang.Line
		if now, err = shebang.Parse(m.Data[:min(len(m.Data), shebang.MaxLine+1)]); err != nil || !slices.Equal(now.Words(), f.line.Words()) {
			err = fmt.Errorf("%s: %w", f.path, mapped.ErrChanged)
			return
		}
		h := sha256.New()
		fmt.Fprintf(h, "stead sip %d script %o %q\n", Version, mode, line)
		h.Write(m.Data)
		key = hex.EncodeToString(h.Sum(nil)[:16])
	})
	return key, errors.Join(guardErr, err)
}

// unchanged makes sure that a file is what it was when it was mapped.
func unchanged(m *mapped.File) error {
	now, err := m.File.Stat()
	if err == nil && (now.Size() != m.Info.Size() || !now.ModTime().Equal(m.Info.ModTime())) {
		err = mapped.ErrChanged
	}
	return err
}

// checkLine makes sure that the kernel reads the words of a first line as they are meant.
func checkLine(line string, words []string) error {
	if len(line) >= shebang.MaxLine {
		return fmt.Errorf("its first line would have %d bytes, the kernel reads %d", len(line), shebang.MaxLine)
	}
	l, err := shebang.Parse([]byte(line + "\n"))
	if err != nil {
		return err
	}
	if got := l.Words(); strings.Join(got, "\x00") != strings.Join(words, "\x00") {
		return fmt.Errorf("its first line would be %q, whose words the kernel splits otherwise", line)
	}
	return nil
}

// SliceCheck is what Verify found in one slice.
type SliceCheck struct {
	Arch     macho.Arch
	Signed   bool
	Pages    int     // hashes of pages that were checked
	Problems []error // each names its offset
}

// NeedsSignature tells whether a Mac runs the slice only when it is signed.
func (s *SliceCheck) NeedsSignature() bool { return s.Arch.CPU == macho.ARM64 }

// Verify checks every hash and offset of the signatures in a file.
func Verify(path string) ([]SliceCheck, error) {
	m, err := mapped.Open(path)
	if err != nil {
		return nil, fmt.Errorf("verify %w", err)
	}
	defer m.Close()
	var out []SliceCheck
	guardErr := m.Guard(func() {
		if out, err = verify(m.Data); err != nil && !macho.Sniff(m.Data) {
			err = fault.With(err, "stead sip inspect "+path)
		}
	})
	if err = errors.Join(guardErr, err); err != nil {
		return nil, fmt.Errorf("verify %s: %w", path, damaged(err))
	}
	return out, nil
}

func verify(data []byte) ([]SliceCheck, error) {
	archs, err := readArchs(data)
	if err != nil {
		return nil, err
	}
	var out []SliceCheck
	for _, a := range archs {
		c := SliceCheck{Arch: a.Arch, Signed: a.sig != nil}
		if a.sig != nil {
			c.Problems = a.sig.Verify(a.image)
			for _, d := range a.sig.Directories {
				c.Pages += d.Code
			}
		}
		out = append(out, c)
	}
	return out, nil
}
