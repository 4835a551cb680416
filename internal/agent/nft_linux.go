package agent

import (
	"errors"
	"net"
)

func newNFT(t *target, caught func(net.Conn)) (stealer, error) {
	return nil, errors.New("stealing by nftables is not there yet")
}
