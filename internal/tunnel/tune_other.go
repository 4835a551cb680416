//go:build !linux

package tunnel

import "net"

func tune(net.Conn) {}
