package tunnel

import (
	"encoding/binary"
	"errors"
	"io"
	"time"
)

// A transport begins with a greeting of the session's side: magic, whether the tunnel is known
// already, the lane, how many times a transport was tried for it, the tunnel's id and secret token,
// and the number of frames received on the lane. The agent's side answers with a status and its
// own number. What the token protects is a resumption; who may open a tunnel at all is the business
// of what is said on it.
var magic = [8]byte{'s', 't', 'e', 'a', 'd', 0, 0, 2}

const (
	greetingSize = 8 + 1 + 1 + 4 + 16 + 16 + 8
	answerSize   = 1 + 8

	statusOK      = 0
	statusUnknown = 1 // no such tunnel
	statusLane    = 2 // no such lane, or a later attempt has come

	greetTimeout = 20 * time.Second
	readBuffer   = 16 << 10
	maxLanes     = 2
)

type greeting struct {
	known     bool
	lane      byte
	attempt   uint32
	id, token [16]byte
	received  uint64
}

func (g *greeting) encode() []byte {
	b := append(make([]byte, 0, greetingSize), magic[:]...)
	known := byte(0)
	if g.known {
		known = 1
	}
	b = append(b, known, g.lane)
	b = binary.BigEndian.AppendUint32(b, g.attempt)
	b = append(b, g.id[:]...)
	b = append(b, g.token[:]...)
	return binary.BigEndian.AppendUint64(b, g.received)
}

func readGreeting(r io.Reader) (g greeting, err error) {
	var b [greetingSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return g, err
	}
	if [8]byte(b[:8]) != magic {
		return g, errors.New("not a stead session of this version")
	}
	g.known, g.lane = b[8] == 1, b[9]
	g.attempt = binary.BigEndian.Uint32(b[10:])
	g.id, g.token = [16]byte(b[14:30]), [16]byte(b[30:46])
	g.received = binary.BigEndian.Uint64(b[46:])
	return g, nil
}
