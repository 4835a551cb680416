package macho

import (
	"bytes"
	"fmt"
)

// Load commands that are read or written here.
const (
	reqDyld = 1 << 31

	LCSegment         = 0x1
	LCSymtab          = 0x2
	LCDysymtab        = 0xb
	LCLoadDylib       = 0xc
	LCIDDylib         = 0xd
	LCLoadDylinker    = 0xe
	LCIDDylinker      = 0xf
	LCLoadWeakDylib   = 0x18 | reqDyld
	LCSegment64       = 0x19
	LCRpath           = 0x1c | reqDyld
	LCCodeSignature   = 0x1d
	LCReexportDylib   = 0x1f | reqDyld
	LCLazyLoadDylib   = 0x20
	LCEncryption      = 0x21
	LCDyldInfo        = 0x22
	LCLoadUpwardDylib = 0x23 | reqDyld
	LCDyldEnvironment = 0x27
	LCEncryption64    = 0x2c
	LCBuildVersion    = 0x32
)

// Platforms of LC_BUILD_VERSION whose programs run on a Mac.
const (
	PlatformMacOS    = 1
	PlatformCatalyst = 6
)

// row tells how a load command is read. The checks that need the segments are done when all
// commands have been read, by checkTables.
type row struct {
	name string
	size int // the least
	read func(m *Image, index int, b []byte) error
}

// commands has one row for each load command that is looked into; all others are passed over.
var commands map[uint32]row

func init() { // not a literal: the readers name their own rows in errors
	commands = map[uint32]row{
		LCSegment:            {"LC_SEGMENT", 56, (*Image).readSegment},
		LCSegment64:          {"LC_SEGMENT_64", 72, (*Image).readSegment},
		LCSymtab:             {"LC_SYMTAB", 24, nil},
		LCDysymtab:           {"LC_DYSYMTAB", 80, nil},
		LCLoadDylib:          {"LC_LOAD_DYLIB", 24, (*Image).readString},
		LCIDDylib:            {"LC_ID_DYLIB", 24, (*Image).readString},
		LCLoadDylinker:       {"LC_LOAD_DYLINKER", 12, (*Image).readString},
		LCIDDylinker:         {"LC_ID_DYLINKER", 12, (*Image).readString},
		LCLoadWeakDylib:      {"LC_LOAD_WEAK_DYLIB", 24, (*Image).readString},
		LCRpath:              {"LC_RPATH", 12, (*Image).readString},
		LCCodeSignature:      {"LC_CODE_SIGNATURE", 16, (*Image).readSignature},
		LCReexportDylib:      {"LC_REEXPORT_DYLIB", 24, (*Image).readString},
		LCLazyLoadDylib:      {"LC_LAZY_LOAD_DYLIB", 24, (*Image).readString},
		LCLoadUpwardDylib:    {"LC_LOAD_UPWARD_DYLIB", 24, (*Image).readString},
		LCDyldEnvironment:    {"LC_DYLD_ENVIRONMENT", 12, (*Image).readString},
		LCEncryption:         {"LC_ENCRYPTION_INFO", 20, (*Image).readEncryption},
		LCEncryption64:       {"LC_ENCRYPTION_INFO_64", 24, (*Image).readEncryption},
		LCDyldInfo:           {"LC_DYLD_INFO", 48, nil},
		LCDyldInfo | reqDyld: {"LC_DYLD_INFO_ONLY", 48, nil},
		LCBuildVersion:       {"LC_BUILD_VERSION", 24, (*Image).readPlatform},
		0x24:                 {"LC_VERSION_MIN_MACOSX", 16, (*Image).readPlatform},
		0x25:                 {"LC_VERSION_MIN_IPHONEOS", 16, (*Image).readPlatform},
		0x2f:                 {"LC_VERSION_MIN_TVOS", 16, (*Image).readPlatform},
		0x30:                 {"LC_VERSION_MIN_WATCHOS", 16, (*Image).readPlatform},
	}
	for cmd, name := range linkEditData {
		if cmd != LCCodeSignature {
			commands[cmd] = row{name, 16, nil}
		}
	}
}

