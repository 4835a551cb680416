"""Types into an interactive bash in a terminal of its own: terminal.py STEAD. Prints what showed."""
import os, pty, select, sys, time

pid, fd = pty.fork()
if pid == 0:
    os.environ["PS1"] = "$ "
    os.execvp("bash", ["bash", "--norc", "-i"])
shown = ""

def until(what, again=""):
    """Reads until what has shown, or gives up after a minute. again is typed until then: a key that
    comes while the shell hands over the terminal is the shell's."""
    global shown
    begin, end, last = len(shown), time.time() + 60, time.time()
    while what not in shown[begin:]:
        if time.time() > end:
            print(shown)
            sys.exit("did not show: " + what)
        if again and time.time() - last > 1:
            type(again)
            last = time.time()
        if select.select([fd], [], [], 0.2)[0]:
            shown += os.read(fd, 65536).decode(errors="replace").replace("\r", "")

def type(keys):
    os.write(fd, keys.encode())

run = sys.argv[1] + " exec -t playground/orders --no-incoming -- "
until("$ ")
type(run + "sh -c 'echo be''gun; exec sleep 100'\n"); until("begun")
type("\x1a"); until("Stopped")
type("fg\n"); until("sleep 100")
type("\x03"); until("$ ", "\x03")
type("echo code=$?\n"); until("code=130")
type(run + "bash --norc -i\n"); until("$ ")
type("sleep 50\n"); until("Stopped", "\x1a")
type("kill %1; wait; hostname\n"); until("orders-0")
type("exit 5\n"); until("exit")
type("echo code=$?\n"); until("code=5")
type("stty -a | grep -o ' echo '; exit\n"); until(" echo ")
print("all as without stead")
