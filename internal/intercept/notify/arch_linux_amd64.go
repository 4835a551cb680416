package notify

import "golang.org/x/sys/unix"

const (
	auditArch     = unix.AUDIT_ARCH_X86_64
	sysNewfstatat = unix.SYS_NEWFSTATAT
	sysRenameat   = unix.SYS_RENAMEAT
	largeFile     = 0x8000 // O_LARGEFILE of the kernel's; x/sys has the C library's 0

	callInstruction = "\x0f\x05" // syscall

	// Of i386 (arch/x86/entry/syscalls/syscall_32.tbl).
	otherConnect    = 362
	otherSocketcall = 102
)

// oldPathCalls are those that newer CPUs never had.
func oldPathCalls() []call {
	return []call{
		{name: "open", nr: unix.SYS_OPEN, handle: func(s *Supervisor, t *task) { s.open(t, 0, oldHow(t.args[1], t.args[2])) }},
		{name: "creat", nr: unix.SYS_CREAT, handle: func(s *Supervisor, t *task) {
			s.open(t, 0, oldHow(unix.O_CREAT|unix.O_WRONLY|unix.O_TRUNC, t.args[1]))
		}},
		{name: "stat", nr: unix.SYS_STAT, handle: func(s *Supervisor, t *task) { s.stat(t, 0, 1, 0) }},
		{name: "lstat", nr: unix.SYS_LSTAT, handle: func(s *Supervisor, t *task) { s.stat(t, 0, 1, unix.AT_SYMLINK_NOFOLLOW) }},
		{name: "access", nr: unix.SYS_ACCESS, handle: func(s *Supervisor, t *task) { s.access(t, 0, 1, 0) }},
		{name: "readlink", nr: unix.SYS_READLINK, handle: func(s *Supervisor, t *task) { s.readlink(t, 0, 1, 2) }},
		{name: "mkdir", nr: unix.SYS_MKDIR, handle: func(s *Supervisor, t *task) { s.mkdir(t, 0, 1) }},
		{name: "mknod", nr: unix.SYS_MKNOD, handle: func(s *Supervisor, t *task) { s.mknod(t, 0, 1, 2) }},
		{name: "rmdir", nr: unix.SYS_RMDIR, handle: func(s *Supervisor, t *task) { s.unlink(t, 0, unix.AT_REMOVEDIR) }},
		{name: "unlink", nr: unix.SYS_UNLINK, handle: func(s *Supervisor, t *task) { s.unlink(t, 0, 0) }},
		{name: "symlink", nr: unix.SYS_SYMLINK, handle: func(s *Supervisor, t *task) { s.symlink(t, 0, 1) }},
		{name: "rename", nr: unix.SYS_RENAME, handle: func(s *Supervisor, t *task) { s.rename(t, 0, 1, 0) }},
		{name: "link", nr: unix.SYS_LINK, handle: func(s *Supervisor, t *task) { s.link(t, 0, 1) }},
		{name: "chmod", nr: unix.SYS_CHMOD, handle: func(s *Supervisor, t *task) { s.change(t, 0, true) }},
		{name: "chown", nr: unix.SYS_CHOWN, handle: func(s *Supervisor, t *task) { s.change(t, 0, true) }},
		{name: "lchown", nr: unix.SYS_LCHOWN, handle: func(s *Supervisor, t *task) { s.change(t, 0, false) }},
		{name: "utime", nr: unix.SYS_UTIME, handle: func(s *Supervisor, t *task) { s.change(t, 0, true) }},
		{name: "utimes", nr: unix.SYS_UTIMES, handle: func(s *Supervisor, t *task) { s.change(t, 0, true) }},
		{name: "futimesat", nr: unix.SYS_FUTIMESAT, test: ifNoDirectory(0), handle: func(s *Supervisor, t *task) { s.change(t, 1, true) }},
	}
}

// registers are a stopped thread's.
type registers struct{ unix.PtraceRegs }

func getRegisters(tid int) (r registers, err error) {
	err = unix.PtraceGetRegs(tid, &r.PtraceRegs)
	return r, err
}

func (r *registers) set(tid int) error { return unix.PtraceSetRegs(tid, &r.PtraceRegs) }

// setAfter puts it behind the instruction of its call, at ip.
func (r *registers) setAfter(ip uint64) { r.Rip = ip }

// callAddress is where the instruction is that made the call it has come back from.
func (r *registers) callAddress() uint64 { return r.Rip - uint64(len(callInstruction)) }

// setCall makes the thread call nr when it goes on. No call is restarted: orig_rax says that it
// comes from none.
func (r *registers) setCall(nr uintptr, args ...uintptr) {
	r.Rip, r.Rax, r.Orig_rax = r.callAddress(), uint64(nr), ^uint64(0)
	for i, to := range []*uint64{&r.Rdi, &r.Rsi, &r.Rdx, &r.R10, &r.R8, &r.R9}[:len(args)] {
		*to = uint64(args[i])
	}
}

// at is where the next instruction is, stack where the stack ends.
func (r *registers) at() uintptr    { return uintptr(r.Rip) }
func (r *registers) stack() uintptr { return uintptr(r.Rsp) }

func (r *registers) setResult(v int64) { r.Rax, r.Orig_rax = uint64(v), ^uint64(0) }
func (r *registers) result() int64     { return int64(r.Rax) }
