package inet

import (
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"
)

// Netlink asks the kernel questions over a netlink socket (netlink(7)) of the network namespace that it was
// opened in. It is for one goroutine at a time.
//
// mdlayher/netlink would not do: connection tracking gives the one message of an answer the flag of several
// (NLM_F_MULTI) and sends no end, for which that waits.
type Netlink struct {
	fd  int
	seq uint32
	buf []byte
}

// OpenNetlink is for one protocol, as NETLINK_SOCK_DIAG.
func OpenNetlink(protocol int) (*Netlink, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, err
	}
	n := &Netlink{fd: fd, buf: make([]byte, 32<<10)}
	// It answers at once, out of the call that asks; should one be lost for want of memory, nobody waits for it.
	if err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1}); err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

func (n *Netlink) Close() { unix.Close(n.fd) }

// Ask sends a question of a type, for one answer or, with NLM_F_DUMP in flags, for all, and calls f with
// what follows the header of each message of the answers' type. That is valid until f returns. An error
// that the kernel answers is its errno.
func (n *Netlink) Ask(question, flags uint16, body []byte, answer uint16, f func(body []byte)) error {
	n.seq++
	b := make([]byte, unix.SizeofNlMsghdr, unix.SizeofNlMsghdr+len(body))
	b = append(b, body...)
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint16(b[4:], question)
	binary.NativeEndian.PutUint16(b[6:], flags|unix.NLM_F_REQUEST)
	binary.NativeEndian.PutUint32(b[8:], n.seq)
	if err := unix.Sendto(n.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	for {
		k, _, err := unix.Recvfrom(n.fd, n.buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		found := false
		done, err := parse(n.buf[:k], n.seq, answer, func(body []byte) { found = true; f(body) })
		if done || err != nil || found && flags&unix.NLM_F_DUMP != unix.NLM_F_DUMP {
			return err
		}
	}
}

// parse reads the messages of one answer to the question seq; done with an error or the last of many.
func parse(b []byte, seq uint32, answer uint16, f func(body []byte)) (done bool, err error) {
	const head = unix.SizeofNlMsghdr
	for len(b) >= head {
		size := int(binary.NativeEndian.Uint32(b))
		if size < head || size > len(b) {
			break
		}
		body := b[head:size]
		switch kind := binary.NativeEndian.Uint16(b[4:]); {
		case binary.NativeEndian.Uint32(b[8:]) != seq: // of an earlier one, whose answer was given up
		case kind == unix.NLMSG_DONE:
			return true, nil
		case kind == unix.NLMSG_ERROR:
			if len(body) >= 4 {
				if e := int32(binary.NativeEndian.Uint32(body)); e != 0 {
					return true, unix.Errno(-e)
				}
			}
			return true, nil
		case kind == answer:
			f(body)
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	if len(b) > 0 {
		return true, errors.New("netlink: an answer that is cut off")
	}
	return false, nil
}