// linkEditData are the commands of the shape linkedit_data_command.
var linkEditData = map[uint32]string{
	LCCodeSignature: "LC_CODE_SIGNATURE",
	0x1e:            "LC_SEGMENT_SPLIT_INFO",
	0x26:            "LC_FUNCTION_STARTS",
	0x29:            "LC_DATA_IN_CODE",
	0x2b:            "LC_DYLIB_CODE_SIGN_DRS",
	0x2e:            "LC_LINKER_OPTIMIZATION_HINT",
	0x33 | reqDyld:  "LC_DYLD_EXPORTS_TRIE",
	0x34 | reqDyld:  "LC_DYLD_CHAINED_FIXUPS",
}

// CommandName returns the name of a load command as loader.h has it, or its number.
func CommandName(cmd uint32) string {
	if r, ok := commands[cmd]; ok {
		return r.name
	}
	return fmt.Sprintf("%#x", cmd)
}

// platforms of the old LC_VERSION_MIN commands.
var platforms = map[uint32]uint32{0x24: PlatformMacOS, 0x25: 2, 0x2f: 3, 0x30: 4}

func (m *Image) readPlatform(i int, b []byte) error {
	if m.Platform != 0 { // the first one counts; zippered libraries have two
		return nil
	}
	m.Platform = platforms[m.Commands[i].Cmd]
	if m.Platform == 0 {
		m.Platform = m.Order.Uint32(b[8:])
	}
	return nil
}

func (m *Image) readEncryption(_ int, b []byte) error {
	m.Encrypted = m.Encrypted || m.Order.Uint32(b[16:]) != 0
	return nil
}

func (m *Image) readSegment(i int, b []byte) error {
	c := m.Commands[i]
	wide := c.Cmd == LCSegment64
	at := m.Base + uint64(c.Offset)
	if wide != m.Wide {
		return Errorf(at, "%s in an image of %v", CommandName(c.Cmd), m.Arch)
	}
	s := Segment{Command: i, Name: cString(b[8:24])}
	head, each := 56, 68
	word := func(b []byte) uint64 { return uint64(m.Order.Uint32(b)) }
	width := 4
	if wide {
		head, each, width = 72, 80, 8
		word = m.Order.Uint64
	}
	f := b[24:]
	s.VMAddr, s.VMSize, s.FileOff, s.FileSize = word(f), word(f[width:]), word(f[2*width:]), word(f[3*width:])
	n := uint64(m.Order.Uint32(b[head-8:]))
	if n*uint64(each) != uint64(len(b)-head) {
		return Errorf(at+uint64(head)-8, "segment %s has %d sections and a load command of %d bytes", s.Name, n, len(b))
	}
	total := n
	for _, o := range m.Segments {
		total += uint64(len(o.Sections))
	}
	if total > maxSections || len(m.Segments) == maxSegments {
		return Errorf(at, "more than %d segments or %d sections", maxSegments, maxSections)
	}
	s.Sections = make([]Section, 0, n)
	for j := head; j < len(b); j += each {
		h := b[j : j+each]
		x := Section{Name: cString(h[:16]), Segment: cString(h[16:32]), Header: c.Offset + j}
		x.Size = word(h[32+width:])
		x.Offset = uint64(m.Order.Uint32(h[32+2*width:]))
		switch m.Order.Uint32(h[32+2*width+16:]) & 0xff {
		case 0x1, 0xc, 0x12: // S_ZEROFILL, S_GB_ZEROFILL, S_THREAD_LOCAL_ZEROFILL
			x.Zerofill = true
		}
		s.Sections = append(s.Sections, x)
	}
	m.Segments = append(m.Segments, s)
	return nil
}

func (m *Image) readSignature(i int, b []byte) error {
	if m.Signature != nil {
		return Errorf(m.Base+uint64(m.Commands[i].Offset), "a second LC_CODE_SIGNATURE")
	}
	m.Signature = &LinkEdit{Command: i, DataOff: uint64(m.Order.Uint32(b[8:])), DataSize: uint64(m.Order.Uint32(b[12:]))}
	return nil
}

