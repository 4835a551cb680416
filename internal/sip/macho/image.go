package macho

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"slices"
)

// FileType is a filetype of the Mach-O header.
type FileType uint32

const (
	Object   FileType = 1  // MH_OBJECT, for the linker
	Execute  FileType = 2  // MH_EXECUTE, a program
	Dylib    FileType = 6  // MH_DYLIB, a dynamic library
	Dylinker FileType = 7  // MH_DYLINKER: dyld
	Bundle   FileType = 8  // MH_BUNDLE, a plug-in that dlopen loads
	DSYM     FileType = 10 // MH_DSYM, debug symbols beside a binary
)

var fileTypeNames = map[FileType]string{
	Object: "object file", Execute: "program", 4: "core dump", Dylib: "dynamic library", Dylinker: "dynamic linker",
	Bundle: "bundle", 9: "dynamic library stub", DSYM: "debug symbols", 11: "kernel extension", 12: "file set",
}

func (t FileType) String() string {
	if s := fileTypeNames[t]; s != "" {
		return s
	}
	return "file of unknown type"
}

// loaded tells whether the segments of such a file are mapped as they lie in it.
func (t FileType) loaded() bool { return t == Execute || t == Dylib || t == Dylinker || t == Bundle }

// Image is a slice whose header and load commands have been read and found to be in order.
// It is not changed after it has been read and may be used by many goroutines.
type Image struct {
	Arch
	Data       []byte // the slice
	Base       uint64 // its offset in the file; errors name offsets in the file
	Order      binary.ByteOrder
	Wide       bool // 64-bit
	Type       FileType
	Flags      uint32
	HeaderSize int
	Commands   []Command
	Segments   []Segment
	Platform   uint32    // of LC_BUILD_VERSION or LC_VERSION_MIN_*, 0 when neither is there
	Encrypted  bool      // LC_ENCRYPTION_INFO with a cryptid
	Signature  *LinkEdit // LC_CODE_SIGNATURE, nil for none
	LinkEdit   *Segment  // __LINKEDIT, nil for none
	Text       *Segment  // __TEXT, nil for none
}

// Command is a load command.
type Command struct {
	Cmd    uint32
	Offset int // in the slice
	Size   int
}

// Segment is a segment_command or segment_command_64.
type Segment struct {
	Command           int // index into Image.Commands
	Name              string
	VMAddr, VMSize    uint64
	FileOff, FileSize uint64 // in the slice; the FileOff of an empty one may be anywhere
	Sections          []Section
}

// Section is a section or section_64.
type Section struct {
	Name, Segment string
	Header        int // offset of the section's header in the slice
	Offset, Size  uint64
	Zerofill      bool // has no bytes in the file
}

// LinkEdit is a linkedit_data_command.
type LinkEdit struct {
	Command           int
	DataOff, DataSize uint64 // in the slice
}

// Image reads the slice's header and load commands.
func (s *Slice) Image() (*Image, error) {
	h, err := readHeader(s.Data, s.Offset)
	if err != nil {
		return nil, err
	}
	if h.CPU != s.CPU || h.Subtype&SubtypeMask != s.Subtype&SubtypeMask {
		return nil, Errorf(s.Offset+4, "the slice that the fat header calls %v is %v", s.Arch, h.Arch)
	}
	m := &Image{
		Arch: h.Arch, Data: s.Data, Base: s.Offset, Order: h.order, Wide: h.wide,
		Type: h.fileType, Flags: h.flags, HeaderSize: h.size,
	}
	if err := m.readCommands(h); err != nil {
		return nil, err
	}
	if err := m.checkSegments(); err != nil {
		return nil, err
	}
	return m, m.checkTables()
}

// CommandsEnd is the offset in the slice at which the load commands end.
func (m *Image) CommandsEnd() int {
	if n := len(m.Commands); n > 0 {
		return m.Commands[n-1].Offset + m.Commands[n-1].Size
	}
	return m.HeaderSize
}

// Bytes returns the bytes of the load command c.
func (m *Image) Bytes(c Command) []byte { return m.Data[c.Offset : c.Offset+c.Size] }

// Room is the number of bytes after the load commands that further ones may take: zeros, before
// the first byte of a section or segment.
func (m *Image) Room() int {
	end := m.CommandsEnd()
	first := uint64(len(m.Data))
	for _, s := range m.Segments {
		if s.FileSize > 0 && s.FileOff > 0 {
			first = min(first, s.FileOff)
		}
		for _, x := range s.Sections {
			if !x.Zerofill && x.Size > 0 {
				first = min(first, x.Offset)
			}
		}
	}
	if m.Text == nil || m.Text.FileOff != 0 || first <= uint64(end) {
		return 0
	}
	gap := m.Data[end:min(first, m.Text.FileSize)]
	for i, b := range gap {
		if b != 0 {
			return i
		}
	}
	return len(gap)
}

