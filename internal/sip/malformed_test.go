package sip

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stead-dev/stead/internal/sip/codesign"
	"github.com/stead-dev/stead/internal/sip/macho"
)

var (
	le = binary.LittleEndian
	be = binary.BigEndian
)

// command returns the offset of the nth load command cmd of a thin little-endian file.
func command(b []byte, cmd uint32, nth int) int {
	at := 32
	for range le.Uint32(b[16:]) {
		if le.Uint32(b[at:]) == cmd {
			if nth == 0 {
				return at
			}
			nth--
		}
		at += int(le.Uint32(b[at+4:]))
	}
	panic(fmt.Sprintf("the test's file has no load command %#x", cmd))
}

// Changes of a good file. A file is changed in place, or returned anew.
type change func(b []byte) []byte

func cut(n int) change { return func(b []byte) []byte { return b[:n] } }

func put32(order binary.ByteOrder, at int, v uint32) change {
	return func(b []byte) []byte { order.PutUint32(b[at:], v); return b }
}

// field32 and field64 change a field of a load command.
func field32(cmd uint32, nth, at int, v uint32) change {
	return func(b []byte) []byte { le.PutUint32(b[command(b, cmd, nth)+at:], v); return b }
}

func field64(cmd uint32, nth, at int, v uint64) change {
	return func(b []byte) []byte { le.PutUint64(b[command(b, cmd, nth)+at:], v); return b }
}

// add32 adds to a field of a load command.
func add32(cmd uint32, nth, at int, v uint32) change {
	return func(b []byte) []byte {
		f := b[command(b, cmd, nth)+at:]
		le.PutUint32(f, le.Uint32(f)+v)
		return b
	}
}

func add64(cmd uint32, nth, at int, v uint64) change {
	return func(b []byte) []byte {
		f := b[command(b, cmd, nth)+at:]
		le.PutUint64(f, le.Uint64(f)+v)
		return b
	}
}

// sig32 changes a field of the signature, dir32 and dir8 one of its first CodeDirectory, blob32 one
// of the blob in the nth place.
func sig32(at int, v uint32) change {
	return func(b []byte) []byte { be.PutUint32(signature(b)[at:], v); return b }
}

func blob32(nth, at int, v uint32) change {
	return func(b []byte) []byte {
		s := signature(b)
		be.PutUint32(s[int(be.Uint32(s[16+8*nth:]))+at:], v)
		return b
	}
}

func dir32(at int, v uint32) change { return blob32(0, at, v) }

func dir8(at int, v byte) change {
	return func(b []byte) []byte {
		s := signature(b)
		s[int(be.Uint32(s[16:]))+at] = v
		return b
	}
}

func signature(b []byte) []byte {
	return b[le.Uint32(b[command(b, macho.LCCodeSignature, 0)+8:]):]
}

func both(cs ...change) change {
	return func(b []byte) []byte {
		for _, c := range cs {
			b = c(b)
		}
		return b
	}
}

const (
	seg  = macho.LCSegment64
	sign = macho.LCCodeSignature
	text = 1 // the segments of a fixture, in order
	link = 2
)

