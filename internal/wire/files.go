package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// File requests on a KindFiles stream. Many are in flight; each has a number, and the answers come
// in any order. They are the hottest messages there are, so they have a fixed form:
//
//	request  size(4) id(4) op(1) handle(8) offset(8) count(4) path
//	answer   size(4) id(4) errno(4) body
//
// size counts what follows it; integers are big endian. Bodies by operation: FileStat an Attr;
// FileReadlink the target; FileList entries, each an Attr (zero where only the name may be read), the
// length of its name (2) and the name;
// FileOpen a handle (8) and an Attr; FileRead the bytes, fewer than asked for only at the end.
// Paths are absolute in the target's root and resolved below it; the last element is not followed.
const (
	FileStat     = 1
	FileReadlink = 2
	FileList     = 3
	FileOpen     = 4
	FileRead     = 5
	FileClose    = 6
)

// Bounds of one message.
const (
	MaxFilePath  = 4096
	MaxFileRead  = 1 << 20
	MaxFileBody  = 64 << 20 // a directory of a million entries
	requestHead  = 4 + 1 + 8 + 8 + 4
	answerHead   = 4 + 4
	AttrSize     = 8*3 + 4*5 + 8*3
	maxEntryName = 255
)

// FileRequest asks for one operation.
type FileRequest struct {
	ID     uint32
	Op     byte
	Handle uint64
	Offset int64
	Count  uint32
	Path   string
}

// Attr is a file's attributes, times in nanoseconds since 1970.
type Attr struct {
	Ino, Size, Blocks           uint64
	Mode, Nlink, UID, GID, Rdev uint32
	Atime, Mtime, Ctime         int64
}

// AppendFileRequest encodes r.
func AppendFileRequest(b []byte, r *FileRequest) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(requestHead+len(r.Path)))
	b = binary.BigEndian.AppendUint32(b, r.ID)
	b = append(b, r.Op)
	b = binary.BigEndian.AppendUint64(b, r.Handle)
	b = binary.BigEndian.AppendUint64(b, uint64(r.Offset))
	b = binary.BigEndian.AppendUint32(b, r.Count)
	return append(b, r.Path...)
}

// ReadFileRequest decodes one request.
func ReadFileRequest(r io.Reader) (q FileRequest, err error) {
	var size [4]byte
	if _, err = io.ReadFull(r, size[:]); err != nil {
		return q, err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n < requestHead || n > requestHead+MaxFilePath {
		return q, fmt.Errorf("file request of %d bytes", n)
	}
	b := make([]byte, n)
	if _, err = io.ReadFull(r, b); err != nil {
		return q, noEOF(err)
	}
	q.ID = binary.BigEndian.Uint32(b)
	q.Op = b[4]
	q.Handle = binary.BigEndian.Uint64(b[5:])
	q.Offset = int64(binary.BigEndian.Uint64(b[13:]))
	q.Count = binary.BigEndian.Uint32(b[21:])
	q.Path = string(b[requestHead:])
	return q, nil
}

// BeginFileAnswer appends the head of an answer whose body the caller appends next; EndFileAnswer
// fills in its size.
func BeginFileAnswer(b []byte, id, errno uint32) []byte {
	b = append(b, 0, 0, 0, 0)
	b = binary.BigEndian.AppendUint32(b, id)
	return binary.BigEndian.AppendUint32(b, errno)
}

// EndFileAnswer completes the answer in b, which BeginFileAnswer began.
func EndFileAnswer(b []byte) []byte {
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	return b
}

// ReadFileAnswerHead decodes an answer's head; size bytes of body follow.
func ReadFileAnswerHead(r io.Reader) (id, errno uint32, size int, err error) {
	var b [4 + answerHead]byte
	if _, err = io.ReadFull(r, b[:]); err != nil {
		return 0, 0, 0, err
	}
	n := binary.BigEndian.Uint32(b[:])
	if n < answerHead || n > answerHead+MaxFileBody {
		return 0, 0, 0, fmt.Errorf("file answer of %d bytes", n)
	}
	return binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint32(b[8:]), int(n - answerHead), nil
}

// AppendAttr encodes a.
func AppendAttr(b []byte, a *Attr) []byte {
	for _, v := range [3]uint64{a.Ino, a.Size, a.Blocks} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	for _, v := range [5]uint32{a.Mode, a.Nlink, a.UID, a.GID, a.Rdev} {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	for _, v := range [3]int64{a.Atime, a.Mtime, a.Ctime} {
		b = binary.BigEndian.AppendUint64(b, uint64(v))
	}
	return b
}

var errShort = errors.New("file answer is too short")

// ParseAttr decodes an Attr and returns what follows it.
func ParseAttr(b []byte) (a Attr, rest []byte, err error) {
	if len(b) < AttrSize {
		return a, nil, errShort
	}
	for _, p := range []*uint64{&a.Ino, &a.Size, &a.Blocks} {
		*p, b = binary.BigEndian.Uint64(b), b[8:]
	}
	for _, p := range []*uint32{&a.Mode, &a.Nlink, &a.UID, &a.GID, &a.Rdev} {
		*p, b = binary.BigEndian.Uint32(b), b[4:]
	}
	for _, p := range []*int64{&a.Atime, &a.Mtime, &a.Ctime} {
		*p, b = int64(binary.BigEndian.Uint64(b)), b[8:]
	}
	return a, b, nil
}

// Entry is one name of a directory.
type Entry struct {
	Name string
	Attr Attr
}

// AppendEntry encodes e.
func AppendEntry(b []byte, e *Entry) []byte {
	b = AppendAttr(b, &e.Attr)
	b = binary.BigEndian.AppendUint16(b, uint16(len(e.Name)))
	return append(b, e.Name...)
}

// ParseEntries decodes the body of a FileList answer.
func ParseEntries(b []byte) (out []Entry, err error) {
	for len(b) > 0 {
		var e Entry
		if e.Attr, b, err = ParseAttr(b); err != nil {
			return nil, err
		}
		if len(b) < 2 {
			return nil, errShort
		}
		n := int(binary.BigEndian.Uint16(b))
		if b = b[2:]; n == 0 || n > maxEntryName || n > len(b) {
			return nil, errShort
		}
		e.Name, b = string(b[:n]), b[n:]
		// Some of who shows entries makes files of these names.
		if e.Name == "." || e.Name == ".." || strings.ContainsAny(e.Name, "/\x00") {
			return nil, fmt.Errorf("%q is no name of a file", e.Name)
		}
		out = append(out, e)
	}
	return out, nil
}
