package notify

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/sys"
)

// uname answers with the pod's host name and the laptop's kernel.
func (s *Supervisor) uname(t *task) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		s.l.Continue(t.id)
		return
	}
	node, domain := s.h.Hostname()
	put(u.Nodename[:], node)
	if domain != "" {
		put(u.Domainname[:], domain)
	}
	b := unsafe.Slice((*byte)(unsafe.Pointer(&u)), unsafe.Sizeof(u))
	if !s.l.Valid(t.id) {
		return
	}
	if sys.WriteTask(t.tid, t.args[0], b) != nil {
		s.l.Answer(t.id, 0, unix.EFAULT)
		return
	}
	s.l.Answer(t.id, 0, 0)
}

func put(field []byte, s string) {
	clear(field)
	copy(field[:len(field)-1], s)
}
