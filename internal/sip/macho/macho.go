// Package macho reads Mach-O files, thin and fat, out of bytes in memory, strictly enough that
// what it returns can be edited and signed: every offset that it hands on lies inside the file.
//
// It makes no system call, never panics on bad input and allocates in proportion to the bytes
// that are there, never to a count that they claim. It does not read symbols, relocations or
// fixups; it only checks that their tables lie where they may. debug/macho of the standard library
// is not used because it accepts too much, knows no offsets of load commands and reads no FAT64.
//
// Structures and constants are those of Apple's mach-o/loader.h and mach-o/fat.h; fields bear
// their names where they are exported as they are.
package macho

import (
	"encoding/binary"
	"fmt"
	"math"
)

// FormatError is a file that breaks the format: where, counted from the file's first byte, and how.
type FormatError struct {
	Offset uint64
	Err    error
}

func (e *FormatError) Error() string { return fmt.Sprintf("offset %#x: %v", e.Offset, e.Err) }
func (e *FormatError) Unwrap() error { return e.Err }

// Errorf returns a FormatError.
func Errorf(offset uint64, format string, args ...any) error {
	return &FormatError{Offset: offset, Err: fmt.Errorf(format, args...)}
}

// Magic numbers, as they read in big-endian order.
const (
	magic32      = 0xfeedface
	magic64      = 0xfeedfacf
	magic32Swap  = 0xcefaedfe
	magic64Swap  = 0xcffaedfe
	magicFat     = 0xcafebabe
	magicFat64   = 0xcafebabf
	magicFatSwap = 0xbebafeca
	magicFat64Sw = 0xbfbafeca
)

// CPU is a cputype.
type CPU uint32

const (
	X86    CPU = 7          // i386
	X86_64 CPU = 7 | 1<<24  // Intel Macs
	ARM    CPU = 12         // 32 bits, of phones
	ARM64  CPU = 12 | 1<<24 // Apple silicon; arm64e is a subtype
	ARM32  CPU = 12 | 2<<24 // arm64_32, of watches
	PPC    CPU = 18         // before 2006
	PPC64  CPU = 18 | 1<<24 // before 2006, 64 bits
)

var cpuNames = map[CPU]string{
	X86: "i386", X86_64: "x86_64", ARM: "arm", ARM64: "arm64", ARM32: "arm64_32", PPC: "ppc", PPC64: "ppc64",
}

func (c CPU) String() string {
	if s := cpuNames[c]; s != "" {
		return s
	}
	return fmt.Sprintf("cpu %#x", uint32(c))
}

// Subtypes that matter here: the low 24 bits of cpusubtype, the rest are capability bits.
const (
	SubtypeMask    = 0x00ffffff
	SubtypeARM64E  = 2
	SubtypeX86_64  = 3
	SubtypeHaswell = 8
)

// Arch names a slice by CPU and subtype.
type Arch struct {
	CPU     CPU
	Subtype uint32 // as in the file, capability bits included
}

// IsARM64E tells code with pointer authentication, which runs only when Apple signed it.
func (a Arch) IsARM64E() bool { return a.CPU == ARM64 && a.Subtype&SubtypeMask == SubtypeARM64E }

// SubtypeName returns the subtype as Apple's tools spell it.
func (a Arch) SubtypeName() string {
	switch s := a.Subtype & SubtypeMask; {
	case a.IsARM64E():
		return "arm64e"
	case a.CPU == ARM64 && s == 1:
		return "v8"
	case a.CPU == ARM64 && s == 0, a.CPU == X86_64 && s == SubtypeX86_64, a.CPU == X86 && s == 3:
		return "all"
	case a.CPU == X86_64 && s == SubtypeHaswell:
		return "x86_64h"
	default:
		return fmt.Sprintf("%d", s)
	}
}

func (a Arch) String() string {
	switch n := a.SubtypeName(); n {
	case "all":
		return a.CPU.String()
	case "arm64e", "x86_64h":
		return n
	default:
		return a.CPU.String() + "/" + n
	}
}

// File is a Mach-O file: one slice when it is thin, one or more when it is fat.
type File struct {
	Data   []byte
	Fat    bool
	Wide   bool             // FAT64: 64-bit offsets in the fat header
	Order  binary.ByteOrder // of the fat header
	Slices []Slice
}

// Slice is one architecture's part of a file.
type Slice struct {
	Arch
	Offset, Size uint64 // in the file
	Entry        uint64 // offset of the fat_arch that tells it; 0 when thin
	Data         []byte // the slice's own bytes
}

// Sniff tells whether data, the beginning of a file, is a Mach-O file's. Java's class files share
// the fat magic; what follows it there is a version number, 45 or more, where a fat file counts
// its few architectures.
func Sniff(data []byte) bool {
	if len(data) < 4 {
		return false
	}
	switch binary.BigEndian.Uint32(data) {
	case magic32, magic64, magic32Swap, magic64Swap, magicFat64, magicFatSwap, magicFat64Sw:
		return true
	case magicFat:
		if len(data) < 8 {
			return true
		}
		major := binary.BigEndian.Uint32(data[4:]) & 0xffff
		return major < 45 || major > 255
	}
	return false
}

