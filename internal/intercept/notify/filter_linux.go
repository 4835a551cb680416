package notify

import (
	"golang.org/x/sys/unix"
)

// Options says which calls the filter traps beside the network's.
type Options struct {
	Uname bool // uname: where the program has no UTS namespace of its own
	Paths bool // path calls: where the program has no mount namespace of its own
	// Copies, with Paths: path calls with a directory's descriptor, too, and some on descriptors alone:
	// where the tree is one of copies.
	Copies bool
}

// Offsets in struct seccomp_data. Arguments are 64 bit, little endian on both our CPUs.
const (
	offNR   = 0
	offArch = 4
	offArgs = 16
)

func argLow(i uint32) uint32  { return offArgs + 8*i }
func argHigh(i uint32) uint32 { return offArgs + 8*i + 4 }

func stmt(code uint16, k uint32) unix.SockFilter { return unix.SockFilter{Code: code, K: k} }

func jump(op uint16, k uint32, jt, jf uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | op | unix.BPF_K, K: k, Jt: jt, Jf: jf}
}

func load(off uint32) unix.SockFilter { return stmt(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, off) }
func ret(k uint32) unix.SockFilter    { return stmt(unix.BPF_RET|unix.BPF_K, k) }

var (
	allow = ret(unix.SECCOMP_RET_ALLOW)
	trap  = ret(unix.SECCOMP_RET_USER_NOTIF)
)

// Filter returns the BPF program for the calls of the table.
//
// Calls of another ABI pass: programs of 32 bits run without us, which is said when they connect.
// io_uring would go past the filter: its set-up is answered
// with ENOSYS, and libuv, tokio and the rest fall back. A second listener in the tree, which a
// program might install, is not hindered: the kernel says EBUSY.
func Filter(o Options) []unix.SockFilter {
	other := otherABI()
	f := append([]unix.SockFilter{load(offArch), jump(unix.BPF_JEQ, auditArch, uint8(len(other)), 0)}, other...)
	f = append(f,
		load(offNR),
		jump(unix.BPF_JEQ, unix.SYS_IO_URING_SETUP, 0, 1),
		ret(unix.SECCOMP_RET_ERRNO|uint32(unix.ENOSYS)),
		jump(unix.BPF_JEQ, unix.SYS_CONNECT|x32Bit, 0, 1),
		trap,
	)
	for i := range calls {
		c := &calls[i]
		if c.when != nil && !c.when(o) {
			continue
		}
		body := c.test
		if body == nil || o.Copies && c.dirs {
			body = []unix.SockFilter{trap}
		}
		f = append(f, jump(unix.BPF_JEQ, c.nr, 0, uint8(len(body))))
		f = append(f, body...)
	}
	return append(f, allow)
}

// x32Bit is set in the numbers of x32's calls, which are of the same architecture: no row matches them.
const x32Bit = 0x40000000

// otherABI is for the architecture whose programs of 32 bits this CPU runs, too: connect is trapped, so that
// it can be told that we do nothing for it, all else passes.
func otherABI() []unix.SockFilter {
	const connectOfSocketcall = 3 // SYS_CONNECT of include/uapi/linux/net.h
	return []unix.SockFilter{
		load(offNR),
		jump(unix.BPF_JEQ, otherConnect, 0, 1),
		trap,
		jump(unix.BPF_JEQ, otherSocketcall, 0, 3),
		load(argLow(0)),
		jump(unix.BPF_JEQ, connectOfSocketcall, 0, 1),
		trap,
		allow,
	}
}

// ifPointer traps the call when argument i is not NULL.
func ifPointer(i uint32) []unix.SockFilter {
	return []unix.SockFilter{
		load(argLow(i)), jump(unix.BPF_JEQ, 0, 0, 2),
		load(argHigh(i)), jump(unix.BPF_JEQ, 0, 1, 0),
		trap,
		allow,
	}
}

// ifNoDirectory traps a call whose argument i is no real directory descriptor: AT_FDCWD, or another
// negative number, which only an absolute path can go with. Below a real descriptor the kernel
// finds the way by itself: a directory of the tree's is the tree's.
func ifNoDirectory(i uint32) []unix.SockFilter {
	return []unix.SockFilter{
		load(argLow(i)), jump(unix.BPF_JGE, 0x80000000, 0, 1),
		trap,
		allow,
	}
}

// ifNamed traps a call on a path unless flags in argument i say that an empty one is the descriptor
// itself.
func ifNamed(i uint32) []unix.SockFilter {
	return []unix.SockFilter{
		load(argLow(i)), jump(unix.BPF_JSET, unix.AT_EMPTY_PATH, 1, 0),
		trap,
		allow,
	}
}

// ifSocketError traps getsockopt(fd, SOL_SOCKET, SO_ERROR).
func ifSocketError() []unix.SockFilter {
	return []unix.SockFilter{
		load(argLow(1)), jump(unix.BPF_JEQ, unix.SOL_SOCKET, 0, 3),
		load(argLow(2)), jump(unix.BPF_JEQ, unix.SO_ERROR, 0, 1),
		trap,
		allow,
	}
}
