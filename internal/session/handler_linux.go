package session

import (
	"net/netip"
	"path"
	"strings"
	"syscall"

	"github.com/stead-dev/stead/internal/intercept"
	"github.com/stead-dev/stead/internal/session/incoming"
	"github.com/stead-dev/stead/internal/session/outgoing"
)

// handler answers the interceptor's calls from the rooms: each call goes to the one that knows the
// socket.
type handler struct {
	in   *incoming.Room
	out  *outgoing.Room
	node string
	nis  string
	// files says whether a unix socket's path is the pod's; nil where the mount namespace decides.
	files   func(path string) (pod bool)
	trouble func(error)
}

var _ intercept.Handler = (*handler)(nil)

func (h *handler) Bind(s *intercept.Socket, at netip.AddrPort) intercept.Outcome {
	return h.in.Bind(s, at)
}

func (h *handler) Listen(s *intercept.Socket, backlog int) intercept.Outcome {
	return h.in.Listen(s, backlog)
}

func (h *handler) Connect(s *intercept.Socket, to netip.AddrPort) intercept.Outcome {
	h.in.Leaves(s)
	return h.out.Connect(s, to)
}

func (h *handler) Accepted(l *intercept.Socket, from netip.AddrPort) netip.AddrPort {
	return h.in.Accepted(l, from)
}

func (h *handler) PeerName(s *intercept.Socket) (netip.AddrPort, syscall.Errno) {
	if a, errno := h.out.PeerName(s); a.IsValid() || errno != 0 {
		return a, errno
	}
	a, _ := h.in.PeerName(s)
	return a, 0
}

func (h *handler) SockName(s *intercept.Socket) (netip.AddrPort, syscall.Errno) {
	if a, errno := h.out.SockName(s); a.IsValid() || errno != 0 {
		return a, errno
	}
	a, _ := h.in.SockName(s)
	return a, 0
}

func (h *handler) SocketError(s *intercept.Socket) (syscall.Errno, bool) {
	return h.out.SocketError(s)
}

func (h *handler) SendTo(s *intercept.Socket, to netip.AddrPort, d intercept.Datagram) intercept.Outcome {
	return h.out.SendTo(s, to, d)
}

func (h *handler) ReceivesAny() bool { return h.out.ReceivesAny() || h.in.ReceivesAny() }

func (h *handler) ReceivesFor(s *intercept.Socket) bool {
	return h.out.ReceivesFor(s) || h.in.ReceivesFor(s)
}

func (h *handler) Source(s *intercept.Socket, from netip.AddrPort) netip.AddrPort {
	far, ok := h.out.Source(s, from)
	if !ok {
		h.in.Hear(from)
	}
	return far
}

func (h *handler) Hostname() (node, domain string) { return h.node, h.nis }
func (h *handler) Trouble(err error)               { h.trouble(err) }

// nameServices are the laptop's daemons that would answer a name from the laptop's view. With the
// socket refused, the C library goes on to the files and port 53, which are the pod's.
var nameServices = []string{
	"/run/systemd/resolve/", "/var/run/systemd/resolve/", // systemd-resolved: varlink, D-Bus name
	"/run/nscd/", "/var/run/nscd/",
	"/run/dbus/system_bus_socket", "/var/run/dbus/system_bus_socket",
	"/run/avahi-daemon/", "/var/run/avahi-daemon/",
}

func (h *handler) ConnectUnix(name string) intercept.Outcome {
	clean := path.Clean(name)
	for _, s := range nameServices {
		if strings.HasPrefix(clean, s) {
			return intercept.Fail(syscall.ENOENT)
		}
	}
	if h.files != nil && strings.HasPrefix(name, "/") && h.files(clean) {
		return intercept.Fail(syscall.ENOENT)
	}
	return intercept.Continue
}