func (m *Image) readCommands(h header) error {
	size := uint64(len(m.Data))
	end := uint64(h.size) + uint64(h.sizeofcmds)
	if end > size {
		return Errorf(m.Base+20, "load commands of %d bytes in a slice of %d", h.sizeofcmds, size)
	}
	if h.ncmds > h.sizeofcmds/8 {
		return Errorf(m.Base+16, "%d load commands in %d bytes", h.ncmds, h.sizeofcmds)
	}
	if h.ncmds > maxCommands {
		return Errorf(m.Base+16, "%d load commands, more than %d", h.ncmds, maxCommands)
	}
	align := uint64(4)
	if m.Wide {
		align = 8
	}
	at := uint64(h.size)
	for i := range int(h.ncmds) {
		if end-at < 8 {
			return Errorf(m.Base+at, "load command %d of %d begins past the %d bytes of all", i, h.ncmds, h.sizeofcmds)
		}
		c := Command{Cmd: m.Order.Uint32(m.Data[at:]), Offset: int(at)}
		n := uint64(m.Order.Uint32(m.Data[at+4:]))
		switch {
		case n < 8 || n%align != 0:
			return Errorf(m.Base+at+4, "load command %d (%s) of %d bytes", i, CommandName(c.Cmd), n)
		case n > end-at:
			return Errorf(m.Base+at+4, "load command %d (%s) of %d bytes, %d are left", i, CommandName(c.Cmd), n, end-at)
		}
		c.Size = int(n)
		m.Commands = append(m.Commands, c)
		if row, ok := commands[c.Cmd]; ok {
			if c.Size < row.size {
				return Errorf(m.Base+at+4, "%s of %d bytes, it has %d", row.name, n, row.size)
			}
			if row.read != nil {
				if err := row.read(m, len(m.Commands)-1, m.Bytes(c)); err != nil {
					return err
				}
			}
		}
		at += n
	}
	if at != end {
		return Errorf(m.Base+20, "load commands of %d bytes, sizeofcmds says %d", at-uint64(h.size), h.sizeofcmds)
	}
	for i := range m.Segments {
		switch s := &m.Segments[i]; s.Name {
		case "__LINKEDIT":
			m.LinkEdit = s
		case "__TEXT":
			m.Text = s
		}
	}
	return nil
}

// checkSegments checks that the segments' bytes are in the slice and overlap neither there nor in
// memory, and that sections are inside their segments.
func (m *Image) checkSegments() error {
	if !m.Type.loaded() {
		return nil
	}
	size := uint64(len(m.Data))
	var byFile, byAddr []*Segment
	for i := range m.Segments {
		s := &m.Segments[i]
		at := m.Base + uint64(m.Commands[s.Command].Offset)
		switch {
		// Where an empty segment would lie means nothing; but __LINKEDIT may be given bytes.
		case (s.FileSize > 0 || s == m.LinkEdit) && !within(s.FileOff, s.FileSize, 0, size):
			return Errorf(at, "segment %s, %#x bytes at %#x, ends past the slice's %#x", s.Name, s.FileSize, s.FileOff, size)
		case s.FileSize > s.VMSize && s.VMSize > 0: // Go's __DWARF is not mapped at all
			return Errorf(at, "segment %s has %#x bytes in the file and %#x in memory", s.Name, s.FileSize, s.VMSize)
		case s.VMAddr+s.VMSize < s.VMAddr:
			return Errorf(at, "segment %s, %#x bytes at the address %#x, ends past the last address", s.Name, s.VMSize, s.VMAddr)
		}
		for _, o := range m.Segments[:i] {
			if o.Name == s.Name && s.Name != "" {
				return Errorf(at, "a second segment %s", s.Name)
			}
		}
		for _, x := range s.Sections {
			if !x.Zerofill && x.Size > 0 && !within(x.Offset, x.Size, s.FileOff, s.FileOff+s.FileSize) {
				return Errorf(m.Base+uint64(x.Header), "section %s, %#x bytes at %#x, is not inside its segment %s", x.Name, x.Size, x.Offset, s.Name)
			}
			if !x.Zerofill && x.Size > 0 && x.Offset < uint64(m.CommandsEnd()) {
				return Errorf(m.Base+uint64(x.Header), "section %s begins at %#x, inside the load commands", x.Name, x.Offset)
			}
		}
		if s.FileSize > 0 {
			byFile = append(byFile, s)
		}
		if s.VMSize > 0 {
			byAddr = append(byAddr, s)
		}
	}
	slices.SortFunc(byFile, func(a, b *Segment) int { return cmp.Compare(a.FileOff, b.FileOff) })
	slices.SortFunc(byAddr, func(a, b *Segment) int { return cmp.Compare(a.VMAddr, b.VMAddr) })
	for i := 1; i < len(byFile); i++ {
		if p, s := byFile[i-1], byFile[i]; p.FileOff+p.FileSize > s.FileOff {
			return Errorf(m.Base+uint64(m.Commands[s.Command].Offset), "segment %s begins at %#x, inside segment %s", s.Name, s.FileOff, p.Name)
		}
	}
	for i := 1; i < len(byAddr); i++ {
		if p, s := byAddr[i-1], byAddr[i]; p.VMAddr+p.VMSize > s.VMAddr {
			return Errorf(m.Base+uint64(m.Commands[s.Command].Offset), "segment %s has the address %#x, inside segment %s", s.Name, s.VMAddr, p.Name)
		}
	}
	if m.Text != nil && m.Text.FileOff == 0 && m.Text.FileSize < uint64(m.CommandsEnd()) {
		return Errorf(m.Base+uint64(m.Commands[m.Text.Command].Offset), "segment __TEXT of %#x bytes ends inside the load commands", m.Text.FileSize)
	}
	return nil
}

// cString returns the bytes of b up to the first NUL.
func cString(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}
