package sip

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"strings"

	"github.com/stead-dev/stead/internal/sip/codesign"
	"github.com/stead-dev/stead/internal/sip/macho"
)

const (
	restrictSegment = "__RESTRICT"
	// What the segment is called in a copy: dyld knows it by its name alone.
	unrestricted = "__UNRESTRICT"

	signatureCommandSize = 16
	signatureAlign       = 16
)

// Change is a range of a copy's bytes that differ from the original slice's, and why.
type Change struct {
	From, To uint64 // [From, To) in the copy
	Why      string
}

// edit is a copy to be made of a slice: head, then the slice's bytes from len(head) to copied,
// zeros up to the code limit, then the signature and zeros up to size.
type edit struct {
	head    []byte
	copied  uint64
	params  codesign.Params
	size    uint64
	changes []Change
	notes   []string
}

// planEdit decides what the copy of a slice is to be. dir is the original's directory with
// symlinks resolved, name what it is called if it has no signature that names it.
func planEdit(a *arch, dir, name string) (*edit, error) {
	m := a.image
	if err := editable(m); err != nil {
		return nil, err
	}
	le := m.LinkEdit
	end := le.FileOff + le.FileSize
	e := &edit{copied: end}
	if m.Signature != nil {
		if s := m.Signature; s.DataOff+s.DataSize != end {
			return nil, macho.Errorf(m.Base+uint64(m.Commands[s.Command].Offset)+8, "the signature ends at %#x, __LINKEDIT at %#x", s.DataOff+s.DataSize, end)
		}
		e.copied = m.Signature.DataOff
	}
	limit := (e.copied + signatureAlign - 1) / signatureAlign * signatureAlign

	e.params = codesign.Params{
		Identifier: name, Flags: codesign.FlagAdhoc, CodeLimit: limit,
		Info: bytes.Clone(codesign.InfoPlist(m)), Blobs: codesign.AdhocBlobs(),
	}
	if a.sig != nil {
		e.params.Identifier = a.sig.Directories[0].Identifier
	}
	if m.Text != nil {
		e.params.ExecSegBase, e.params.ExecSegLimit = m.Text.FileOff, m.Text.FileSize
	}
	if m.Type == macho.Execute {
		e.params.ExecSegFlags = codesign.ExecSegMain
	}
	sigSize := (uint64(e.params.Size()) + signatureAlign - 1) / signatureAlign * signatureAlign
	e.size = limit + sigSize
	if e.size > math.MaxUint32 {
		return nil, macho.Errorf(m.Base+limit, "a signature past 4 GiB has no place in a load command")
	}

	c := newCommands(m)
	if err := c.growLinkEdit(e.size); err != nil {
		return nil, err
	}
	if err := c.placeSignature(limit, sigSize); err != nil {
		return nil, err
	}
	c.unrestrict()
	c.anchor(dir)
	e.head, e.changes = c.head()
	e.notes = c.notes
	if e.copied < limit {
		e.changes = append(e.changes, Change{e.copied, limit, "zeros up to the signature"})
	}
	e.changes = append(e.changes, Change{limit, e.size, "ad-hoc signature"})
	return e, nil
}

// editable tells what cannot be copied, and why.
func editable(m *macho.Image) error {
	switch {
	case m.IsARM64E():
		return macho.Errorf(m.Base+4, "%w", errARM64E)
	case m.CPU != macho.ARM64 && m.CPU != macho.X86_64 || m.Order != binary.LittleEndian:
		return macho.Errorf(m.Base+4, "code for %v, which no Mac runs today", m.Arch)
	case m.Type != macho.Execute && m.Type != macho.Dylib && m.Type != macho.Bundle:
		return macho.Errorf(m.Base+12, "not a program (%v)", m.Type)
	case m.Encrypted:
		return macho.Errorf(m.Base, "its code is encrypted (App Store)")
	case m.LinkEdit == nil:
		return macho.Errorf(m.Base, "no segment __LINKEDIT, so no place for a signature")
	}
	end := m.LinkEdit.FileOff + m.LinkEdit.FileSize
	for _, s := range m.Segments {
		if s.FileSize > 0 && s.FileOff+s.FileSize > end {
			return macho.Errorf(m.Base+uint64(m.Commands[s.Command].Offset), "segment %s ends at %#x, after __LINKEDIT (%#x)", s.Name, s.FileOff+s.FileSize, end)
		}
	}
	for i, b := range m.Data[end:] {
		if b != 0 {
			return macho.Errorf(m.Base+end+uint64(i), "data after __LINKEDIT, which no signature can cover")
		}
	}
	if end < uint64(m.CommandsEnd()) {
		return macho.Errorf(m.Base+end, "__LINKEDIT ends inside the load commands")
	}
	return nil
}

// commands is a list of load commands under change.
type commands struct {
	m       *macho.Image
	list    [][]byte // own copies
	why     []string // what was changed in each, "" for nothing
	room    int      // bytes left
	shifted int      // the first one that has another length than it had, -1 for none
	notes   []string
}

func newCommands(m *macho.Image) *commands {
	c := &commands{m: m, room: m.Room(), shifted: -1, why: make([]string, len(m.Commands))}
	for _, x := range m.Commands {
		c.list = append(c.list, bytes.Clone(m.Bytes(x)))
	}
	return c
}

func (c *commands) changed(i int, why string) {
	if c.why[i] != "" {
		why = c.why[i] + ", " + why
	}
	c.why[i] = why
}

