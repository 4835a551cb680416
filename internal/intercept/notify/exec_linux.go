package notify

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"path"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/intercept"
	"github.com/stead-dev/stead/internal/sys"
)

// Programs of the tree's. The thread that asked for one is led by ptrace, as it is to a directory, to
// execveat(2) with a descriptor of the file: so whatever is in it is the kernel's business, and so are
// its errors. The loader that it names, and what that loads, are looked up as in the mount namespace:
// the kernel finds the loader on this machine, where policy has it.
//
// A script is more: its interpreter is to see the script's path, and the kernel would give it that of
// the descriptor. So we read the first line. The interpreter is executed twice: first with the arguments as
// they are, which tells all errors and gives the process memory of its own (a child of vfork has its
// parent's until then), and before it runs a single instruction once more, with the arguments that
// the kernel would have made.
//
// What differs from the kernel's own way: AT_EXECFN names a descriptor; a file that may be executed but
// not read cannot be (EACCES); binfmt_misc sees the descriptor; the interpreter of a script of this
// machine's is this machine's.

func execCalls() []call {
	rows := []call{
		{name: "execve", nr: unix.SYS_EXECVE, handle: func(s *Supervisor, t *task) { s.exec(t, 0, 0) }},
		{name: "execveat", nr: unix.SYS_EXECVEAT, test: ifNamed(4), dirs: true, handle: func(s *Supervisor, t *task) { s.exec(t, 1, int(int32(t.args[4]))) }},
	}
	for i := range rows {
		rows[i].when = paths
	}
	return rows
}

// execution is what is to be executed: a file that is no script, open.
type execution struct {
	fd   int
	name string // as the process shall be called
	// args are put in place of the first argument, nil where that stays: it was a script.
	args []string
	argv uint64
	envp uint64
	end  uint64 // address of a NUL
}

func (s *Supervisor) exec(t *task, arg, flags int) {
	name, ok := s.find(t, arg)
	if !ok {
		return
	}
	given, there, err := readPath(t.tid, t.args[arg], s.path[:])
	if err != nil || !there {
		s.l.Continue(t.id)
		return
	}
	x := &execution{name: path.Base(string(given)), argv: t.args[arg+1], envp: t.args[arg+2], end: t.args[arg] + uint64(len(given))}
	tree, tid, script := s.tree, t.tid, string(given)
	if t.dirs && t.fd(arg-1) >= 0 && !path.IsAbs(script) {
		script = name // the kernel would say /dev/fd/N/..., for which the descriptor has to stay open
	}
	s.later(t, func() result {
		var errno unix.Errno
		x.fd, x.args, errno = program(tree, tid, name, script, flags&unix.AT_SYMLINK_NOFOLLOW == 0)
		if errno != 0 {
			return fails(errno)
		}
		return result{execute: x}
	})
}

// The kernel's bounds: how much of a file it looks at to know what it is, how deep scripts may be nested.
const (
	firstLine  = 256
	maxScripts = 5
)

// program opens the file that is to be executed for name: the file itself, or at the end of scripts the
// interpreter, with the arguments that it gets before the script's own.
func program(tree intercept.Tree, tid int, name, given string, follow bool) (fd int, args []string, errno unix.Errno) {
	for depth := 0; ; depth++ {
		if fd, errno = executable(tree, tid, name, follow); errno != 0 {
			return -1, nil, errno
		}
		b := make([]byte, firstLine)
		n, _ := unix.Pread(fd, b, 0)
		interpreter, arg, script := interpreterOf(b[:max(n, 0)])
		if !script {
			return fd, args, 0
		}
		unix.Close(fd)
		switch {
		case interpreter == "":
			return -1, nil, unix.ENOEXEC
		case depth == maxScripts:
			return -1, nil, unix.ELOOP
		}
		if depth == 0 {
			args = []string{given}
		}
		if arg != "" {
			args = append([]string{arg}, args...)
		}
		args = append([]string{interpreter}, args...)
		name, follow = interpreter, true
		if !path.IsAbs(name) {
			link := "/proc/" + strconv.Itoa(tid) + "/cwd"
			dir := make([]byte, maxPath)
			n, err := unix.Readlink(link, dir)
			if err != nil {
				return -1, nil, unix.ENOENT
			}
			name = string(dir[:n]) + "/" + name
		}
	}
}

