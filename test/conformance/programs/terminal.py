"""Types into an interactive bash in a terminal of its own: terminal.py [COMMAND ARG...], which is put before
each program; none runs them as they are. Prints what happened, which must be the same."""
import fcntl, os, pty, re, select, struct, sys, termios, time

pid, fd = pty.fork()
if pid == 0:
    os.environ["PS1"] = "$ "
    os.execvp("bash", ["bash", "--norc", "-i"])
shown, seen = "", 0

def until(what, again=""):
    """Reads until what, a pattern, has shown, and returns it; gives up after a minute. again is typed until
    then: a key that comes while the shell hands over the terminal is the shell's."""
    global shown, seen
    end, last = time.time() + 60, time.time()
    while not (m := re.search(what, shown[seen:])):
        if time.time() > end:
            print(shown)
            sys.exit("did not show: " + what)
        if again and time.time() - last > 1:
            type(again)
            last = time.time()
        if select.select([fd], [], [], 0.2)[0]:
            shown += os.read(fd, 65536).decode(errors="replace").replace("\r", "")
    seen += m.end()
    return m.group(0)

def type(keys):
    os.write(fd, keys.encode())

def size(rows, columns):
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

def happened(*what):
    print(*what)

def prompt(again=""):
    until(r"\$ \Z", again)

def code():
    type("echo code=$?\n")
    happened(until(r"code=\d+"))
    prompt()

run = " ".join(sys.argv[1:] + [""])
prompt()

# A stop, its end, Ctrl-C.
type(run + "sh -c 'echo be''gun; exec sleep 100'\n"); until("begun")
type("\x1a"); happened(until("Stopped")); prompt()
type("jobs\n"); happened(until(r"\[1\]\+  Stopped")); prompt()
type("fg\n"); until("sleep 100.*\n")
type("\x03"); prompt("\x03")
code()

# Ctrl-\.
type(run + "sh -c 'ulimit -c 0; echo be''gun; exec sleep 100'\n"); until("begun")
type("\x1c"); prompt() # stead ends with the code, and not by the signal: the shell has nothing to say
code()

# A shell with jobs of its own.
type(run + "bash --norc -i\n"); until("-i\n"); prompt()
type("sleep 50\n"); happened(until("Stopped", "\x1a")); prompt()
type("bg; jobs\n"); happened(until(r"\[1\]\+  Running")); prompt()
type("fg\n"); until("sleep 50\n"); prompt("\x03")
type("sleep 60 & kill %1; wait %1; echo in''ner=$?\n"); happened(until(r"inner=\d+")); prompt()
type("exit 5\n"); until("exit\n"); prompt()
code()

# The terminal's size.
type("clear; stty rows 33 columns 99; " + run + "bash --norc -c 'trap \"echo resized; stty size\" WINCH; echo be''gun; while :; do sleep 0.05; done'\n"); until("begun\n")
size(44, 111)
happened(until(r"resized\s+\d+ \d+"))
type("\x03"); prompt("\x03")
code()

# In the background: it ends by a signal, and stops when it reads.
type(run + "sleep 100 & sleep 1; kill %1; wait %1; echo by''=$?\n"); happened(until(r"by=\d+")); prompt()
type(run + "sed -u s/x/y/ &\n"); happened(until("Stopped", "\n")); prompt()
type("fg\n"); until("sed .*\n"); type("xx\n"); happened(until("yx"))
type("\x04"); prompt()
code()

# Side by side in one job.
type(run + "cat | " + run + "sed -u s/x/y/\n"); until("sed .*\n"); type("xx\n"); happened(until("yx"))
type("\x04"); prompt()
code()

type("stty -a | grep -o ' echo '; exit\n"); happened(until(" echo "))
