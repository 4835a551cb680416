// Package entitlement reads the entitlements of a code signature: XML property lists (slot 5) and
// the DER that newer systems go by (slot 7).
//
// Values become bool, int64, string, []byte, []any and map[string]any. A reader returns an error
// with the offset in its input, never panics, follows no more than maxDepth levels and takes no
// input over MaxSize. Dates, reals and UIDs of property lists do not occur in entitlements and
// are errors, so that nothing is passed over.
package entitlement

import (
	"bytes"
	"encoding/base64"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"
)

const (
	// MaxSize is the largest input in bytes; real entitlements have some KiB.
	MaxSize  = 1 << 20
	maxDepth = 32
)

// Error is where in the input, and what.
type Error struct {
	Offset int64
	Msg    string
}

func (e *Error) Error() string { return fmt.Sprintf("entitlements, byte %d: %s", e.Offset, e.Msg) }

func errorf(at int64, format string, args ...any) error {
	return &Error{at, fmt.Sprintf(format, args...)}
}

// XML reads a property list in XML whose root is a dictionary.
func XML(data []byte) (map[string]any, error) {
	if len(data) > MaxSize {
		return nil, errorf(0, "%d bytes, more than %d", len(data), MaxSize)
	}
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	r := xmlReader{xml.NewDecoder(bytes.NewReader(data))}
	start, err := r.start()
	if err != nil {
		return nil, err
	}
	if start == nil || start.Name.Local != "plist" {
		return nil, errorf(r.d.InputOffset(), "no element plist")
	}
	if start, err = r.start(); err != nil {
		return nil, err
	}
	if start == nil || start.Name.Local != "dict" {
		return nil, errorf(r.d.InputOffset(), "the property list is not a dictionary")
	}
	v, err := r.value(start, 0)
	if err != nil {
		return nil, err
	}
	if start, err = r.start(); err != nil {
		return nil, err
	}
	if start != nil {
		return nil, errorf(r.d.InputOffset(), "a second value %s in the property list", start.Name.Local)
	}
	if start, err = r.start(); err != nil {
		return nil, err
	}
	if start != nil {
		return nil, errorf(r.d.InputOffset(), "element %s after the property list", start.Name.Local)
	}
	m, _ := v.(map[string]any)
	return m, nil
}

type xmlReader struct{ d *xml.Decoder }

// start returns the next element that begins, nil at the end of the one that holds it (or of all).
func (r xmlReader) start() (*xml.StartElement, error) {
	for {
		t, err := r.d.Token()
		if errors.Is(err, io.EOF) {
			return nil, nil
		}
		if err != nil {
			return nil, errorf(r.d.InputOffset(), "%v", err)
		}
		switch t := t.(type) {
		case xml.StartElement:
			return &t, nil
		case xml.EndElement:
			return nil, nil
		case xml.CharData:
			if len(bytes.TrimSpace(t)) > 0 {
				return nil, errorf(r.d.InputOffset(), "text %.20q between elements", t)
			}
		}
	}
}

// text returns the text of the element that has begun.
func (r xmlReader) text() (string, error) {
	var s strings.Builder
	for {
		t, err := r.d.Token()
		if err != nil {
			return "", errorf(r.d.InputOffset(), "%v", err)
		}
		switch t := t.(type) {
		case xml.CharData:
			s.Write(t)
		case xml.EndElement:
			return s.String(), nil
		case xml.StartElement:
			return "", errorf(r.d.InputOffset(), "element %s inside text", t.Name.Local)
		}
	}
}

func (r xmlReader) value(e *xml.StartElement, depth int) (any, error) {
	at := r.d.InputOffset()
	if depth > maxDepth {
		return nil, errorf(at, "more than %d levels", maxDepth)
	}
	switch name := e.Name.Local; name {
	case "dict":
		m := map[string]any{}
		for {
			k, err := r.start()
			if err != nil || k == nil {
				return m, err
			}
			if k.Name.Local != "key" {
				return nil, errorf(r.d.InputOffset(), "%s where a key must be", k.Name.Local)
			}
			key, err := r.text()
			if err != nil {
				return nil, err
			}
			v, err := r.start()
			if err != nil {
				return nil, err
			}
			if v == nil {
				return nil, errorf(r.d.InputOffset(), "key %q has no value", key)
			}
			if _, twice := m[key]; twice {
				return nil, errorf(r.d.InputOffset(), "key %q twice", key)
			}
			if m[key], err = r.value(v, depth+1); err != nil {
				return nil, err
			}
		}
	case "array":
		a := []any{}
		for {
			v, err := r.start()
			if err != nil || v == nil {
				return a, err
			}
			x, err := r.value(v, depth+1)
			if err != nil {
				return nil, err
			}
			a = append(a, x)
		}
	case "true", "false", "string", "integer", "data":
		s, err := r.text()
		if err != nil {
			return nil, err
		}
		switch name {
		case "string":
			return s, nil
		case "integer":
			n, err := strconv.ParseInt(strings.TrimSpace(s), 0, 64)
			if err != nil {
				return nil, errorf(at, "integer %.30q", s)
			}
			return n, nil
		case "data":
			b, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(s), ""))
			if err != nil {
				return nil, errorf(at, "data: %v", err)
			}
			return b, nil
		}
		if strings.TrimSpace(s) != "" {
			return nil, errorf(at, "text in %s", name)
		}
		return name == "true", nil
	}
	return nil, errorf(at, "a value of type %s", e.Name.Local)
}

