package codesign_test

import (
	"testing"

	"github.com/stead-dev/stead/internal/sip/codesign"
	"github.com/stead-dev/stead/internal/sip/fixture"
	"github.com/stead-dev/stead/internal/sip/macho"
)

func FuzzSignature(f *testing.F) {
	second := uint32(codesign.FlagRuntime)
	base := fixture.Program{Text: 0x40}.Bytes()
	for _, s := range []fixture.Signature{
		{Flags: codesign.FlagAdhoc},
		{Flags: codesign.FlagRuntime, XML: fixture.XML("<key>k</key><true/>"), DER: fixture.DER(fixture.Bool{Key: "k", Value: true})},
		{Second: &second},
	} {
		data := fixture.Program{Text: 0x40, Sign: &s}.Bytes()
		m := image(f, data)
		f.Add(data[m.Signature.DataOff:])
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := codesign.Parse(data, 0x1000)
		if err != nil {
			return
		}
		if len(s.Directories) == 0 || s.Directories[0].Slot != codesign.SlotDirectory {
			t.Fatalf("read without a CodeDirectory: %+v", s)
		}
		for _, b := range s.Blobs {
			if b.Offset-0x1000+uint64(len(b.Data)) > uint64(len(data)) {
				t.Fatalf("blob %#x outside", b.Slot)
			}
		}
		s.Verify(image(t, base))
	})
}

func image(t testing.TB, data []byte) *macho.Image {
	t.Helper()
	f, err := macho.Read(data)
	if err != nil {
		t.Fatal(err)
	}
	m, err := f.Slices[0].Image()
	if err != nil {
		t.Fatal(err)
	}
	return m
}