// executable opens a regular file that thread tid may execute, of the tree's or where a link leads to
// this machine.
func executable(tree intercept.Tree, tid int, name string, follow bool) (int, unix.Errno) {
	how := oldHow(unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if !follow {
		how.Flags |= unix.O_NOFOLLOW // ELOOP
	}
	var fd int
	p, errno := walk(tree, tid, name, follow)
	if errno != 0 {
		return -1, errno
	}
	defer p.close()
	var st unix.Stat_t
	if err := unix.Fstat(p.fd, &st); err != nil {
		return -1, err.(unix.Errno)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFLNK:
		return -1, unix.ELOOP
	default:
		return -1, unix.EACCES
	}
	if e := mayExecute(p.fd); e != 0 {
		return -1, e
	}
	if p.here {
		fd, errno = open(unix.AT_FDCWD, p.name, &how)
	} else {
		fd, errno = openAt(tree, tid, name, how)
	}
	if errno == 0 && fd == 0 { // which stands for none
		errno = unix.EMFILE
	}
	return fd, errno
}

func mayExecute(fd int) unix.Errno {
	return errnoOf(unix.Faccessat(fd, "", unix.X_OK, unix.AT_EMPTY_PATH|unix.AT_EACCESS))
}

// interpreterOf reads the first line of a file as the kernel does. script: it begins with #!.
func interpreterOf(b []byte) (interpreter, arg string, script bool) {
	line, ok := bytes.CutPrefix(b, []byte("#!"))
	if !ok {
		return "", "", false
	}
	line, _, ended := bytes.Cut(line, []byte("\n"))
	line, _, zero := bytes.Cut(line, []byte{0})
	if text := bytes.TrimLeft(line, " \t"); !ended && !zero && len(b) == firstLine && bytes.IndexAny(text, " \t") < 0 {
		return "", "", true // the interpreter's name is cut off
	}
	interpreter, arg, _ = strings.Cut(strings.ReplaceAll(strings.Trim(string(line), " \t"), "\t", " "), " ")
	return interpreter, argument(line, len(interpreter)), true
}

// argument is what follows the interpreter, as one.
func argument(line []byte, after int) string {
	text := bytes.Trim(line, " \t")
	return string(bytes.Trim(text[min(after, len(text)):], " \t"))
}

// execute leads the thread whose execve waits to the file, and ends that call.
func (s *Supervisor) execute(t *task, x *execution) {
	runtime.LockOSThread() // ptrace belongs to the thread
	defer runtime.UnlockOSThread()
	l := s.seize(t, "a program")
	if l == nil {
		return
	}
	defer l.release()
	fd, err := s.l.AddFD(t.id, x.fd, x.args == nil)
	if err != nil {
		if e, ok := err.(unix.Errno); ok {
			s.l.Answer(t.id, 0, e)
		}
		return
	}
	if err := unix.PtraceInterrupt(t.tid); err != nil {
		s.l.Answer(t.id, 0, unix.EPERM)
		return
	}
	s.l.Answer(t.id, 0, 0) // see enter
	err = l.exec(fd, x)
	if err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.ECHILD) {
		s.h.Trouble(fmt.Errorf("%s of thread %d: %w", t.name, t.tid, err))
	}
}

// exec leads the thread through execveat(fd).
func (l *lead) exec(fd int, x *execution) error {
	regs, mask, err := l.halt()
	if err != nil {
		return err
	}
	if l.group, err = threadGroup(l.tid); err != nil {
		return err
	}
	errno, err := l.execveat(regs, fd, x.end, x.argv, x.envp)
	if err != nil {
		return err
	}
	if errno != 0 {
		if _, err := l.do(regs, unix.SYS_CLOSE, uintptr(fd)); err != nil {
			return err
		}
		return l.restore(regs, mask, errno)
	}
	// A new image, that has not begun to run. The thread leads its group now.
	if x.args != nil {
		if err := l.again(fd, x.args); err != nil {
			unix.Kill(l.tid, unix.SIGKILL) // it would run with wrong arguments
			return err
		}
	}
	nerr := l.rename(x.name) // a wrong name is no reason to end it
	return errors.Join(nerr, sys.PtraceSetSigmask(l.tid, mask))
}