// Read reads the headers that tell the slices of a file. The slices themselves are read by
// Slice.Image.
func Read(data []byte) (*File, error) {
	if len(data) < 4 {
		return nil, Errorf(0, "%d bytes, too short for a Mach-O file", len(data))
	}
	f := &File{Data: data, Order: binary.BigEndian}
	switch magic := binary.BigEndian.Uint32(data); magic {
	case magicFat64Sw, magicFatSwap:
		f.Order = binary.LittleEndian
		f.Fat, f.Wide = true, magic == magicFat64Sw
	case magicFat, magicFat64:
		f.Fat, f.Wide = true, magic == magicFat64
	case magic32, magic64, magic32Swap, magic64Swap:
		s := Slice{Size: uint64(len(data)), Data: data}
		h, err := readHeader(data, 0)
		if err != nil {
			return nil, err
		}
		s.Arch = h.Arch
		f.Slices = []Slice{s}
		return f, nil
	default:
		return nil, Errorf(0, "magic %#08x, not a Mach-O file", magic)
	}
	return f, f.readFat()
}

func (f *File) readFat() error {
	const header = 8
	entry := uint64(20)
	if f.Wide {
		entry = 32
	}
	size := uint64(len(f.Data))
	if size < header {
		return Errorf(4, "the fat header ends after %d of %d bytes", size, header)
	}
	n := uint64(f.Order.Uint32(f.Data[4:]))
	if n == 0 {
		return Errorf(4, "a fat file of no architecture")
	}
	if n > (size-header)/entry {
		return Errorf(4, "%d architectures do not fit into a file of %d bytes", n, size)
	}
	if n > maxSlices {
		return Errorf(4, "%d architectures, the kernel reads no more than %d", n, maxSlices)
	}
	end := header + n*entry // no slice begins before it
	for i := range n {
		at := header + i*entry
		b := f.Data[at : at+entry]
		s := Slice{Entry: at, Arch: Arch{CPU: CPU(f.Order.Uint32(b)), Subtype: f.Order.Uint32(b[4:])}}
		var align uint32
		if f.Wide {
			s.Offset, s.Size, align = f.Order.Uint64(b[8:]), f.Order.Uint64(b[16:]), f.Order.Uint32(b[24:])
		} else {
			s.Offset, s.Size, align = uint64(f.Order.Uint32(b[8:])), uint64(f.Order.Uint32(b[12:])), f.Order.Uint32(b[16:])
		}
		switch {
		case align > 31:
			return Errorf(at, "slice %v: alignment 2^%d", s.Arch, align)
		case s.Offset < end && i == 0:
			return Errorf(at, "slice %v begins at %#x, inside the fat header", s.Arch, s.Offset)
		case s.Offset < end:
			return Errorf(at, "slice %v begins at %#x, before the end of the one told before it (%#x)", s.Arch, s.Offset, end)
		case s.Size == 0:
			return Errorf(at, "slice %v is empty", s.Arch)
		case s.Size > size || s.Offset > size-s.Size:
			return Errorf(at, "slice %v, %#x bytes at %#x, ends past the file's %#x", s.Arch, s.Size, s.Offset, size)
		case s.Offset%(1<<align) != 0:
			return Errorf(at, "slice %v begins at %#x, which is not a multiple of its alignment 2^%d", s.Arch, s.Offset, align)
		}
		for _, o := range f.Slices {
			if o.CPU == s.CPU && o.Subtype&SubtypeMask == s.Subtype&SubtypeMask {
				return Errorf(at, "a second slice for %v", s.Arch)
			}
		}
		end = s.Offset + s.Size
		s.Data = f.Data[s.Offset:end:end]
		f.Slices = append(f.Slices, s)
	}
	return nil
}

// What no real file has more of; the checks may then compare each with each.
const (
	maxSlices   = 128 // the kernel looks at the first page of a fat file
	maxCommands = 4096
	maxSegments = 256
	maxSections = 255 // a symbol tells its section in one byte
)

// header is a mach_header or mach_header_64.
type header struct {
	Arch
	order      binary.ByteOrder
	wide       bool
	size       int // of the header itself
	fileType   FileType
	ncmds      uint32
	sizeofcmds uint32
	flags      uint32
}

func readHeader(data []byte, base uint64) (h header, err error) {
	if len(data) < 4 {
		return h, Errorf(base, "%d bytes, too short for a Mach-O header", len(data))
	}
	switch magic := binary.BigEndian.Uint32(data); magic {
	case magic32, magic64:
		h.order, h.wide = binary.BigEndian, magic == magic64
	case magic32Swap, magic64Swap:
		h.order, h.wide = binary.LittleEndian, magic == magic64Swap
	case magicFat, magicFat64, magicFatSwap, magicFat64Sw:
		return h, Errorf(base, "a fat file inside a fat file")
	default:
		return h, Errorf(base, "magic %#08x, not a Mach-O header", magic)
	}
	h.size = 28
	if h.wide {
		h.size = 32
	}
	if len(data) < h.size {
		return h, Errorf(base, "the Mach-O header ends after %d of %d bytes", len(data), h.size)
	}
	u := func(at int) uint32 { return h.order.Uint32(data[at:]) }
	h.Arch = Arch{CPU: CPU(u(4)), Subtype: u(8)}
	h.fileType, h.ncmds, h.sizeofcmds, h.flags = FileType(u(12)), u(16), u(20), u(24)
	if h.wide != (h.CPU>>24 == 1) {
		return h, Errorf(base+4, "%v in a header of %d bytes", h.CPU, h.size)
	}
	return h, nil
}

// within tells whether size bytes at off lie in [lo, hi).
func within(off, size, lo, hi uint64) bool {
	return off >= lo && size <= math.MaxUint64-off && off+size <= hi
}
