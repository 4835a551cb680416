// Package codesign reads, checks and writes the code signatures that lie embedded in Mach-O files.
//
// It reads the SuperBlob of LC_CODE_SIGNATURE with all its CodeDirectories, checks every hash and
// offset in it, and writes ad-hoc signatures (no certificate) that are the same bytes as those of
// Go's linker, of ld64.lld or of `codesign -s -`, whichever layout is asked for. It does not check
// the CMS signature of a certificate, nor resources outside the file.
//
// Structures and constants are those of Apple's cs_blobs.h; everything in a signature is
// big-endian. Errors name offsets in the file.
package codesign

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"fmt"
	"hash"
	"math"

	"github.com/stead-dev/stead/internal/sip/macho"
)

// Magic numbers of blobs.
const (
	magicRequirement   = 0xfade0c00
	magicRequirements  = 0xfade0c01
	magicDirectory     = 0xfade0c02
	magicSuperBlob     = 0xfade0cc0
	magicEntitlements  = 0xfade7171
	magicEntitlementsD = 0xfade7172
	magicWrapper       = 0xfade0b01
)

// Slots of a SuperBlob. Slots 1 to 7 are hashed by the CodeDirectories as special slots.
const (
	SlotDirectory       = 0
	SlotInfo            = 1
	SlotRequirements    = 2
	SlotEntitlements    = 5
	SlotEntitlementsDER = 7
	slotAlternate       = 0x1000 // the first of further CodeDirectories
	slotAlternateEnd    = 0x1005
	SlotCMS             = 0x10000

	maxSpecial = 11 // library constraints are the last that Apple has named
	maxBlobs   = 64 // codesign writes at most some ten
)

// Flags of a CodeDirectory.
const (
	FlagAdhoc        = 0x2
	FlagForcedLV     = 0x10
	FlagRestrict     = 0x800
	FlagRequireLV    = 0x2000
	FlagRuntime      = 0x10000
	FlagLinkerSigned = 0x20000
)

// Versions of the CodeDirectory that added fields.
const (
	versionScatter = 0x20100
	versionTeam    = 0x20200
	versionLimit64 = 0x20300
	versionExecSeg = 0x20400
	versionRuntime = 0x20500

	earliestVersion = 0x20001
	// A version from here on may change the meaning of everything.
	incompatibleVersion = 0x2f000
)

// ExecSegMain is the execSegFlags of a program (a library has 0).
const ExecSegMain = 1

// Signature is an embedded signature. Its slices are parts of the file's bytes.
type Signature struct {
	Offset      uint64 // of the SuperBlob in the file
	Size        uint64 // of the LC_CODE_SIGNATURE's data, padding included
	Blobs       []Blob
	Directories []*Directory // the one in slot 0 first
}

// Blob is a blob of a SuperBlob.
type Blob struct {
	Slot   uint32
	Magic  uint32
	Offset uint64 // in the file
	Data   []byte // with its magic and length
}

// Blob returns the blob in a slot, nil for none.
func (s *Signature) Blob(slot uint32) *Blob {
	for i := range s.Blobs {
		if s.Blobs[i].Slot == slot {
			return &s.Blobs[i]
		}
	}
	return nil
}

// Payload returns a blob's bytes after its magic and length, nil where there is no such blob.
func (s *Signature) Payload(slot uint32) []byte {
	if b := s.Blob(slot); b != nil {
		return b.Data[8:]
	}
	return nil
}

// Directory is a CodeDirectory.
type Directory struct {
	Slot                      uint32
	Offset                    uint64 // in the file
	Version, Flags            uint32
	Identifier, Team          string
	HashType                  HashType
	Platform                  uint8 // not 0: a program of Apple's system
	PageBits                  uint8 // log2 of the page size, 0 for one page of all
	CodeLimit                 uint64
	ExecSegBase, ExecSegLimit uint64
	ExecSegFlags              uint64
	Scatter                   bool
	Special, Code             int // number of hashes

	hashes []byte // of special slots, the highest first, then of pages
	size   int    // of one hash
}

// hashOf returns the hash of a page (n >= 0) or of a special slot (n < 0).
func (d *Directory) hashOf(n int) []byte {
	i := (n + d.Special) * d.size
	return d.hashes[i : i+d.size]
}

// HashType is a hashType of a CodeDirectory.
type HashType uint8