// growLinkEdit gives __LINKEDIT the bytes up to end. Memory is mapped by pages of the CPU.
func (c *commands) growLinkEdit(end uint64) error {
	le, page := c.m.LinkEdit, uint64(0x1000)
	if c.m.CPU == macho.ARM64 {
		page = 0x4000
	}
	size := end - le.FileOff
	vm := (size + page - 1) / page * page
	at := c.m.Base + uint64(c.m.Commands[le.Command].Offset)
	for _, s := range c.m.Segments {
		if s.Command != le.Command && s.VMSize > 0 && s.VMAddr < le.VMAddr+vm && le.VMAddr < s.VMAddr+s.VMSize {
			return macho.Errorf(at, "__LINKEDIT cannot grow to %#x bytes: segment %s is in its way in memory", vm, s.Name)
		}
	}
	if le.VMAddr+vm < le.VMAddr {
		return macho.Errorf(at, "__LINKEDIT cannot grow to %#x bytes at %#x", vm, le.VMAddr)
	}
	b := c.list[le.Command]
	c.m.Order.PutUint64(b[32:], vm)
	c.m.Order.PutUint64(b[48:], size)
	c.changed(le.Command, "size of __LINKEDIT")
	return nil
}

func (c *commands) placeSignature(off, size uint64) error {
	if s := c.m.Signature; s != nil {
		b := c.list[s.Command]
		c.m.Order.PutUint32(b[8:], uint32(off))
		c.m.Order.PutUint32(b[12:], uint32(size))
		c.changed(s.Command, "place of the signature")
		return nil
	}
	if c.room < signatureCommandSize {
		return macho.Errorf(c.m.Base+uint64(c.m.CommandsEnd()), "%w: %d bytes are free after the load commands, LC_CODE_SIGNATURE takes %d", errNoRoom, c.room, signatureCommandSize)
	}
	c.room -= signatureCommandSize
	b := make([]byte, signatureCommandSize)
	c.m.Order.PutUint32(b, macho.LCCodeSignature)
	c.m.Order.PutUint32(b[4:], signatureCommandSize)
	c.m.Order.PutUint32(b[8:], uint32(off))
	c.m.Order.PutUint32(b[12:], uint32(size))
	c.list, c.why = append(c.list, b), append(c.why, "LC_CODE_SIGNATURE added")
	return nil
}

// unrestrict renames a __RESTRICT segment.
func (c *commands) unrestrict() {
	for _, s := range c.m.Segments {
		b := c.list[s.Command]
		rename := func(field []byte) {
			clear(field)
			copy(field, unrestricted)
			c.changed(s.Command, "name of the segment "+restrictSegment)
		}
		if s.Name == restrictSegment {
			rename(b[8:24])
		}
		for _, x := range s.Sections {
			if x.Segment == restrictSegment {
				h := b[x.Header-c.m.Commands[s.Command].Offset:]
				rename(h[16:32])
			}
		}
	}
}

// anchor makes paths that are relative to the program mean the original's directory.
func (c *commands) anchor(dir string) {
	for i, x := range c.m.Commands {
		s, at, ok := c.m.String(x)
		if !ok || x.Cmd == macho.LCIDDylib {
			continue
		}
		to := anchored(s, dir, c.m.Type == macho.Execute, x.Cmd == macho.LCDyldEnvironment)
		if to == s {
			continue
		}
		size := (at + len(to) + 1 + 7) &^ 7
		grow := max(0, size-x.Size)
		if grow > c.room {
			c.notes = append(c.notes, fmt.Sprintf("%s %s: no room for %s (%d bytes more, %d are free); what it names will not be found", macho.CommandName(x.Cmd), s, to, grow, c.room))
			continue
		}
		c.room -= grow
		b := make([]byte, x.Size+grow)
		copy(b, c.list[i][:at])
		copy(b[at:], to)
		c.m.Order.PutUint32(b[4:], uint32(len(b)))
		c.list[i] = b
		c.changed(i, fmt.Sprintf("%s %s", macho.CommandName(x.Cmd), s))
		if grow > 0 && (c.shifted < 0 || i < c.shifted) {
			c.shifted = i
		}
	}
}

// anchored replaces @executable_path and @loader_path at the beginning of a path, or of each path
// in the value of a variable. Only in a program do both mean its own directory: what a library
// calls @executable_path depends on who loads it.
func anchored(s, dir string, program, variable bool) string {
	if variable {
		name, list, ok := strings.Cut(s, "=")
		if !ok {
			return s
		}
		paths := strings.Split(list, ":")
		for i := range paths {
			paths[i] = anchored(paths[i], dir, program, false)
		}
		return name + "=" + strings.Join(paths, ":")
	}
	for _, p := range []string{"@loader_path", "@executable_path"} {
		rest, ok := strings.CutPrefix(s, p)
		if ok && (rest == "" || rest[0] == '/') && (program || p == "@loader_path") {
			return strings.TrimSuffix(dir, "/") + rest
		}
	}
	return s
}

// head returns the header and the load commands, and what differs in them.
func (c *commands) head() ([]byte, []Change) {
	m := c.m
	out := bytes.Clone(m.Data[:m.HeaderSize])
	var changes []Change
	for i, b := range c.list {
		from := uint64(len(out))
		out = append(out, b...)
		if c.why[i] != "" {
			changes = append(changes, Change{from, uint64(len(out)), c.why[i]})
		}
	}
	if c.shifted >= 0 {
		from := m.Commands[c.shifted].Offset
		changes = append(changes, Change{uint64(from), uint64(len(out)), "load commands moved to make room"})
	}
	n := uint32(len(out) - m.HeaderSize)
	if len(c.list) != len(m.Commands) || int(n) != m.CommandsEnd()-m.HeaderSize {
		m.Order.PutUint32(out[16:], uint32(len(c.list)))
		m.Order.PutUint32(out[20:], n)
		changes = append([]Change{{16, 24, "number and size of the load commands"}}, changes...)
	}
	return out, changes
}
