package wire

import "net/netip"

// Kind says what a stream is for.
type Kind string

const (
	// KindControl is the first stream of a session, opened once by the session. Open.Hello is
	// answered by a Welcome; then the agent sends Events until the session ends. Its end is the
	// session's end.
	KindControl Kind = "control"
	// KindDial asks the agent to connect from the pod (Open.Dial). The Reply comes when the pod's
	// kernel has answered; then a TCP stream carries plain bytes with half-close and reset as TCP
	// has them, a UDP stream datagrams (WriteDatagram) both ways.
	KindDial Kind = "dial"
	// KindPacket asks for an unconnected UDP socket in the pod (Open.Packet). After the Reply,
	// addressed datagrams (WritePacket) go both ways.
	KindPacket Kind = "packet"
	// KindSubscribe asks for a port's incoming connections (Open.Subscribe). The stream stays open
	// as long as the subscription is wanted; after the Reply the agent sends Events on it.
	KindSubscribe Kind = "subscribe"
	// KindIncoming is opened by the agent for each connection that a subscription catches
	// (Open.Incoming). The session answers with a Reply; a Reply with an errno, or none within
	// seconds, gives a stolen connection to the app (a mirrored one is only forgotten). Then plain bytes go both ways when stolen;
	// mirrored, the client's bytes come and what the program answers is read and thrown away.
	KindIncoming Kind = "incoming"
	// KindFiles carries the file requests of files.go, many in flight.
	KindFiles Kind = "files"
	// KindStatus asks who uses the agent. The Status is the whole answer; no greeting is needed.
	KindStatus Kind = "status"
)

// Open is the first message of every stream. Exactly one of the pointers, the kind's, is set;
// KindFiles and KindStatus have none.
type Open struct {
	Kind      Kind       `cbor:"k"`
	Hello     *Hello     `cbor:"h,omitempty"`
	Dial      *Dial      `cbor:"d,omitempty"`
	Packet    *Packet    `cbor:"p,omitempty"`
	Subscribe *Subscribe `cbor:"s,omitempty"`
	Incoming  *Incoming  `cbor:"i,omitempty"`
}

// Hello introduces a session.
type Hello struct {
	Version    uint   `cbor:"v"` // highest protocol version it speaks
	MinVersion uint   `cbor:"m"` // lowest
	Build      string `cbor:"b"` // version of the CLI, for messages to people
	Holder     string `cbor:"w"` // who: user@host, told to others who find a port taken
	Secret     []byte `cbor:"x"` // what the agent was started with; empty where the transport itself is private
	Container  string `cbor:"c"` // reserved: which container of the target, "" for the agent's own choice
}

// Welcome answers Hello. A non-empty Error refuses the session.
type Welcome struct {
	Error   string `cbor:"e,omitempty"` // cause, for people
	Hint    string `cbor:"t,omitempty"` // what to do
	Version uint   `cbor:"v"`           // the version in use from now on
	Build   string `cbor:"b"`           // version of the agent
	Target  Target `cbor:"g"`
}

// Target is what the agent knows of the container in whose stead the program runs.
type Target struct {
	Hostname    string       `cbor:"n"` // nodename of its UTS namespace
	Domain      string       `cbor:"d"` // NIS domain name of its UTS namespace
	Env         []string     `cbor:"e"` // KEY=value as its main process was started with
	Addrs       []netip.Addr `cbor:"a"` // addresses of its interfaces, loopback excluded
	WorkDir     string       `cbor:"w"` // working directory of its main process
	Release     string       `cbor:"r"` // kernel release beneath it
	Listening   []uint16     `cbor:"l"` // TCP ports on which it listens now
	Nameservers []netip.Addr `cbor:"s"` // of its /etc/resolv.conf, in order
	Features    []string     `cbor:"f"` // what this agent can do here: Feature...
}

// Features that an agent may lack, with the reason told by the Reply of a subscribe.
const (
	FeatureSteal  = "steal"
	FeatureMirror = "mirror"
	FeatureFiles  = "files"
)

