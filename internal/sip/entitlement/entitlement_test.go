package entitlement_test

import (
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stead-dev/stead/internal/sip/entitlement"
	"github.com/stead-dev/stead/internal/sip/fixture"
)

func plist(body string) string { return string(fixture.XML(body)) }

func TestXMLEntitlementsAreRead(t *testing.T) {
	for name, c := range map[string]struct {
		in   string
		want map[string]any
	}{
		"nothing":              {plist(""), map[string]any{}},
		"booleans":             {plist("<key>a</key><true/><key>b</key>\n<false/>"), map[string]any{"a": true, "b": false}},
		"open tags":            {plist("<key>a</key><true></true>"), map[string]any{"a": true}},
		"a string":             {plist("<key>a</key><string>x &amp; y</string>"), map[string]any{"a": "x & y"}},
		"true as text":         {plist("<key>a</key><string>true</string>"), map[string]any{"a": "true"}},
		"a number":             {plist("<key>a</key><integer>-12</integer>"), map[string]any{"a": int64(-12)}},
		"an array":             {plist("<key>a</key><array><string>x</string><array/></array>"), map[string]any{"a": []any{"x", []any{}}}},
		"a dict":               {plist("<key>a</key><dict><key>b</key><true/></dict>"), map[string]any{"a": map[string]any{"b": true}}},
		"data":                 {plist("<key>a</key><data>\n AQID\n</data>"), map[string]any{"a": []byte{1, 2, 3}}},
		"comments":             {plist("<!-- <key>z</key> --><key>a</key><!-- no --><true/>"), map[string]any{"a": true}},
		"CDATA":                {plist("<key>a</key><string><![CDATA[<x>]]></string>"), map[string]any{"a": "<x>"}},
		"a mark of byte order": {"\ufeff" + plist("<key>a</key><true/>"), map[string]any{"a": true}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := entitlement.XML([]byte(c.in))
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestWrongXMLEntitlementsAreErrorsWithAnOffset(t *testing.T) {
	for name, in := range map[string]string{
		"nothing at all":      "",
		"no plist":            "<dict></dict>",
		"no dictionary":       "<plist><array></array></plist>",
		"cut":                 plist("<key>a</key><true/>")[:150],
		"no value":            plist("<key>a</key>"),
		"no key":              plist("<true/>"),
		"a key twice":         plist("<key>a</key><false/><key>a</key><true/>"),
		"an unknown type":     plist("<key>a</key><real>1</real>"),
		"text between":        plist("x<key>a</key><true/>"),
		"text in a boolean":   plist("<key>a</key><true>false</true>"),
		"an own entity":       `<!DOCTYPE plist [<!ENTITY x "y">]><plist><dict><key>&x;</key><true/></dict></plist>`,
		"too deep":            plist(strings.Repeat("<key>a</key><dict>", 100) + strings.Repeat("</dict>", 100)),
		"two dictionaries":    "<plist><dict></dict><dict></dict></plist>",
		"two property lists":  "<plist><dict></dict></plist><plist></plist>",
		"a number with a dot": plist("<key>a</key><integer>1.5</integer>"),
		"an element in a key": plist("<key><true/></key><true/>"),
		"bad base64":          plist("<key>a</key><data>!</data>"),
		"too large":           plist("<key>a</key><string>" + strings.Repeat("x", entitlement.MaxSize) + "</string>"),
	} {
		t.Run(name, func(t *testing.T) {
			m, err := entitlement.XML([]byte(in))
			var e *entitlement.Error
			if !errors.As(err, &e) {
				t.Errorf("read as %v, error %v", m, err)
			}
		})
	}
}

func TestDEREntitlementsAreRead(t *testing.T) {
	for name, c := range map[string]struct {
		in   []byte
		want map[string]any
	}{
		"nothing":    {fixture.DER(), map[string]any{}},
		"booleans":   {fixture.DER(fixture.Bool{Key: "a", Value: true}, fixture.Bool{Key: "b"}), map[string]any{"a": true, "b": false}},
		"a long key": {fixture.DER(fixture.Bool{Key: strings.Repeat("k", 100), Value: true}), map[string]any{strings.Repeat("k", 100): true}},
		// codesign's bytes for {"a": ["x", 5], "d": {"s": "t"}}, put together by hand from the grammar.
		"a tree": {unhex(t, "7025 020101 b020 300b 0c0161 3006 0c0178 020105", "3011 0c0164 b00c 300a 0c0173 0c0574 65787421"), map[string]any{
			"a": []any{"x", int64(5)}, "d": map[string]any{"s": "text!"}}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := entitlement.DER(c.in)
			if err != nil {
				t.Fatalf("%x: %v", c.in, err)
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func unhex(t *testing.T, parts ...string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(strings.Join(parts, ""), " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestWrongDEREntitlementsAreErrorsWithAnOffset(t *testing.T) {
	good := fixture.DER(fixture.Bool{Key: "a", Value: true})
	change := func(at int, b byte) []byte {
		c := append([]byte(nil), good...)
		c[at] = b
		return c
	}
	deep := unhex(t, "0101ff")
	for range 40 {
		deep = append([]byte{0x30, byte(len(deep))}, deep...)
	}
	pair := append([]byte{0x0c, 0x01, 'a'}, deep...)
	dict := append([]byte{0x30, byte(len(pair))}, pair...)
	root := append([]byte{0x02, 1, 1, 0xb0, byte(len(dict))}, dict...)
	for name, in := range map[string][]byte{
		"nothing at all":        nil,
		"a byte":                {0x70},
		"another tag":           change(0, 0x30),
		"version 2":             change(4, 2),
		"too long":              change(1, good[1]+1),
		"cut":                   good[:len(good)-1],
		"a byte after it":       append(good[:len(good):len(good)], 0),
		"a boolean of 1":        change(len(good)-1, 1),
		"a value of type NULL":  change(len(good)-3, 5),
		"a tag of two bytes":    change(len(good)-3, 0x1f),
		"an indefinite length":  change(1, 0x80),
		"a length of 5 bytes":   change(1, 0x85),
		"a length in long form": append([]byte{0x70, 0x81, good[1]}, good[2:]...),
		"a key twice":           fixture.DER(fixture.Bool{Key: "a"}, fixture.Bool{Key: "a", Value: true}),
		"a key not UTF-8":       fixture.DER(fixture.Bool{Key: "\xff"}),
		"too deep":              append([]byte{0x70, byte(len(root))}, root...),
	} {
		t.Run(name, func(t *testing.T) {
			m, err := entitlement.DER(in)
			var e *entitlement.Error
			if !errors.As(err, &e) {
				t.Errorf("%x read as %v, error %v", in, m, err)
			}
		})
	}
}

func FuzzXML(f *testing.F) {
	f.Add(fixture.XML("<key>a</key><array><string>b</string><integer>3</integer><data>AQID</data></array><key>c</key><false/>"))
	f.Fuzz(func(t *testing.T, b []byte) { entitlement.XML(b) })
}

func FuzzDER(f *testing.F) {
	f.Add(fixture.DER(fixture.Bool{Key: "a", Value: true}, fixture.Bool{Key: "b"}))
	f.Fuzz(func(t *testing.T, b []byte) { entitlement.DER(b) })
}