// readString checks the string of a command that has one, so that String need not.
func (m *Image) readString(i int, b []byte) error {
	c := m.Commands[i]
	at := uint64(m.Order.Uint32(b[8:]))
	if at < uint64(commands[c.Cmd].size) || at >= uint64(len(b)) {
		return Errorf(m.Base+uint64(c.Offset)+8, "%s: its string begins at %d of %d bytes", CommandName(c.Cmd), at, len(b))
	}
	if bytes.IndexByte(b[at:], 0) < 0 {
		return Errorf(m.Base+uint64(c.Offset)+at, "%s: its string does not end", CommandName(c.Cmd))
	}
	return nil
}

// String returns the string of a command that has one (a path, a name), and where in the command
// it begins; ok is false for other commands.
func (m *Image) String(c Command) (s string, at int, ok bool) {
	switch c.Cmd {
	case LCLoadDylib, LCIDDylib, LCLoadDylinker, LCIDDylinker, LCLoadWeakDylib, LCRpath,
		LCReexportDylib, LCLazyLoadDylib, LCLoadUpwardDylib, LCDyldEnvironment:
		b := m.Bytes(c)
		at = int(m.Order.Uint32(b[8:]))
		return cString(b[at:]), at, true
	}
	return "", 0, false
}

// table is a range of bytes that a load command names: field is where in the command, size the
// bytes of one element.
type table struct {
	what         string
	field, count int
	size         uint64
}

var dyldInfo = []table{{"rebases", 8, 12, 1}, {"binds", 16, 20, 1}, {"weak binds", 24, 28, 1}, {"lazy binds", 32, 36, 1}, {"exports", 40, 44, 1}}

var tables = map[uint32][]table{
	LCSymtab: {{"symbols", 8, 12, 12}, {"strings", 16, 20, 1}}, // nlist; nlist_64 is larger
	LCDysymtab: {
		{"table of contents", 32, 36, 8}, {"modules", 40, 44, 52}, {"external references", 48, 52, 4},
		{"indirect symbols", 56, 60, 4}, {"external relocations", 64, 68, 8}, {"local relocations", 72, 76, 8},
	},
	LCDyldInfo:           dyldInfo,
	LCDyldInfo | reqDyld: dyldInfo,
}

// checkTables checks that what load commands say of __LINKEDIT lies in it.
func (m *Image) checkTables() error {
	if !m.Type.loaded() {
		return nil
	}
	for i, c := range m.Commands {
		rows := tables[c.Cmd]
		if _, ok := linkEditData[c.Cmd]; ok {
			rows = []table{{"data", 8, 12, 1}}
		}
		b := m.Bytes(c)
		for _, t := range rows {
			off, n := uint64(m.Order.Uint32(b[t.field:])), uint64(m.Order.Uint32(b[t.count:]))*t.size
			if n == 0 && i != m.signatureCommand() {
				continue
			}
			at := m.Base + uint64(c.Offset+t.field)
			if m.LinkEdit == nil {
				return Errorf(at, "%s without a segment __LINKEDIT", CommandName(c.Cmd))
			}
			lo, hi := max(m.LinkEdit.FileOff, uint64(m.CommandsEnd())), m.LinkEdit.FileOff+m.LinkEdit.FileSize
			if !within(off, n, lo, hi) {
				return Errorf(at, "%s: %s, %#x bytes at %#x, not inside __LINKEDIT (%#x to %#x)", CommandName(c.Cmd), t.what, n, off, lo, hi)
			}
			if s := m.Signature; s != nil && i != s.Command && off < s.DataOff+s.DataSize && s.DataOff < off+n {
				return Errorf(at, "%s: %s, %#x bytes at %#x, overlaps the code signature at %#x", CommandName(c.Cmd), t.what, n, off, s.DataOff)
			}
		}
	}
	return nil
}

func (m *Image) signatureCommand() int {
	if m.Signature == nil {
		return -1
	}
	return m.Signature.Command
}