// malformed are files made of good ones, each of which must give an error with its offset from
// the reader, from the patcher or from the verifier.
var malformed = []struct {
	base, name string
	change     change
}{
	{"arm64", "cut to nothing but the magic", cut(4)},
	{"arm64", "cut inside the magic", cut(3)},
	{"arm64", "cut inside the header", cut(31)},
	{"arm64", "cut after the header", cut(32)},
	{"arm64", "cut inside the load commands", cut(100)},
	{"arm64", "cut inside __TEXT", cut(0x3000)},
	{"arm64", "cut inside __LINKEDIT", cut(0x4010)},
	{"arm64", "cut inside the signature", func(b []byte) []byte { return b[:len(b)-1] }},
	{"arm64", "another magic", put32(le, 0, 0xfeedfac0)},
	{"arm64", "a 32-bit magic", put32(le, 0, 0xfeedface)},
	{"arm64", "a big-endian header", put32(be, 0, 0xfeedfacf)},
	{"arm64", "a 32-bit CPU", put32(le, 4, 7)},
	{"arm64", "an unknown CPU", put32(le, 4, 0x01000063)},
	{"arm64", "an object file", put32(le, 12, 1)},
	{"arm64", "an unknown file type", put32(le, 12, 99)},
	{"arm64", "2^32-1 load commands", put32(le, 16, 0xffffffff)},
	{"arm64", "one load command more than there are", func(b []byte) []byte { le.PutUint32(b[16:], le.Uint32(b[16:])+1); return b }},
	{"arm64", "one load command less than there are", func(b []byte) []byte { le.PutUint32(b[16:], le.Uint32(b[16:])-1); return b }},
	{"arm64", "load commands of 2^32-1 bytes", put32(le, 20, 0xffffffff)},
	{"arm64", "load commands of 0 bytes", put32(le, 20, 0)},
	{"arm64", "load commands up to the file's end", func(b []byte) []byte { le.PutUint32(b[20:], uint32(len(b)-32)); return b }},
	{"arm64", "a load command of 0 bytes", put32(le, 32+4, 0)},
	{"arm64", "a load command of 7 bytes", put32(le, 32+4, 7)},
	{"arm64", "a load command of 2^32-8 bytes", put32(le, 32+4, 0xfffffff8)},
	{"arm64", "a load command that is not aligned", add32(macho.LCRpath, 0, 4, 4)},
	{"arm64", "a segment command too short", field32(seg, 0, 4, 64)},
	{"arm64", "a 32-bit segment", func(b []byte) []byte { le.PutUint32(b[command(b, seg, 0):], macho.LCSegment); return b }},
	{"arm64", "2^32-1 sections", field32(seg, text, 64, 0xffffffff)},
	{"arm64", "a section more than there is", field32(seg, text, 64, 2)},
	{"arm64", "a segment that begins past the end", field64(seg, text, 40, 1<<40)},
	{"arm64", "a segment that ends past the end", field64(seg, link, 48, 1<<40)},
	{"arm64", "an empty __LINKEDIT past the end", both(field64(seg, link, 40, 1<<40), field64(seg, link, 48, 0))},
	{"arm64", "a segment whose end overflows", both(field64(seg, link, 40, 1<<63), field64(seg, link, 48, 1<<63))},
	{"arm64", "a segment whose address overflows", field64(seg, link, 24, 0xffffffffffffff00)},
	{"arm64", "a segment with less memory than bytes", field64(seg, link, 32, 1)},
	{"arm64", "segments that overlap in the file", add64(seg, link, 40, ^uint64(0xf))},
	{"arm64", "segments that overlap in memory", add64(seg, link, 24, ^uint64(0xfff))},
	{"arm64", "two segments of one name", func(b []byte) []byte { copy(b[command(b, seg, 0)+8:], "__TEXT\x00\x00\x00\x00"); return b }},
	{"arm64", "a section outside its segment", field32(seg, text, 72+48, 0x4000)},
	{"arm64", "a section inside the load commands", field32(seg, text, 72+48, 0x20)},
	{"arm64", "a section of 2^64-1 bytes", field64(seg, text, 72+40, 0xffffffffffffffff)},
	{"arm64", "no __LINKEDIT", func(b []byte) []byte { copy(b[command(b, seg, link)+8:], "__XINKEDIT"); return b }},
	{"arm64", "symbols outside __LINKEDIT", field32(macho.LCSymtab, 0, 8, 0x100)},
	{"arm64", "2^32-1 symbols", field32(macho.LCSymtab, 0, 12, 0xffffffff)},
	{"arm64", "symbols' names inside the signature", add32(macho.LCSymtab, 0, 20, 0x40)},
	{"arm64", "a path that begins past its command", field32(macho.LCRpath, 0, 8, 0x1000)},
	{"arm64", "a path that begins inside its command's head", field32(macho.LCLoadDylib, 0, 8, 4)},
	{"arm64", "a path that does not end", func(b []byte) []byte {
		at := command(b, macho.LCRpath, 0)
		for i := at + 12; i < at+int(le.Uint32(b[at+4:])); i++ {
			b[i] = 'x'
		}
		return b
	}},
	{"arm64", "two signatures", func(b []byte) []byte {
		at := command(b, macho.LCBuildVersion, 0)
		le.PutUint32(b[at:], sign)
		return b
	}},
	{"arm64", "a signature past the end", field32(sign, 0, 8, 0x7fffffff)},
	{"arm64", "a signature of 2^32-1 bytes", field32(sign, 0, 12, 0xffffffff)},
	{"arm64", "a signature of 0 bytes", field32(sign, 0, 12, 0)},
	{"arm64", "a signature before __LINKEDIT's end", both(add32(sign, 0, 12, ^uint32(15)), func(b []byte) []byte {
		s := signature(b)
		be.PutUint32(s[4:], be.Uint32(s[4:])-16)
		be.PutUint32(s[8:], 2) // without the last blob, which would end past it
		return b
	})},
	{"arm64", "a signature outside __LINKEDIT", field32(sign, 0, 8, 0x1000)},
	{"arm64", "bytes after __LINKEDIT", func(b []byte) []byte { return append(b, "appended"...) }},
	{"arm64", "a SuperBlob of another magic", sig32(0, 0xfade0cc1)},
	{"arm64", "a SuperBlob of 2^32-1 bytes", sig32(4, 0xffffffff)},
	{"arm64", "a SuperBlob of 4 bytes", sig32(4, 4)},
	{"arm64", "2^32-1 blobs", sig32(8, 0xffffffff)},
	{"arm64", "no blob", sig32(8, 0)},
	{"arm64", "a blob past the end", sig32(16, 0x7fffffff)},
	{"arm64", "a blob inside the index", sig32(16, 8)},
	{"arm64", "a blob of 0 bytes", dir32(4, 0)},
	{"arm64", "a blob of 2^32-1 bytes", blob32(1, 4, 0xffffffff)},
	{"arm64", "a second CodeDirectory in slot 0", sig32(20, 0)},
	{"arm64", "requirements of another magic", blob32(1, 0, 0xfade0c02)},
	{"arm64", "a CodeDirectory of another magic", dir32(0, 0xfade0c01)},
	{"arm64", "a CodeDirectory cut in its head", dir32(4, 60)},
	{"arm64", "a CodeDirectory of version 1", dir32(8, 1)},
	{"arm64", "a CodeDirectory of a version to come", dir32(8, 0x30000)},
	{"arm64", "hashes past the CodeDirectory", dir32(16, 0xfffffff0)},
	{"arm64", "hashes over the CodeDirectory's head", dir32(16, 8)},
	{"arm64", "an identifier past the end", dir32(20, 0xffffffff)},
	{"arm64", "an identifier that does not end", both(func(b []byte) []byte {
		s := signature(b)
		d := s[be.Uint32(s[16:]):]
		last := be.Uint32(d[4:]) - 1
		be.PutUint32(d[20:], last)
		d[last] = 'x'
		return b
	})},
	{"arm64", "2^32-1 special slots", dir32(24, 0xffffffff)},
	{"arm64", "2^32-1 hashes", dir32(28, 0xffffffff)},
	{"arm64", "a code limit in the middle", dir32(32, 0x2000)},
	{"arm64", "a code limit in the middle with its number of hashes", both(dir32(32, 0x2000), dir32(28, 2))},
	{"arm64", "a code limit past the end", dir32(32, 0xfffffff0)},
	{"arm64", "hashes of another size", dir8(36, 20)},
	{"arm64", "an unknown hash", dir8(37, 9)},
	{"arm64", "pages of 2^200 bytes", dir8(39, 200)},
	{"arm64", "a scatter table", dir32(44, 0x58)},
	{"arm64", "a team past the end", dir32(48, 0xffffff)},
	{"arm64", "another executable segment", dir32(76, 0x100)},
	{"arm64", "a byte changed in the code", func(b []byte) []byte { b[0x3fff] ^= 1; return b }},
	{"arm64", "a byte changed in the load commands", func(b []byte) []byte { b[command(b, macho.LCBuildVersion, 0)+12] ^= 1; return b }},
	{"arm64", "a byte changed in the requirements", blob32(1, 8, 1)},
	{"hardened", "entitlements that are no property list", func(b []byte) []byte {
		return bytes.Replace(b, []byte("<plist version"), []byte("<flist version"), 1)
	}},
	{"hardened", "entitlements that end early", func(b []byte) []byte { return bytes.Replace(b, []byte("</array>"), []byte("<!array>"), 1) }},
	{"hardened", "DER of a wrong length", func(b []byte) []byte {
		i := bytes.Index(b, []byte{0xfa, 0xde, 0x71, 0x72})
		b[i+9]++
		return b
	}},
	{"hardened", "an entitlement changed after signing", func(b []byte) []byte { return bytes.Replace(b, []byte("<integer>3"), []byte("<integer>4"), 1) }},
	{"no room", "no room for a load command", func(b []byte) []byte { return b }},
	{"fat", "cut in the fat header", cut(6)},
	{"fat", "cut in the list of slices", cut(30)},
	{"fat", "cut before the last slice", func(b []byte) []byte { return b[:be.Uint32(b[8+2*20+8:])] }},
	{"fat", "2^32-1 slices", put32(be, 4, 0xffffffff)},
	{"fat", "no slice", put32(be, 4, 0)},
	{"fat", "a slice inside the fat header", put32(be, 8+8, 0)},
	{"fat", "slices that overlap", func(b []byte) []byte { be.PutUint32(b[8+12:], be.Uint32(b[8+12:])+0x10000); return b }},
	{"fat", "slices out of order", func(b []byte) []byte {
		first := bytes.Clone(b[8:28])
		copy(b[8:28], b[28:48])
		copy(b[28:48], first)
		return b
	}},
	{"fat", "a slice past the end", put32(be, 8+2*20+8, 0x7fffc000)},
	{"fat", "a slice whose end overflows", put32(be, 8+2*20+12, 0xffffffff)},
	{"fat", "an empty slice", put32(be, 8+12, 0)},
	{"fat", "a slice that is not aligned", put32(be, 8+16, 20)},
	{"fat", "an alignment of 2^200", put32(be, 8+16, 200)},
	{"fat", "two slices for one CPU", put32(be, 8, uint32(macho.ARM64))},
	{"fat", "a slice of another CPU than it says", put32(be, 8, uint32(macho.PPC64))},
	{"fat", "a fat file in a fat file", func(b []byte) []byte { copy(b[be.Uint32(b[16:]):], b[:64]); return b }},
	{"fat", "a slice that is something else", func(b []byte) []byte { copy(b[be.Uint32(b[16:]):], "#!/bin/sh"); return b }},
	{"fat64", "a slice at 2^64-1", func(b []byte) []byte { le.PutUint64(b[8+8:], 0xffffffffffffc000); return b }},
	{"fat64", "a slice of 2^64-1 bytes", func(b []byte) []byte { le.PutUint64(b[8+16:], ^uint64(0)); return b }},
	{"fat64", "2^31 slices", put32(le, 4, 1<<31)},
}

