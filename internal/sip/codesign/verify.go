package codesign

import (
	"bytes"

	"github.com/stead-dev/stead/internal/sip/macho"
)

// maxProblems ends a check: a file with more is wrong throughout.
const maxProblems = 20

// Verify checks every hash and every offset of the signature of an image against the image and
// returns what is wrong, each with its offset in the file, nil when all is right. A certificate's
// signature is not checked.
func (s *Signature) Verify(m *macho.Image) []error {
	var bad []error
	say := func(at uint64, format string, args ...any) bool {
		bad = append(bad, macho.Errorf(at, format, args...))
		return len(bad) < maxProblems
	}
	if m.LinkEdit != nil {
		end, sig := m.LinkEdit.FileOff+m.LinkEdit.FileSize, s.Offset-m.Base+s.Size
		if sig != end {
			say(m.Base+sig, "the signature ends at %#x, __LINKEDIT at %#x", sig, end)
		}
		if rest := m.Data[min(end, uint64(len(m.Data))):]; len(rest) > 0 {
			say(m.Base+end, "%#x bytes after __LINKEDIT that no hash covers", len(rest))
		}
	}
	for _, d := range s.Directories {
		if d.Scatter {
			say(d.Offset+44, "a scatter table, which is not known here")
			continue
		}
		if limit := s.Offset - m.Base; d.CodeLimit != limit {
			say(d.Offset+32, "code limit %#x, the signature begins at %#x", d.CodeLimit, limit)
			if d.CodeLimit > uint64(len(m.Data)) {
				continue
			}
		}
		if d.Version >= versionExecSeg && m.Text != nil {
			if d.ExecSegBase != m.Text.FileOff || d.ExecSegLimit != m.Text.FileSize {
				say(d.Offset+64, "executable segment %#x, %#x bytes; __TEXT is %#x, %#x bytes", d.ExecSegBase, d.ExecSegLimit, m.Text.FileOff, m.Text.FileSize)
			}
			if main := d.ExecSegFlags&ExecSegMain != 0; main != (m.Type == macho.Execute) {
				say(d.Offset+80, "executable segment flags %#x of a %v", d.ExecSegFlags, m.Type)
			}
		}
		if !s.verifySpecial(m, d, say) || !d.verifyPages(m, say) {
			break
		}
	}
	return bad
}

type sayFunc func(at uint64, format string, args ...any) bool

// verifySpecial checks the hashes of the other blobs. A slot with a hash and no blob is a file
// outside (Info.plist, resources), which is not looked for; a blob that no hash covers could be
// exchanged by anyone.
func (s *Signature) verifySpecial(m *macho.Image, d *Directory, say sayFunc) bool {
	row := hashes[d.HashType]
	for slot := 1; slot <= maxSpecial; slot++ {
		var data []byte
		if b := s.Blob(uint32(slot)); b != nil {
			data = b.Data
		} else if slot == SlotInfo {
			data = InfoPlist(m)
		}
		var want []byte
		if slot <= d.Special {
			if want = d.hashOf(-slot); allZero(want) {
				want = nil
			}
		}
		if data == nil || slot == SlotInfo && want == nil {
			continue
		}
		if want == nil {
			if !say(s.Blob(uint32(slot)).Offset, "the blob of slot %d is not hashed by the CodeDirectory of slot %#x", slot, d.Slot) {
				return false
			}
			continue
		}
		h := row.make()
		h.Write(data)
		if !bytes.Equal(h.Sum(nil)[:row.size], want) {
			at := d.Offset
			if b := s.Blob(uint32(slot)); b != nil {
				at = b.Offset
			}
			if !say(at, "the %v of slot %d is not that in the CodeDirectory of slot %#x", d.HashType, slot, d.Slot) {
				return false
			}
		}
	}
	return true
}

func (d *Directory) verifyPages(m *macho.Image, say sayFunc) bool {
	row := hashes[d.HashType]
	limit := min(d.CodeLimit, uint64(len(m.Data)))
	size := limit
	if d.PageBits > 0 {
		size = 1 << d.PageBits
	}
	h := row.make()
	var sum [64]byte
	for i := range d.Code {
		from := uint64(i) * size
		to := min(from+size, limit)
		if from >= to {
			return say(d.Offset+28, "a hash for page %d, past the end of the slice", i)
		}
		h.Reset()
		h.Write(m.Data[from:to])
		if !bytes.Equal(h.Sum(sum[:0])[:row.size], d.hashOf(i)) {
			if !say(m.Base+from, "page %d: its %v is not that in the CodeDirectory of slot %#x", i, d.HashType, d.Slot) {
				return false
			}
		}
	}
	return true
}

// InfoPlist returns the section __TEXT,__info_plist, which slot 1 hashes where a program is no
// bundle; nil for none.
func InfoPlist(m *macho.Image) []byte {
	for _, s := range m.Segments {
		for _, x := range s.Sections {
			if x.Segment == "__TEXT" && x.Name == "__info_plist" && !x.Zerofill && x.Offset <= uint64(len(m.Data)) && x.Size <= uint64(len(m.Data))-x.Offset {
				return m.Data[x.Offset : x.Offset+x.Size]
			}
		}
	}
	return nil
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