const (
	SHA1            HashType = 1 // 20 bytes; macOS before 10.12 knows no other
	SHA256          HashType = 2 // 32 bytes; what we sign with
	SHA256Truncated HashType = 3 // the first 20 bytes of a SHA-256
	SHA384          HashType = 4 // 48 bytes
)

type hashRow struct {
	name string
	size int
	make func() hash.Hash
}

var hashes = map[HashType]hashRow{
	SHA1:            {"SHA-1", 20, sha1.New},
	SHA256:          {"SHA-256", 32, sha256.New},
	SHA256Truncated: {"SHA-256 truncated", 20, sha256.New},
	SHA384:          {"SHA-384", 48, sha512.New384},
}

func (t HashType) String() string {
	if r, ok := hashes[t]; ok {
		return r.name
	}
	return fmt.Sprintf("hash type %d", uint8(t))
}

// Read reads the signature of an image; it returns nil when the image has none.
func Read(m *macho.Image) (*Signature, error) {
	if m.Signature == nil {
		return nil, nil
	}
	c := m.Commands[m.Signature.Command]
	off, size := m.Signature.DataOff, m.Signature.DataSize
	if off > uint64(len(m.Data)) || size > uint64(len(m.Data))-off {
		return nil, macho.Errorf(m.Base+uint64(c.Offset)+8, "the code signature, %#x bytes at %#x, ends past the slice's %#x", size, off, len(m.Data))
	}
	return Parse(m.Data[off:off+size], m.Base+off)
}

// Parse reads a SuperBlob; base is the offset in the file of data's first byte.
func Parse(data []byte, base uint64) (*Signature, error) {
	const header, entry = 12, 8
	if len(data) < header {
		return nil, macho.Errorf(base, "a code signature of %d bytes", len(data))
	}
	u := func(at int) uint32 { return binary.BigEndian.Uint32(data[at:]) }
	if u(0) != magicSuperBlob {
		return nil, macho.Errorf(base, "code signature: magic %#08x, not %#08x", u(0), magicSuperBlob)
	}
	if n := uint64(u(4)); n < header || n > uint64(len(data)) {
		return nil, macho.Errorf(base+4, "code signature: a SuperBlob of %d bytes in %d", n, len(data))
	}
	s := &Signature{Offset: base, Size: uint64(len(data))}
	data = data[:u(4)]
	n := uint64(u(8))
	if n > uint64(len(data)-header)/entry {
		return nil, macho.Errorf(base+8, "code signature: %d blobs in %d bytes", n, len(data))
	}
	if n > maxBlobs {
		return nil, macho.Errorf(base+8, "code signature: %d blobs, more than %d", n, maxBlobs)
	}
	s.Blobs = make([]Blob, 0, n)
	index := header + int(n)*entry
	for i := range int(n) {
		at := header + i*entry
		b := Blob{Slot: u(at)}
		off := uint64(u(at + 4))
		if off < uint64(index) || off > uint64(len(data)) || uint64(len(data))-off < 8 {
			return nil, macho.Errorf(base+uint64(at)+4, "code signature: the blob of slot %#x begins at %#x of %#x", b.Slot, off, len(data))
		}
		b.Magic, b.Offset = u(int(off)), base+off
		size := uint64(u(int(off) + 4))
		if size < 8 || size > uint64(len(data))-off {
			return nil, macho.Errorf(b.Offset+4, "code signature: the blob of slot %#x has %#x bytes, %#x are there", b.Slot, size, uint64(len(data))-off)
		}
		if s.Blob(b.Slot) != nil {
			return nil, macho.Errorf(base+uint64(at), "code signature: a second blob of slot %#x", b.Slot)
		}
		b.Data = data[off : off+size : off+size]
		s.Blobs = append(s.Blobs, b)
	}
	for i := range s.Blobs {
		b := &s.Blobs[i]
		want, known := slotMagic[b.Slot]
		alternate := b.Slot >= slotAlternate && b.Slot < slotAlternateEnd
		if alternate {
			want, known = magicDirectory, true
		}
		if known && b.Magic != want {
			return nil, macho.Errorf(b.Offset, "code signature: the blob of slot %#x has the magic %#08x, not %#08x", b.Slot, b.Magic, want)
		}
		if b.Slot == SlotDirectory || alternate {
			d, err := readDirectory(b)
			if err != nil {
				return nil, err
			}
			if b.Slot == SlotDirectory {
				s.Directories = append([]*Directory{d}, s.Directories...)
			} else {
				s.Directories = append(s.Directories, d)
			}
		}
	}
	if s.Blob(SlotDirectory) == nil {
		return nil, macho.Errorf(base+8, "code signature: no CodeDirectory in slot 0")
	}
	return s, nil
}

