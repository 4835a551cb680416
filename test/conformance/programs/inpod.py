"""Types into commands in a pod, from a terminal: inpod.py STEAD."""
import fcntl, os, pty, re, select, struct, sys, termios, time

def command(*argv):
    global pid, fd, shown, seen
    pid, fd = pty.fork()
    if pid == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("4H", 33, 99, 0, 0))
        os.execvp(sys.argv[1], [sys.argv[1], "playground", "exec", "orders", "--"] + list(argv))
    shown, seen = "", 0

def until(what):
    global shown, seen
    end = time.time() + 60
    while not (m := re.search(what, shown[seen:])):
        if time.time() > end:
            sys.exit("did not show: %s\n%r" % (what, shown))
        if select.select([fd], [], [], 0.2)[0]:
            try:
                shown += os.read(fd, 65536).decode(errors="replace").replace("\r", "")
            except OSError:
                sys.exit("ended, and did not show: %s\n%r" % (what, shown))
    seen += m.end()

def type(keys):
    os.write(fd, keys.encode())

def ended(code):
    global shown
    while True:  # all of its output comes before its end
        try:
            b = os.read(fd, 65536)
        except OSError:
            b = b""
        if not b:
            break
        shown += b.decode(errors="replace")
    got = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if got != code:
        sys.exit("exit code %d, want %d: %r" % (got, code, shown))

command("bash", "--norc", "-i")
until("# |\\$ ")
if "no job control" in shown:
    sys.exit("no job control: %r" % shown)
type("hostname; tty; stty size\n"); until("orders-0"); until("/dev/pts/\\d+"); until("33 99")
type("sh -c 'echo be''gun; exec sleep 50'\n"); until("begun")
type("\x1a"); until("Stopped")
type("sh -c 'trap \"stty size\" WINCH; echo be''gun; while :; do sleep 0.1; done'\n"); until("begun")
fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("4H", 44, 111, 0, 0)); until("44 111")
type("\x03"); until("# \\Z|\\$ \\Z")
type("exit 5\nexit 5\n") # the first may only tell that there are stopped jobs
ended(5)

command("cat")
type("hello\n"); until("hello\nhello")
type("\x04"); ended(0)

command("sh", "-c", "echo be''gun; exec sleep 50")
until("begun"); type("\x03"); ended(130)

command("sh", "-c", "seq 20000")  # much, and then the end
ended(0)
if "20000" not in shown[-20:]:
    sys.exit("the last words are missing: %r" % shown[-50:])

command("no-such-program")
ended(127)
if "error: run no-such-program in pod orders" not in shown or "hint: stead" not in shown:
    sys.exit(repr(shown))
