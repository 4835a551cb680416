// Package wire holds the messages that a session and an agent exchange, and how they are put on
// a stream. It does no I/O of its own beyond reading and writing one message, and imports nothing
// of ours, so that both ends and every test share one definition.
//
// Every stream of a tunnel begins with one Open from the side that opened it, answered by one
// message that the kind defines (Welcome for control, Reply for the rest, see Kind). What follows
// is the kind's business: plain bytes, datagrams (datagram.go) or further messages.
//
// A message is a length (uint32, big endian) and that many bytes of CBOR: a map with short text
// keys, so an older peer skips what it does not know and a newer one sees zero values. Adding a
// field is compatible; changing the meaning of one is a new protocol version. Text may be of any
// bytes: a variable of the pod's is what its process was given.
package wire

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/fxamacker/cbor/v2"
)

// Protocol versions that this build speaks. A peer is usable when the ranges overlap; the highest
// common version is used.
const (
	Version    = 1
	MinVersion = 1
)

// MaxMessage bounds one message, so a broken or hostile peer cannot make us allocate at will; what it
// does not send takes no memory.
// The largest honest one is a pod's environment (the kernel bounds argv and environ to 2 MiB or a
// quarter of the stack limit).
const MaxMessage = 8 << 20

var (
	enc = must(cbor.EncOptions{Sort: cbor.SortNone}.EncMode())
	dec = must(cbor.DecOptions{MaxArrayElements: 1 << 20, MaxMapPairs: 1 << 16, UTF8: cbor.UTF8DecodeInvalid}.DecMode())
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // options are constants: found by any test
	}
	return v
}

// Append appends the message v, length and all, to b.
func Append(b []byte, v any) ([]byte, error) {
	body, err := enc.Marshal(v)
	if err != nil {
		return b, fmt.Errorf("encode %T: %w", v, err)
	}
	if len(body) > MaxMessage {
		return b, fmt.Errorf("encode %T: %d bytes, more than %d", v, len(body), MaxMessage)
	}
	b = binary.BigEndian.AppendUint32(b, uint32(len(body)))
	return append(b, body...), nil
}

// Write sends v as one message in one Write.
func Write(w io.Writer, v any) error {
	b, err := Append(nil, v)
	if err != nil {
		return err
	}
	_, err = w.Write(b)
	return err
}

// Read receives one message into v. It reads not one byte beyond the message. io.EOF means that
// the peer ended the stream between two messages.
func Read(r io.Reader, v any) error {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > MaxMessage {
		return fmt.Errorf("read %T: message of %d bytes, more than %d", v, n, MaxMessage)
	}
	body, err := io.ReadAll(io.LimitReader(r, int64(n))) // takes memory as the bytes come
	if err == nil && len(body) < int(n) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return err
	}
	if err := dec.Unmarshal(body, v); err != nil {
		return fmt.Errorf("decode %T: %w", v, err)
	}
	return nil
}