var slotMagic = map[uint32]uint32{
	SlotDirectory: magicDirectory, SlotRequirements: magicRequirements, SlotEntitlements: magicEntitlements,
	SlotEntitlementsDER: magicEntitlementsD, SlotCMS: magicWrapper,
}

func readDirectory(b *Blob) (*Directory, error) {
	bad := func(at int, format string, args ...any) (*Directory, error) {
		return nil, macho.Errorf(b.Offset+uint64(at), "CodeDirectory of slot %#x: "+format, append([]any{b.Slot}, args...)...)
	}
	d, n := b.Data, len(b.Data)
	if n < 44 {
		return bad(4, "%d bytes", n)
	}
	u := func(at int) uint32 { return binary.BigEndian.Uint32(d[at:]) }
	v := u(8)
	if v < earliestVersion || v >= incompatibleVersion {
		return bad(8, "version %#x is not known", v)
	}
	least := 44
	for _, r := range []struct {
		version uint32
		size    int
	}{{versionScatter, 48}, {versionTeam, 52}, {versionLimit64, 64}, {versionExecSeg, 88}, {versionRuntime, 96}} {
		if v >= r.version {
			least = r.size
		}
	}
	if n < least {
		return bad(4, "%d bytes, version %#x has %d", n, v, least)
	}
	dir := &Directory{
		Slot: b.Slot, Offset: b.Offset, Version: v, Flags: u(12), HashType: HashType(d[37]), Platform: d[38], PageBits: d[39],
		CodeLimit: uint64(u(32)),
	}
	row, ok := hashes[dir.HashType]
	if !ok {
		return bad(37, "%v is not known", dir.HashType)
	}
	if int(d[36]) != row.size {
		return bad(36, "hashes of %d bytes, those of %v have %d", d[36], dir.HashType, row.size)
	}
	dir.size = row.size
	if dir.PageBits > 31 {
		return bad(39, "pages of 2^%d bytes", dir.PageBits)
	}
	text := func(field int) (string, error) {
		at := int64(u(field))
		if at < int64(least) || at >= int64(n) {
			_, err := bad(field, "a name at %#x of %#x", at, n)
			return "", err
		}
		i := bytes.IndexByte(d[at:], 0)
		if i < 0 {
			_, err := bad(int(at), "a name that does not end")
			return "", err
		}
		return string(d[at : at+int64(i)]), nil
	}
	var err error
	if dir.Identifier, err = text(20); err != nil {
		return nil, err
	}
	if v >= versionScatter {
		dir.Scatter = u(44) != 0
	}
	if v >= versionTeam && u(48) != 0 {
		if dir.Team, err = text(48); err != nil {
			return nil, err
		}
	}
	if v >= versionLimit64 {
		if l := binary.BigEndian.Uint64(d[56:]); l != 0 {
			dir.CodeLimit = l
		}
	}
	if v >= versionExecSeg {
		dir.ExecSegBase, dir.ExecSegLimit, dir.ExecSegFlags = binary.BigEndian.Uint64(d[64:]), binary.BigEndian.Uint64(d[72:]), binary.BigEndian.Uint64(d[80:])
	}
	special, code, first := uint64(u(24)), uint64(u(28)), uint64(u(16))
	if special > maxSpecial {
		return bad(24, "%d special slots", special)
	}
	size := uint64(row.size)
	if first < uint64(least)+special*size || first > uint64(n) {
		return bad(16, "hashes at %#x, with %d special slots before them, in %#x bytes", first, special, n)
	}
	if code > (uint64(n)-first)/size {
		return bad(28, "%d hashes at %#x in %#x bytes", code, first, n)
	}
	if want := pages(dir.CodeLimit, dir.PageBits); !dir.Scatter && code != want {
		return bad(28, "%d hashes for the %d pages of the code limit %#x", code, want, dir.CodeLimit)
	}
	dir.Special, dir.Code = int(special), int(code)
	dir.hashes = d[first-special*size : first+code*size]
	return dir, nil
}

// pages is the number of pages of size 2^bits that limit bytes take.
func pages(limit uint64, bits uint8) uint64 {
	if bits == 0 {
		return min(limit, 1)
	}
	if size := uint64(1) << bits; limit <= math.MaxUint64-size {
		return (limit + size - 1) >> bits
	}
	return math.MaxUint64
}
