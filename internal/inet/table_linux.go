package inet

import (
	"os"
	"strconv"
	"strings"
)

// Row is one socket of the kernel's tables.
type Row struct {
	Port  uint16 // local
	Inode uint64
}

// Sockets calls f for each socket of the calling thread's network namespace, of both families:
// network is "tcp" for those that listen, "udp" for all. A family that the kernel lacks has none.
//
// It asks by netlink (sock_diag(7)): /proc/net/tcp goes through every bucket of the table of
// connections, milliseconds on a machine with some memory, to find the few that listen. Where the
// kernel has no sock_diag it reads that all the same.
func Sockets(network string, f func(Row)) error {
	rows, err := diag(network)
	if err != nil {
		return table(network, f)
	}
	for _, r := range rows {
		f(r)
	}
	return nil
}

// table reads what the kernel writes into /proc/net.
func table(network string, f func(Row)) error {
	for _, name := range []string{network, network + "6"} {
		b, err := os.ReadFile("/proc/thread-self/net/" + name)
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return err
		}
		for i, line := range strings.Split(string(b), "\n") {
			if r, state, ok := parseRow(line); i > 0 && ok && (network == "udp" || state == stateListen) {
				f(r)
			}
		}
	}
	return nil
}

// parseRow reads: number local_address rem_address st queues timer retransmits uid timeout inode.
func parseRow(line string) (r Row, state uint8, ok bool) {
	const local, st, inode = 1, 3, 9
	f := strings.Fields(line)
	if len(f) <= inode {
		return r, 0, false
	}
	_, hex, _ := strings.Cut(f[local], ":")
	port, err1 := strconv.ParseUint(hex, 16, 16)
	s, err2 := strconv.ParseUint(f[st], 16, 8)
	ino, err3 := strconv.ParseUint(f[inode], 10, 64)
	return Row{Port: uint16(port), Inode: ino}, uint8(s), err1 == nil && err2 == nil && err3 == nil
}