func TestMalformedFilesGiveErrorsThatNameTheOffset(t *testing.T) {
	if len(malformed) < 60 {
		t.Fatalf("only %d files", len(malformed))
	}
	dir := t.TempDir()
	p := testPatcher(t, Options{})
	seen := map[string]bool{}
	for i, c := range malformed {
		if seen[c.base+c.name] {
			t.Fatalf("%q twice", c.name)
		}
		seen[c.base+c.name] = true
		t.Run(c.base+" with "+c.name, func(t *testing.T) {
			good := seeds()[c.base]
			bad := c.change(bytes.Clone(good))
			if bytes.Equal(good, bad) && c.base != "no room" {
				t.Fatal("the test changes nothing")
			}
			path := filepath.Join(dir, fmt.Sprint(i))
			if err := os.WriteFile(path, bad, 0o755); err != nil {
				t.Fatal(err)
			}
			err := firstError(t, p, path)
			var f *macho.FormatError
			if !errors.As(err, &f) || !strings.Contains(err.Error(), "offset 0x") {
				t.Fatalf("error: %v", err)
			}
			if f.Offset > uint64(len(bad)) {
				t.Errorf("the offset %#x of %q is not in the file of %#x bytes", f.Offset, err, len(bad))
			}
		})
	}
}

// firstError returns the first error of inspecting, patching and verifying a file.
func firstError(t *testing.T, p *Patcher, path string) error {
	if _, err := p.Inspect(path); err != nil {
		return err
	}
	checks, err := Verify(path)
	if err != nil {
		return err
	}
	for _, c := range checks {
		if len(c.Problems) > 0 {
			return c.Problems[0]
		}
	}
	_, err = p.Patch(t.Context(), path)
	return err
}

