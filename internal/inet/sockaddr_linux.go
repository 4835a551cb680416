// Package inet translates between the forms that an IP socket's address takes (netip, x/sys, the
// kernel's bytes) and reads the kernel's tables of sockets. It opens no socket.
package inet

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// FromUnix turns x/sys's form into netip's, a v4-mapped address stays one; the zero value for
// anything that is not IP.
func FromUnix(sa unix.Sockaddr) netip.AddrPort {
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port))
	}
	return netip.AddrPort{}
}

// ToUnix names addr on a socket of the family; an IPv6 socket names IPv4 as v4-mapped. What an IPv4
// socket cannot name becomes 0.0.0.0.
func ToUnix(family int, addr netip.AddrPort) unix.Sockaddr {
	if family == unix.AF_INET {
		a := addr.Addr().Unmap()
		if !a.Is4() {
			a = netip.IPv4Unspecified()
		}
		return &unix.SockaddrInet4{Port: int(addr.Port()), Addr: a.As4()}
	}
	return &unix.SockaddrInet6{Port: int(addr.Port()), Addr: addr.Addr().As16()}
}

// Unmap turns a v4-mapped address into IPv4.
func Unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// Shape gives addr the form in which a socket of the family shows it.
func Shape(family int, addr netip.AddrPort) netip.AddrPort {
	if family == unix.AF_INET6 && addr.Addr().Is4() {
		return netip.AddrPortFrom(netip.AddrFrom16(addr.Addr().As16()), addr.Port())
	}
	return addr
}

// Loopback is 127.0.0.1 or ::1.
func Loopback(ipv6 bool) netip.Addr {
	if ipv6 {
		return netip.IPv6Loopback()
	}
	return netip.AddrFrom4([4]byte{127, 0, 0, 1})
}

// Any is 0.0.0.0 or ::.
func Any(ipv6 bool) netip.Addr {
	if ipv6 {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

// Reach gives the addresses at which a listener bound to local is reached from its own machine; only6: it
// takes no IPv4. The later ones are for machines that lack the family of the first.
func Reach(local netip.AddrPort, only6 bool) []netip.AddrPort {
	at := func(a netip.Addr) netip.AddrPort { return netip.AddrPortFrom(a, local.Port()) }
	switch a := local.Addr(); {
	case a == netip.IPv6Unspecified() && only6:
		return []netip.AddrPort{at(Loopback(true))}
	case a == netip.IPv6Unspecified():
		return []netip.AddrPort{at(Loopback(true)), at(Loopback(false))}
	case a.Unmap().IsUnspecified():
		return []netip.AddrPort{at(Loopback(false))}
	default:
		return []netip.AddrPort{at(a.Unmap())}
	}
}

// Append encodes addr as struct sockaddr_in or sockaddr_in6 for a socket of the family.
func Append(b []byte, family int, addr netip.AddrPort) []byte {
	if family == unix.AF_INET {
		b = binary.NativeEndian.AppendUint16(b, unix.AF_INET)
		b = binary.BigEndian.AppendUint16(b, addr.Port())
		a := addr.Addr().Unmap()
		if !a.Is4() {
			a = netip.IPv4Unspecified()
		}
		v4 := a.As4()
		b = append(b, v4[:]...)
		return append(b, 0, 0, 0, 0, 0, 0, 0, 0)
	}
	b = binary.NativeEndian.AppendUint16(b, unix.AF_INET6)
	b = binary.BigEndian.AppendUint16(b, addr.Port())
	b = append(b, 0, 0, 0, 0) // flow label
	v6 := addr.Addr().As16()
	b = append(b, v6[:]...)
	return append(b, 0, 0, 0, 0) // scope
}

// Parse decodes struct sockaddr_in or sockaddr_in6; ok is false for another family and for what is
// too short for its own (the kernel then says EINVAL).
func Parse(b []byte) (addr netip.AddrPort, ok bool) {
	if len(b) < 2 {
		return addr, false
	}
	switch binary.NativeEndian.Uint16(b) {
	case unix.AF_INET:
		if len(b) < 8 { // the kernel wants 16, the last 8 are padding it never reads
			return addr, false
		}
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), binary.BigEndian.Uint16(b[2:])), true
	case unix.AF_INET6:
		if len(b) < 24 { // SIN6_LEN_RFC2133
			return addr, false
		}
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[8:24])), binary.BigEndian.Uint16(b[2:])), true
	}
	return addr, false
}
