package policy

import "net/netip"

// Where says on which side a path, a name or an address is looked up.
type Where uint8

const (
	Pod Where = iota
	Laptop
)

func (w Where) String() string {
	if w == Laptop {
		return "laptop"
	}
	return "pod"
}

// Destination is the decision about one outgoing connection or datagram.
type Destination struct {
	Where Where
	To    netip.AddrPort // the address to use there, v4-mapped turned into IPv4
	Why   string
}

// Network decides where outgoing traffic leaves. The zero value sends everything from the pod. It
// is a value: rules do not change while a session runs.
type Network struct {
	// Laptop holds the ranges that stay on the laptop; a port of 0 means any.
	Laptop []AddressRule
	// Nameservers are the pod's, from its resolv.conf.
	Nameservers []netip.Addr
}

// AddressRule names a range of addresses and a port, 0 for all.
type AddressRule struct {
	Prefix netip.Prefix
	Port   uint16
}

// Destination decides about one address. own says whether the program itself listens on (for UDP: is
// bound to) the port, and which one that is on the laptop: loopback is the pod's own but for those.
func (n *Network) Destination(to netip.AddrPort, own func(uint16) (uint16, bool)) Destination {
	a := to.Addr().Unmap().WithZone("")
	d := Destination{Where: Pod, To: netip.AddrPortFrom(a, to.Port()), Why: "everything leaves from the pod"}
	for _, r := range n.Laptop {
		if r.Prefix.Contains(a) && (r.Port == 0 || r.Port == to.Port()) {
			return Destination{Where: Laptop, To: d.To, Why: "rule " + r.Prefix.String()}
		}
	}
	switch {
	case a.IsMulticast(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return Destination{Where: Laptop, To: d.To, Why: "multicast and broadcast do not cross a tunnel"}
	case a.IsLoopback() || a.IsUnspecified(): // connecting to 0.0.0.0 or :: means this host
		if port, ok := own(to.Port()); ok {
			return Destination{Where: Laptop, To: netip.AddrPortFrom(a, port), Why: "the program itself listens on this port"}
		}
		if to.Port() == 53 && len(n.Nameservers) > 0 && !n.loopbackNameserver(a) {
			// A resolver set up for the laptop (127.0.0.53, a local dnsmasq) asks for names
			// that only the pod's nameserver knows.
			d.To = netip.AddrPortFrom(n.Nameservers[0], 53)
			d.Why = "names are the pod's"
			return d
		}
		d.Why = "loopback is the pod's own"
	}
	return d
}

func (n *Network) loopbackNameserver(a netip.Addr) bool {
	for _, ns := range n.Nameservers {
		if ns == a {
			return true
		}
	}
	return false
}