// Reply answers Open. Errno is a Linux errno as the pod's kernel gave it, 0 for success; Error says
// for people what happened where there is more to say than the errno, Hint what to do.
type Reply struct {
	Errno  uint32         `cbor:"n,omitempty"`
	Error  string         `cbor:"e,omitempty"`
	Hint   string         `cbor:"t,omitempty"`
	Local  netip.AddrPort `cbor:"l,omitzero"`  // KindDial, KindPacket: the pod's end
	Remote netip.AddrPort `cbor:"r,omitzero"`  // KindDial: the far end
	ID     uint64         `cbor:"i,omitempty"` // KindSubscribe: Incoming.Subscription of what it will catch
}

// Dial asks for a connection from the pod. Network is "tcp" or "udp".
type Dial struct {
	Network string         `cbor:"n"`
	To      netip.AddrPort `cbor:"t"`
	Bind    netip.AddrPort `cbor:"b,omitzero"` // local end the program asked for; an address that is not the pod's is ignored
	Options Options        `cbor:"s,omitzero"` // of a TCP socket
}

// Options are what the program has set on its socket before it connected and what only the pod's
// can obey: how long its kernel tries, and what the packets say. 0 is the pod's own default. What
// shapes the program's side alone (buffers, SO_SNDTIMEO, SO_LINGER) works on its own socket. The pod's
// socket always has TCP_NODELAY, for who waits for more bytes has waited on the program's side, and
// keepalive of its own, which does not depend on the program's. What is set later is not told.
type Options struct {
	SynCount    int `cbor:"y,omitempty"` // TCP_SYNCNT
	UserTimeout int `cbor:"u,omitempty"` // TCP_USER_TIMEOUT, milliseconds
	Class       int `cbor:"c,omitempty"` // IP_TOS or IPV6_TCLASS
}

// Packet asks for an unconnected UDP socket in the pod.
type Packet struct {
	IPv6 bool           `cbor:"6"`
	Bind netip.AddrPort `cbor:"b,omitzero"`
}

// Mode is what a subscription does with the connections of its port.
type Mode string

const (
	Mirror Mode = "mirror" // a copy of the client's bytes, the app answers
	Steal  Mode = "steal"  // the connection itself, the app sees nothing
)

// Subscribe asks for the new TCP connections (Network "tcp") that reach the pod on Port.
type Subscribe struct {
	Network string `cbor:"n"`
	Port    uint16 `cbor:"p"`
	Mode    Mode   `cbor:"m"`
	// Probes are the paths that the kubelet of the pod's node asks this port for, to see how the app
	// does: stolen, such a request is left to the app all the same.
	Probes []string `cbor:"r,omitempty"`
}

// Incoming describes one caught connection.
type Incoming struct {
	Subscription uint64         `cbor:"i"`
	Remote       netip.AddrPort `cbor:"r"` // the real client
	Local        netip.AddrPort `cbor:"l"` // the address it called
}

// Event is news from the agent, on the control stream about the target, on a subscription's about
// the subscription. Kind is one of the Event constants; Text is for people.
type Event struct {
	Kind  string `cbor:"k"`
	Text  string `cbor:"t,omitempty"`
	Count uint64 `cbor:"c,omitempty"` // EventDropped: how many bytes or connections so far
}

const (
	EventTargetGone = "target-gone" // the target's main process ended; Text says how
	EventDropped    = "dropped"     // a mirror lost data because the program or the link was too slow
)

// Status says who uses an agent.
type Status struct {
	Build    string          `cbor:"b"`
	Sessions []SessionStatus `cbor:"s"`
}

// SessionStatus is one session of an agent.
type SessionStatus struct {
	Holder   string      `cbor:"w"` // user@host
	Build    string      `cbor:"b"`
	Seconds  int64       `cbor:"t"` // since when
	Incoming []Subscribe `cbor:"i"`
}