// Tags of Apple's DER: an application tag holds the version and a dictionary, which is a context
// tag of key-value pairs in the order of their keys.
const (
	tagBool     = 0x01
	tagInt      = 0x02
	tagOctets   = 0x04
	tagUTF8     = 0x0c
	tagSequence = 0x30
	tagRoot     = 0x70 // [APPLICATION 16], constructed
	tagDict     = 0xb0 // [CONTEXT 16], constructed
)

// DER reads entitlements in Apple's DER.
func DER(data []byte) (map[string]any, error) {
	if len(data) > MaxSize {
		return nil, errorf(0, "%d bytes, more than %d", len(data), MaxSize)
	}
	all := der{data, 0}
	root, err := all.next(tagRoot)
	if err != nil {
		return nil, err
	}
	if len(all.b) > 0 {
		return nil, errorf(all.at, "%d bytes after the end", len(all.b))
	}
	n, err := root.next(tagInt)
	if err != nil {
		return nil, err
	}
	if v, err := n.integer(); err != nil || v != 1 {
		return nil, errorf(n.at, "version %x", n.b)
	}
	d, err := root.next(tagDict)
	if err != nil {
		return nil, err
	}
	if len(root.b) > 0 {
		return nil, errorf(root.at, "%d bytes after the dictionary", len(root.b))
	}
	return d.dict(0)
}

// der is what is left of a value's content, and its offset.
type der struct {
	b  []byte
	at int64
}

// element takes the next element off d.
func (d *der) element() (tag byte, e der, err error) {
	if len(d.b) < 2 {
		return 0, e, errorf(d.at, "an element of %d bytes", len(d.b))
	}
	tag = d.b[0]
	if tag&0x1f == 0x1f {
		return 0, e, errorf(d.at, "tag %#x of more than one byte", tag)
	}
	n, head := int(d.b[1]), 2
	if n >= 0x80 {
		k := n & 0x7f
		if k == 0 || k > 4 || len(d.b) < 2+k {
			return 0, e, errorf(d.at+1, "length of %d bytes", k)
		}
		n = 0
		for _, c := range d.b[2 : 2+k] {
			n = n<<8 | int(c)
		}
		if n < 0x80 || d.b[2] == 0 {
			return 0, e, errorf(d.at+1, "length %d in %d bytes", n, k)
		}
		head += k
	}
	if n > len(d.b)-head {
		return 0, e, errorf(d.at+1, "element of %d bytes, %d are left", n, len(d.b)-head)
	}
	e = der{d.b[head : head+n], d.at + int64(head)}
	d.b, d.at = d.b[head+n:], e.at+int64(n)
	return tag, e, nil
}

func (d *der) next(want byte) (der, error) {
	at := d.at
	tag, e, err := d.element()
	if err == nil && tag != want {
		err = errorf(at, "tag %#x, not %#x", tag, want)
	}
	return e, err
}

func (d der) integer() (int64, error) {
	if len(d.b) == 0 || len(d.b) > 8 {
		return 0, errorf(d.at, "integer of %d bytes", len(d.b))
	}
	n := int64(int8(d.b[0]))
	for _, c := range d.b[1:] {
		n = n<<8 | int64(c)
	}
	return n, nil
}

func (d der) dict(depth int) (map[string]any, error) {
	m := map[string]any{}
	for len(d.b) > 0 {
		pair, err := d.next(tagSequence)
		if err != nil {
			return nil, err
		}
		k, err := pair.next(tagUTF8)
		if err != nil {
			return nil, err
		}
		if !utf8.Valid(k.b) {
			return nil, errorf(k.at, "a key that is not UTF-8")
		}
		if _, twice := m[string(k.b)]; twice {
			return nil, errorf(k.at, "key %q twice", k.b)
		}
		if m[string(k.b)], err = pair.value(depth + 1); err != nil {
			return nil, err
		}
		if len(pair.b) > 0 {
			return nil, errorf(pair.at, "%d bytes after the value of %q", len(pair.b), k.b)
		}
	}
	return m, nil
}

func (d *der) value(depth int) (any, error) {
	at := d.at
	if depth > maxDepth {
		return nil, errorf(at, "more than %d levels", maxDepth)
	}
	tag, e, err := d.element()
	if err != nil {
		return nil, err
	}
	switch tag {
	case tagBool:
		if len(e.b) != 1 || e.b[0] != 0 && e.b[0] != 0xff {
			return nil, errorf(e.at, "boolean %x", e.b)
		}
		return e.b[0] != 0, nil
	case tagInt:
		return e.integer()
	case tagUTF8:
		if !utf8.Valid(e.b) {
			return nil, errorf(e.at, "a string that is not UTF-8")
		}
		return string(e.b), nil
	case tagOctets:
		return bytes.Clone(e.b), nil
	case tagSequence:
		a := []any{}
		for len(e.b) > 0 {
			v, err := e.value(depth + 1)
			if err != nil {
				return nil, err
			}
			a = append(a, v)
		}
		return a, nil
	case tagDict:
		return e.dict(depth)
	}
	return nil, errorf(at, "a value of tag %#x", tag)
}
