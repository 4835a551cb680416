package inet

import (
	"os"
	"strconv"
	"strings"
)

// Row is one socket of the kernel's tables in /proc/net.
type Row struct {
	Port  uint16 // local
	State uint8  // TCP_LISTEN and the rest of include/net/tcp_states.h
	Inode uint64
}

// Listening is TCP_LISTEN.
const Listening = 10

// Sockets calls f for each socket of this process's network namespace; network is "tcp" or "udp",
// both families. A family that the kernel lacks has none.
func Sockets(network string, f func(Row)) error { return SocketsOf("/proc/self", network, f) }

// SocketsOf is Sockets for the network namespace of the process or thread whose directory in /proc
// is given.
func SocketsOf(proc, network string, f func(Row)) error {
	for _, name := range []string{network, network + "6"} {
		b, err := os.ReadFile(proc + "/net/" + name)
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return err
		}
		for i, line := range strings.Split(string(b), "\n") {
			if r, ok := parseRow(line); i > 0 && ok {
				f(r)
			}
		}
	}
	return nil
}

// parseRow reads: number local_address rem_address st queues timer retransmits uid timeout inode.
func parseRow(line string) (r Row, ok bool) {
	const local, state, inode = 1, 3, 9
	f := strings.Fields(line)
	if len(f) <= inode {
		return r, false
	}
	_, hex, _ := strings.Cut(f[local], ":")
	port, err1 := strconv.ParseUint(hex, 16, 16)
	st, err2 := strconv.ParseUint(f[state], 16, 8)
	ino, err3 := strconv.ParseUint(f[inode], 10, 64)
	return Row{Port: uint16(port), State: uint8(st), Inode: ino}, err1 == nil && err2 == nil && err3 == nil
}
