package notify

import (
	"golang.org/x/sys/unix"
)

// call is one row: a trapped system call.
type call struct {
	name string
	nr   uint32
	// test is BPF that decides by the arguments, with the number already matched and ending in a
	// return on every way; nil traps each call.
	test []unix.SockFilter
	// when says whether the row is in the filter; nil means always.
	when func(Options) bool
	// dirs: the argument before a path is a directory's descriptor, or AT_FDCWD.
	dirs bool
	// handle answers the call on the receiver. It must not block.
	handle func(*Supervisor, *task)
}

// calls is the table of everything that is trapped; the path calls are in paths_linux.go. What is
// not here costs the program nothing: close, dup, fork, read, write and their kind must never be,
// see the package comment.
var calls = append([]call{
	{name: "connect", nr: unix.SYS_CONNECT, handle: (*Supervisor).connect},
	{name: "bind", nr: unix.SYS_BIND, handle: (*Supervisor).bind},
	{name: "listen", nr: unix.SYS_LISTEN, handle: (*Supervisor).listen},
	{name: "accept4", nr: unix.SYS_ACCEPT4, handle: (*Supervisor).accept},
	{name: "accept", nr: unix.SYS_ACCEPT, handle: (*Supervisor).accept},
	{name: "getsockname", nr: unix.SYS_GETSOCKNAME, handle: (*Supervisor).getsockname},
	{name: "getpeername", nr: unix.SYS_GETPEERNAME, handle: (*Supervisor).getpeername},
	{name: "getsockopt", nr: unix.SYS_GETSOCKOPT, test: ifSocketError(), handle: (*Supervisor).sockError},
	// send(2) is sendto without an address, recv(2) recvfrom without one: those two pass.
	{name: "sendto", nr: unix.SYS_SENDTO, test: ifPointer(4), handle: (*Supervisor).sendto},
	{name: "recvfrom", nr: unix.SYS_RECVFROM, test: ifPointer(4), handle: (*Supervisor).recvfrom},
	// The address is behind a pointer here, so each of these is looked at.
	{name: "sendmsg", nr: unix.SYS_SENDMSG, handle: (*Supervisor).sendmsg},
	{name: "sendmmsg", nr: unix.SYS_SENDMMSG, handle: (*Supervisor).sendmmsg},
	{name: "recvmsg", nr: unix.SYS_RECVMSG, handle: (*Supervisor).recvmsg},
	{name: "recvmmsg", nr: unix.SYS_RECVMMSG, handle: (*Supervisor).recvmmsg},
	{name: "uname", nr: unix.SYS_UNAME, when: func(o Options) bool { return o.Uname }, handle: (*Supervisor).uname},
}, append(append(pathCalls(), execCalls()...), copyCalls()...)...)

// byNumber finds a row; the filter lets no other number come.
var byNumber = func() map[int32]*call {
	m := make(map[int32]*call, len(calls))
	for i := range calls {
		m[int32(calls[i].nr)] = &calls[i]
	}
	return m
}()
