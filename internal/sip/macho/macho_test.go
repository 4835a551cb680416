package macho_test

import (
	"encoding/binary"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stead-dev/stead/internal/sip/fixture"
	"github.com/stead-dev/stead/internal/sip/macho"
)

func TestAFatFileIsReadInEveryForm(t *testing.T) {
	parts := []fixture.Slice{
		fixture.Of(fixture.Program{CPU: macho.X86_64}), fixture.Of(fixture.Program{}),
		fixture.Of(fixture.Program{Subtype: macho.SubtypeARM64E | 0x80<<24}),
	}
	for _, wide := range []bool{false, true} {
		for _, order := range []binary.AppendByteOrder{binary.BigEndian, binary.LittleEndian} {
			f, err := macho.Read(fixture.Fat(order, wide, parts...))
			if err != nil {
				t.Fatalf("wide %v, %v: %v", wide, order, err)
			}
			if !f.Fat || f.Wide != wide || f.Order.String() != order.String() {
				t.Errorf("fat %v, wide %v, %v", f.Fat, f.Wide, f.Order)
			}
			var names []string
			for i, s := range f.Slices {
				names = append(names, s.Arch.String())
				if string(s.Data) != string(parts[i].Data) {
					t.Errorf("slice %d has other bytes", i)
				}
				m, err := s.Image()
				if err != nil {
					t.Fatal(err)
				}
				if m.Base != s.Offset || m.Type != macho.Execute || m.Text == nil || m.LinkEdit == nil || m.Platform != macho.PlatformMacOS {
					t.Errorf("slice %d: %+v", i, m)
				}
			}
			if d := cmp.Diff([]string{"x86_64", "arm64", "arm64e"}, names); d != "" {
				t.Error(d)
			}
		}
	}
}

func TestOnlyTheBeginningOfAMachOFileLooksLikeOne(t *testing.T) {
	for in, want := range map[string]bool{
		"\xcf\xfa\xed\xfe": true, "\xfe\xed\xfa\xcf": true, "\xce\xfa\xed\xfe": true, "\xfe\xed\xfa\xce": true,
		"\xca\xfe\xba\xbf": true, "\xbf\xba\xfe\xca": true, "\xbe\xba\xfe\xca": true,
		"\xca\xfe\xba\xbe": true, "\xca\xfe\xba\xbe\x00\x00\x00\x02": true,
		"\xca\xfe\xba\xbe\x00\x00\x00\x34": false, "\xca\xfe\xba\xbe\x00\x03\x00\x2d": false, // Java 8 and 1.1
		"": false, "\xcf\xfa\xed": false, "#!/b": false, "\x7fELF": false, "MZ\x90\x00": false,
	} {
		if got := macho.Sniff([]byte(in)); got != want {
			t.Errorf("%q: %v", in, got)
		}
	}
}

func TestTheRoomAfterTheLoadCommandsIsWhatNobodyUses(t *testing.T) {
	for gap, want := range map[int]int{4: 4, 8: 8, 16: 16, 400: 400} {
		f, err := macho.Read(fixture.Program{Gap: gap}.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		m, err := f.Slices[0].Image()
		if err != nil {
			t.Fatal(err)
		}
		if got := m.Room(); got != want {
			t.Errorf("gap %d: room %d", gap, got)
		}
		// A byte that is not zero may mean something to somebody.
		m.Data[m.CommandsEnd()+3] = 1
		if got := m.Room(); got != 3 {
			t.Errorf("gap %d with a byte in it: room %d", gap, got)
		}
	}
}

func TestTheStringsOfLoadCommandsAreRead(t *testing.T) {
	f, err := macho.Read(fixture.Program{Loads: []fixture.Load{
		{Cmd: macho.LCRpath, Path: "@loader_path"}, {Cmd: macho.LCLoadDylib, Path: "/usr/lib/libSystem.B.dylib"}, {Cmd: macho.LCRpath, Path: ""}}}.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	m, err := f.Slices[0].Image()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range m.Commands {
		if s, at, ok := m.String(c); ok {
			got = append(got, macho.CommandName(c.Cmd)+" "+s)
			if !strings.HasPrefix(string(m.Bytes(c)[at:]), s) {
				t.Errorf("%s does not begin at %d", s, at)
			}
		}
	}
	if d := cmp.Diff([]string{"LC_RPATH @loader_path", "LC_LOAD_DYLIB /usr/lib/libSystem.B.dylib", "LC_RPATH "}, got); d != "" {
		t.Error(d)
	}
}
