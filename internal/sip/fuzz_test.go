package sip

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/stead-dev/stead/internal/sip/codesign"
	"github.com/stead-dev/stead/internal/sip/fixture"
	"github.com/stead-dev/stead/internal/sip/macho"
)

// seeds are small files of every shape that the readers know.
func seeds() map[string][]byte {
	yes := fixture.XML("<key>" + allowDyld + "</key><true/><key>a</key><array><string>b</string><integer>3</integer></array>")
	second := uint32(codesign.FlagRuntime)
	arm := fixture.Program{Sign: &fixture.Signature{Flags: codesign.FlagAdhoc}, Text: 0x300, Loads: []fixture.Load{
		{Cmd: macho.LCRpath, Path: "@executable_path/../lib"}, {Cmd: macho.LCLoadDylib, Path: "@rpath/x.dylib"}}}
	intel := fixture.Program{CPU: macho.X86_64, Text: 0x200}
	e := fixture.Program{Subtype: macho.SubtypeARM64E, Sign: &fixture.Signature{Platform: 1}}
	return map[string][]byte{
		"arm64": arm.Bytes(),
		"hardened": fixture.Program{Restrict: true, Sign: &fixture.Signature{
			Flags: codesign.FlagRuntime, XML: yes, DER: fixture.DER(fixture.Bool{Key: allowDyld, Value: true}), Second: &second}}.Bytes(),
		"unsigned":   intel.Bytes(),
		"no room":    fixture.Program{CPU: macho.X86_64, Gap: 8}.Bytes(),
		"dylib":      fixture.Program{Type: macho.Dylib, Loads: []fixture.Load{{Cmd: macho.LCIDDylib, Path: "@rpath/y.dylib"}}}.Bytes(),
		"fat":        fixture.Fat(binary.BigEndian, false, fixture.Of(intel), fixture.Of(arm), fixture.Of(e)),
		"fat64":      fixture.Fat(binary.LittleEndian, true, fixture.Of(intel), fixture.Of(arm)),
		"class file": append([]byte{0xca, 0xfe, 0xba, 0xbe, 0, 0, 0, 65}, make([]byte, 64)...),
	}
}

// copyOf makes in memory the copy that Patch would write.
func copyOf(data []byte, host macho.CPU, dir string) (copied []byte, a *arch, e *edit, err error) {
	archs, err := readArchs(data)
	if err != nil {
		return nil, nil, nil, err
	}
	if a = choose(archs, host, true); a == nil {
		return nil, nil, nil, errARM64E
	}
	if e, err = planEdit(a, dir, "program"); err != nil {
		return nil, nil, nil, err
	}
	pages, err := codesign.HashPages(a.image.Data, direct)
	if err != nil {
		return nil, nil, nil, err
	}
	var b bytes.Buffer
	err = e.write(&b, a.image.Data, pages, direct)
	return b.Bytes(), a, e, err
}

func direct(fn func()) error { fn(); return nil }

// checkCopy holds for every file that can be copied, however odd: the copy is read without an
// error, all of its hashes are right, nothing protects it, and a copy of it is the same again.
func checkCopy(t *testing.T, data []byte, host macho.CPU) {
	copied, _, _, err := copyOf(data, host, "/original/dir")
	if err != nil {
		return
	}
	archs, err := readArchs(copied)
	if err != nil {
		t.Fatalf("the copy cannot be read: %v", err)
	}
	a := &archs[0]
	if bad := a.sig.Verify(a.image); bad != nil {
		t.Fatalf("the copy does not verify: %v", bad)
	}
	if protected, why := judge(a); protected {
		t.Fatalf("the copy is protected: %v", why)
	}
	again, _, _, err := copyOf(copied, host, "/original/dir")
	if err != nil || !bytes.Equal(copied, again) {
		t.Fatalf("a copy of the copy is another one (%v)", err)
	}
}

func FuzzMachO(f *testing.F) {
	// Small ones: a changed byte shall mostly hit something that is read.
	second := uint32(codesign.FlagRuntime)
	small := fixture.Program{Tail: 16, Text: 32, Restrict: true, Loads: []fixture.Load{
		{Cmd: macho.LCRpath, Path: "@executable_path/../lib"}, {Cmd: macho.LCLoadDylib, Path: "@rpath/x.dylib"},
		{Cmd: macho.LCDyldEnvironment, Path: "DYLD_LIBRARY_PATH=/x:@loader_path"}}}
	f.Add(small.Bytes())
	small.Sign = &fixture.Signature{Flags: codesign.FlagRuntime, Second: &second,
		XML: []byte("<plist><dict><key>a</key><true/></dict></plist>"), DER: fixture.DER(fixture.Bool{Key: "a"})}
	f.Add(small.Bytes())
	f.Add(fixture.Program{Tail: 16, Text: 32, CPU: macho.X86_64}.Bytes())
	f.Add(fixture.Program{Tail: 16, Text: 32, Type: macho.Dylib, Sign: &fixture.Signature{}}.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		checkCopy(t, data, macho.ARM64)
		checkCopy(t, data, macho.X86_64)
		verify(data)
	})
}

func FuzzFatHeader(f *testing.F) {
	// The slices are long and of no interest here: only the header is varied.
	body := seeds()["fat"]
	f.Add(body[:128])
	f.Add(seeds()["fat64"][:128])
	f.Fuzz(func(t *testing.T, head []byte) {
		data := bytes.Clone(body)
		copy(data, head)
		m, err := macho.Read(data)
		if err != nil {
			return
		}
		end := uint64(0)
		for _, s := range m.Slices {
			if s.Offset < end || s.Offset+s.Size > uint64(len(data)) || uint64(len(s.Data)) != s.Size {
				t.Fatalf("slice %+v", s)
			}
			end = s.Offset + s.Size
		}
	})
}
