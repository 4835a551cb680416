package notify

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"path"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/inet"
)

// run interprets the filter for one call. The kernel's loads are in CPU order, the interpreter's
// big endian: the data is laid out accordingly.
func run(t *testing.T, f []unix.SockFilter, arch uint32, nr uint32, args [6]uint64) uint32 {
	t.Helper()
	raw := make([]bpf.RawInstruction, len(f))
	for i, x := range f {
		raw[i] = bpf.RawInstruction{Op: x.Code, Jt: x.Jt, Jf: x.Jf, K: x.K}
	}
	prog, ok := bpf.Disassemble(raw)
	if !ok {
		t.Fatal("the filter has an unknown instruction")
	}
	vm, err := bpf.NewVM(prog)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 64)
	binary.BigEndian.PutUint32(b[offNR:], nr)
	binary.BigEndian.PutUint32(b[offArch:], arch)
	for i, a := range args {
		binary.BigEndian.PutUint32(b[argLow(uint32(i)):], uint32(a))
		binary.BigEndian.PutUint32(b[argHigh(uint32(i)):], uint32(a>>32))
	}
	n, err := vm.Run(b)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(n)
}

func TestTheFilterTrapsWhatItMustAndNothingElse(t *testing.T) {
	f := Filter(Options{})
	const trapped, passes = uint32(unix.SECCOMP_RET_USER_NOTIF), uint32(unix.SECCOMP_RET_ALLOW)
	for _, c := range []struct {
		name string
		arch uint32
		nr   uint32
		args [6]uint64
		want uint32
	}{
		{"connect", auditArch, unix.SYS_CONNECT, [6]uint64{}, trapped},
		{"accept4", auditArch, unix.SYS_ACCEPT4, [6]uint64{}, trapped},
		{"read", auditArch, unix.SYS_READ, [6]uint64{}, passes},
		{"write", auditArch, unix.SYS_WRITE, [6]uint64{}, passes},
		{"close", auditArch, unix.SYS_CLOSE, [6]uint64{}, passes},
		{"openat", auditArch, unix.SYS_OPENAT, [6]uint64{}, passes},
		{"send", auditArch, unix.SYS_SENDTO, [6]uint64{3, 4, 5, 0, 0, 0}, passes},
		{"sendto", auditArch, unix.SYS_SENDTO, [6]uint64{3, 4, 5, 0, 0x7f0000000000, 16}, trapped},
		{"sendto, low address", auditArch, unix.SYS_SENDTO, [6]uint64{3, 4, 5, 0, 0x1000, 16}, trapped},
		{"recv", auditArch, unix.SYS_RECVFROM, [6]uint64{3, 4, 5, 0, 0, 0}, passes},
		{"recvfrom", auditArch, unix.SYS_RECVFROM, [6]uint64{3, 4, 5, 0, 0x7f0000000000, 1}, trapped},
		{"SO_ERROR", auditArch, unix.SYS_GETSOCKOPT, [6]uint64{3, unix.SOL_SOCKET, unix.SO_ERROR}, trapped},
		{"SO_TYPE", auditArch, unix.SYS_GETSOCKOPT, [6]uint64{3, unix.SOL_SOCKET, unix.SO_TYPE}, passes},
		{"TCP option 4", auditArch, unix.SYS_GETSOCKOPT, [6]uint64{3, unix.IPPROTO_TCP, unix.SO_ERROR}, passes},
		{"io_uring_setup", auditArch, unix.SYS_IO_URING_SETUP, [6]uint64{}, unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)},
		{"uname without the option", auditArch, unix.SYS_UNAME, [6]uint64{}, passes},
		{"another architecture", unix.AUDIT_ARCH_I386, unix.SYS_CONNECT, [6]uint64{}, passes},
		{"another architecture's connect", unix.AUDIT_ARCH_I386, otherConnect, [6]uint64{}, trapped},
		{"another architecture's socketcall of connect", unix.AUDIT_ARCH_I386, otherSocketcall, [6]uint64{3}, trapped},
		{"another architecture's socketcall of bind", unix.AUDIT_ARCH_I386, otherSocketcall, [6]uint64{2}, passes},
		{"x32", auditArch, unix.SYS_ACCEPT | x32Bit, [6]uint64{}, passes},
		{"x32's connect", auditArch, unix.SYS_CONNECT | x32Bit, [6]uint64{}, trapped},
	} {
		if got := run(t, f, c.arch, c.nr, c.args); got != c.want {
			t.Errorf("%s: %#x, want %#x", c.name, got, c.want)
		}
	}
	paths := Filter(Options{Paths: true})
	const cwd = uint64(0xffffff9c) // AT_FDCWD
	for _, c := range []struct {
		name string
		nr   uint32
		args [6]uint64
		want uint32
	}{
		{"openat here", unix.SYS_OPENAT, [6]uint64{cwd}, trapped},
		{"openat, sign extended", unix.SYS_OPENAT, [6]uint64{cwd | 0xffffffff<<32}, trapped},
		{"openat of an absolute path with -1", unix.SYS_OPENAT, [6]uint64{0xffffffff}, trapped},
		{"openat below a descriptor", unix.SYS_OPENAT, [6]uint64{5}, passes},
		{"fstat by statx", unix.SYS_STATX, [6]uint64{5, 0, unix.AT_EMPTY_PATH}, passes},
		{"linkat", unix.SYS_LINKAT, [6]uint64{cwd}, trapped},
		{"symlinkat below a descriptor", unix.SYS_SYMLINKAT, [6]uint64{0x7000, 5}, passes},
		{"symlinkat here", unix.SYS_SYMLINKAT, [6]uint64{0x7000, cwd}, trapped},
		{"chdir", unix.SYS_CHDIR, [6]uint64{}, trapped},
		{"fstat", unix.SYS_FSTAT, [6]uint64{3}, passes},
		{"close", unix.SYS_CLOSE, [6]uint64{3}, passes},
		{"execve", unix.SYS_EXECVE, [6]uint64{}, trapped},
		{"execveat of a name", unix.SYS_EXECVEAT, [6]uint64{5}, trapped},
		{"execveat of a descriptor", unix.SYS_EXECVEAT, [6]uint64{5, 0, 0, 0, unix.AT_EMPTY_PATH}, passes},
		{"uname", unix.SYS_UNAME, [6]uint64{}, passes},
	} {
		if got := run(t, paths, auditArch, c.nr, c.args); got != c.want {
			t.Errorf("path calls: %s: %#x, want %#x", c.name, got, c.want)
		}
	}
	copies := Filter(Options{Paths: true, Copies: true})
	for _, c := range []struct {
		name string
		nr   uint32
		want uint32
	}{
		{"openat below a descriptor", unix.SYS_OPENAT, trapped},
		{"symlinkat below a descriptor", unix.SYS_SYMLINKAT, trapped},
		{"fstat", unix.SYS_FSTAT, trapped},
		{"fchmod", unix.SYS_FCHMOD, trapped},
		{"getdents64", unix.SYS_GETDENTS64, passes},
		{"read", unix.SYS_READ, passes},
		{"close", unix.SYS_CLOSE, passes},
	} {
		if got := run(t, copies, auditArch, c.nr, [6]uint64{5, 5}); got != c.want {
			t.Errorf("copies: %s: %#x, want %#x", c.name, got, c.want)
		}
	}
	if got := run(t, Filter(Options{Uname: true}), auditArch, unix.SYS_UNAME, [6]uint64{}); got != trapped {
		t.Errorf("uname with the option: %#x", got)
	}
}

