package playground

import (
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// makeSwitch makes the bridge that the pods hang on, in the network namespace of the daemon. It
// answers for the gateway and the nameserver, and forwards nothing: what a pod sends to an address
// outside is never answered.
func makeSwitch() error {
	if err := up("lo"); err != nil {
		return err
	}
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "pods"}}
	if err := netlink.LinkAdd(br); err != nil {
		return fmt.Errorf("bridge: %w", err)
	}
	for _, a := range []string{gateway4 + "/24", gateway6 + "/64", nameserver + "/32"} {
		if err := address("pods", a); err != nil {
			return err
		}
	}
	if err := up("pods"); err != nil {
		return err
	}
	// IPv6 without a route would be answered: no route to destination.
	if err := netlink.RouteAdd(&netlink.Route{Family: netlink.FAMILY_V6, Dst: &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}, Type: unix.RTN_BLACKHOLE}); err != nil {
		return fmt.Errorf("route to nowhere: %w", err)
	}
	return nil
}

// plug lays a cable from the switch to the namespace of a pod's init.
func plug(spec *podSpec, pid int) error {
	name := "to-" + spec.name
	veth := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "eth0", PeerNamespace: netlink.NsPid(pid),
	}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("veth: %w", err)
	}
	br, err := netlink.LinkByName("pods")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetMaster(veth, br); err != nil {
		return err
	}
	return up(name)
}

// unplugged sets up the pod's end, in the pod.
func unplugged(spec *podSpec) error {
	if err := up("lo"); err != nil {
		return err
	}
	for _, a := range []string{spec.ipv4 + "/24", spec.ipv6 + "/64"} {
		if err := address("eth0", a); err != nil {
			return err
		}
	}
	if err := up("eth0"); err != nil {
		return err
	}
	eth, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	for _, gw := range []string{gateway4, gateway6} {
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Gw: net.ParseIP(gw)}); err != nil {
			return fmt.Errorf("default route by %s: %w", gw, err)
		}
	}
	return nil
}

func up(name string) error {
	l, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetUp(l)
	}
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	return nil
}

func address(name, cidr string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	a, err := netlink.ParseAddr(cidr)
	if err != nil {
		return err
	}
	a.Flags = unix.IFA_F_NODAD // nobody else is there: usable at once
	if a.IP.To4() != nil {
		a.Flags = 0
	}
	if err := netlink.AddrAdd(l, a); err != nil {
		return fmt.Errorf("address %s: %w", cidr, err)
	}
	return nil
}