// execveat makes the stopped thread execute fd; empty is the address of a NUL.
func (l *lead) execveat(regs registers, fd int, empty, argv, envp uint64) (unix.Errno, error) {
	for {
		ret, err := l.do(regs, unix.SYS_EXECVEAT, uintptr(fd), uintptr(empty), uintptr(argv), uintptr(envp), unix.AT_EMPTY_PATH)
		if err != nil {
			return 0, err
		}
		// restart and what follows it: interrupted by a stop of its group, to be made again.
		if errno := unix.Errno(max(-ret, 0)); errno != unix.EINTR && errno < restart {
			return errno, nil
		}
	}
}

// fresh prepares the image of a thread that has just executed something to be led: there is a call
// instruction where it begins. done takes it away.
func (l *lead) fresh() (regs registers, done func() error, err error) {
	if regs, err = getRegisters(l.tid); err != nil {
		return regs, nil, err
	}
	begin, entry := regs, regs.at()
	old := make([]byte, len(callInstruction))
	if _, err := unix.PtracePeekText(l.tid, entry, old); err != nil {
		return regs, nil, err
	}
	if _, err := unix.PtracePokeText(l.tid, entry, []byte(callInstruction)); err != nil {
		return regs, nil, err
	}
	regs.setAfter(uint64(entry) + uint64(len(callInstruction)))
	return regs, func() error {
		_, err := unix.PtracePokeText(l.tid, entry, old)
		return errors.Join(err, begin.set(l.tid))
	}, nil
}

// again executes fd once more, with args in place of the first argument, and closes it.
func (l *lead) again(fd int, args []string) error {
	regs, _, err := l.fresh()
	if err != nil {
		return err
	}
	// What the kernel has put there: the number of arguments, those, 0, the environment.
	word := make([]byte, 8)
	if _, err := sys.ReadTask(l.tid, uint64(regs.stack()), word); err != nil {
		return err
	}
	argc := int(binary.NativeEndian.Uint64(word))
	rest := make([]byte, 8*max(argc, 1)) // behind the first argument, with the 0
	if n, err := sys.ReadTask(l.tid, uint64(regs.stack())+16, rest[:8*argc]); err != nil || n != 8*argc {
		return errors.Join(errors.New("read its arguments"), err)
	}
	envp := uint64(regs.stack()) + 8 + 8*uint64(argc) + 8
	size := len(args)*8 + len(rest)
	for _, a := range args {
		size += len(a) + 1
	}
	addr, err := l.do(regs, unix.SYS_MMAP, 0, uintptr(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, ^uintptr(0), 0)
	if err != nil {
		return err
	}
	if addr < 0 && addr > -4096 {
		return unix.Errno(-addr)
	}
	var argv, text []byte
	at := uint64(addr) + uint64(len(args)*8+len(rest))
	for _, a := range args {
		argv = binary.NativeEndian.AppendUint64(argv, at+uint64(len(text)))
		text = append(append(text, a...), 0)
	}
	block := append(append(argv, rest...), text...)
	if err := sys.WriteTask(l.tid, uint64(addr), block); err != nil {
		return err
	}
	if _, err := l.do(regs, unix.SYS_FCNTL, uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC); err != nil {
		return err
	}
	errno, err := l.execveat(regs, fd, uint64(addr)+uint64(len(block))-1, uint64(addr), envp)
	if err == nil && errno != 0 {
		err = fmt.Errorf("execute the interpreter: %w", errno)
	}
	return err
}

// rename gives the process its name, that of what was to be executed.
func (l *lead) rename(name string) error {
	regs, done, err := l.fresh()
	if err != nil {
		return err
	}
	// Below the end of a new stack there is room.
	addr := regs.stack() - 1024
	b := append([]byte(name[:min(len(name), 15)]), 0)
	if err := sys.WriteTask(l.tid, uint64(addr), b); err == nil {
		if _, err := l.do(regs, unix.SYS_PRCTL, unix.PR_SET_NAME, addr); err != nil {
			return err
		}
	}
	return done()
}

// execTick is how often a thread is looked for that becomes its group's leader by executing.
const execTick = 50 * time.Microsecond