func TestTheFilesThatAreMadeMalformedWereGood(t *testing.T) {
	p := testPatcher(t, Options{})
	for name, b := range seeds() {
		if name == "no room" || name == "class file" {
			continue
		}
		path := filepath.Join(t.TempDir(), "good")
		if err := os.WriteFile(path, b, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := firstError(t, p, path); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestReadingAMalformedFileAllocatesNoMoreThanItsSize(t *testing.T) {
	// What does not grow with the file: errors, the report's strings, the XML decoder's buffers.
	const fixed = 96 << 10
	for _, c := range malformed {
		bad := c.change(bytes.Clone(seeds()[c.base]))
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		archs, err := readArchs(bad)
		if err == nil {
			for i := range archs {
				planEdit(&archs[i], "/", "x")
			}
		}
		runtime.ReadMemStats(&after)
		if got := after.TotalAlloc - before.TotalAlloc; got > uint64(len(bad))+fixed {
			t.Errorf("%s with %s: %d bytes allocated for a file of %d", c.base, c.name, got, len(bad))
		}
	}
}

func TestCountsThatClaimMuchAllocateLittle(t *testing.T) {
	// The largest counts that pass the first check, in a file of 1 MiB of nothing else.
	size := 1 << 20
	thin := make([]byte, size)
	for i, v := range []uint32{0xfeedfacf, uint32(macho.ARM64), 0, 2, uint32(size-32) / 8, uint32(size - 32), 0} {
		le.PutUint32(thin[4*i:], v)
	}
	for at := 32; at < size; at += 8 {
		le.PutUint32(thin[at:], 0x99)
		le.PutUint32(thin[at+4:], 8)
	}
	fat := make([]byte, size)
	be.PutUint32(fat, 0xcafebabe)
	be.PutUint32(fat[4:], uint32(size-8)/20)
	super := make([]byte, size)
	be.PutUint32(super, 0xfade0cc0)
	be.PutUint32(super[4:], uint32(size))
	be.PutUint32(super[8:], uint32(size-12)/8)
	for name, read := range map[string]func() error{
		"load commands": func() error { _, err := readArchs(thin); return err },
		"slices":        func() error { _, err := readArchs(fat); return err },
		"blobs":         func() error { _, err := codesign.Parse(super, 0); return err },
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := read()
		runtime.ReadMemStats(&after)
		if err == nil {
			t.Errorf("%s: no error", name)
		}
		if got := after.TotalAlloc - before.TotalAlloc; got > 64<<10 {
			t.Errorf("%s: %d bytes allocated", name, got)
		}
	}
}

// testPatcher returns a patcher with a cache of its own.
func testPatcher(t testing.TB, o Options) *Patcher {
	t.Helper()
	if o.Cache == "" {
		o.Cache = filepath.Join(t.TempDir(), "cache")
	}
	p, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}
