package notify

import (
	"golang.org/x/sys/unix"
)

const (
	auditArch     = unix.AUDIT_ARCH_AARCH64
	sysNewfstatat = unix.SYS_FSTATAT
	sysRenameat   = unix.SYS_RENAMEAT
	largeFile     = 0x20000 // O_LARGEFILE of the kernel's; x/sys has the C library's 0

	callInstruction = "\x01\x00\x00\xd4" // svc #0

	// Of 32-bit ARM (arch/arm64/tools/syscall_32.tbl), whose EABI has no socketcall.
	otherConnect    = 283
	otherSocketcall = ^uint32(0)
)

// oldPathCalls are those that newer CPUs never had.
func oldPathCalls() []call { return nil }

// registers are a stopped thread's.
type registers struct{ unix.PtraceRegsArm64 }

const ntPRSTATUS = 1

func getRegisters(tid int) (r registers, err error) {
	err = unix.PtraceGetRegSetArm64(tid, ntPRSTATUS, &r.PtraceRegsArm64)
	return r, err
}

func (r *registers) set(tid int) error {
	return unix.PtraceSetRegSetArm64(tid, ntPRSTATUS, &r.PtraceRegsArm64)
}

// setAfter puts it behind the instruction of its call, at ip: a call that was interrupted has been set
// back for its restart before we see it.
func (r *registers) setAfter(ip uint64) { r.Pc = ip }

// callAddress is where the instruction is that made the call it has come back from.
func (r *registers) callAddress() uint64 { return r.Pc - uint64(len(callInstruction)) }

// setCall makes the thread call nr when it goes on.
func (r *registers) setCall(nr uintptr, args ...uintptr) {
	r.Pc, r.Regs[8] = r.callAddress(), uint64(nr)
	for i, a := range args {
		r.Regs[i] = uint64(a)
	}
}

// at is where the next instruction is, stack where the stack ends.
func (r *registers) at() uintptr    { return uintptr(r.Pc) }
func (r *registers) stack() uintptr { return uintptr(r.Sp) }

func (r *registers) setResult(v int64) { r.Regs[0] = uint64(v) }
func (r *registers) result() int64     { return int64(r.Regs[0]) }