func FuzzSocketAddressesOfTheProgram(f *testing.F) {
	f.Add(inet.Append(nil, unix.AF_INET, netip.MustParseAddrPort("10.0.0.1:80")))
	f.Add(inet.Append(nil, unix.AF_INET6, netip.MustParseAddrPort("[2001:db8::1]:80")))
	f.Add([]byte{1, 0, '/', 'x', 0, 'y'})
	f.Add([]byte{1, 0, 0, 'x'})
	f.Fuzz(func(t *testing.T, b []byte) {
		a, ok := parseSockaddr(b)
		if ok && (a.family == unix.AF_INET || a.family == unix.AF_INET6) {
			if back, ok := inet.Parse(inet.Append(nil, int(a.family), a.ip)); !ok || back != a.ip {
				t.Errorf("%v became %v", a.ip, back)
			}
		}
	})
}

func FuzzWhetherAPathIsClean(f *testing.F) {
	for _, p := range []string{"/", "/a", "/a/", "//a", "/a/./b", "/a/../b", "/a/..b", "/.", "/..", "/a/."} {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, p string) {
		if len(p) == 0 || p[0] != '/' {
			return
		}
		// What is said to be clean is clean; the other way round it only costs time.
		if clean([]byte(p)) && path.Clean(p) != p {
			t.Errorf("%q is taken for clean, which is %q", p, path.Clean(p))
		}
	})
}

// segmentation is struct cmsghdr with UDP_SEGMENT of 1000, in two bytes and padding.
var segmentation = []byte{18, 0, 0, 0, 0, 0, 0, 0, unix.SOL_UDP, 0, 0, 0, unix.UDP_SEGMENT, 0, 0, 0, 0xe8, 3, 0, 0, 0, 0, 0, 0}

func FuzzControlMessagesOfTheProgram(f *testing.F) {
	f.Add(segmentation)
	f.Add(segmentation[:17]) // cut off
	f.Add(append([]byte{16, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 9, 0, 0, 0}, segmentation...))
	f.Fuzz(func(t *testing.T, b []byte) {
		if got := segmentOf(b); bytes.Equal(b, segmentation) && got != 1000 {
			t.Errorf("%d, want 1000", got)
		}
	})
}
