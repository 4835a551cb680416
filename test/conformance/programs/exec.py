"""Executes programs and scripts of the pod's in every way, for doors to be compared."""
import ctypes, errno, os, signal, subprocess, sys, threading

X = "/var/data/x/"
laptop = sys.argv[1]
os.chdir(laptop)
names = ["told", "dynamic", "script", "arg", "inner", "nested", "deep", "text", "plain", "dir", "none", "badinterp", "empty", "linked", "laptoplink", "dangling", "relative",
         "blank", "zeroes", "told/x", "env", "tab", "crlf", "long"]


def show(what, r):
    print(what, r, flush=True)


for n in names:
    try:
        r = subprocess.run([n, "a b", ""], executable=X + n, capture_output=True, text=True, env={"VAR": "set", "PATH": os.environ["PATH"]})
        show(n, (r.returncode, r.stdout, r.stderr))
    except OSError as e:
        show(n, errno.errorcode[e.errno])
    try:
        pid = os.posix_spawn(X + n, [X + n, "spawned"], {"VAR": "spawn"})
        show("spawn " + n, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    except OSError as e:
        show("spawn " + n, errno.errorcode[e.errno])

# A shell runs what the kernel does not know.
for n in names:
    r = subprocess.run(["bash", "-c", X + n + " one two; echo $?"], capture_output=True, text=True)
    show("bash " + n, (r.stdout, r.stderr.replace("line 1: ", "")))
show("sh", subprocess.run("cd " + X + " && ./told rel; ./script rel; ../x/relative; sh ./script; exec ./told last", shell=True, capture_output=True, text=True).stdout)
show("xargs", len(subprocess.run("seq 30000 | xargs " + X + "count", shell=True, capture_output=True, text=True).stdout.split()))
show("find", subprocess.run(["find", X + "told", "-exec", X + "script", "{}", ";"], capture_output=True, text=True).stdout)

# Other languages.
probe = sys.argv[2]
show("Go", subprocess.run([probe, "exec"] + [X + n for n in names], capture_output=True, text=True).stdout)
show("node", subprocess.run(["node", "-e", "for (const n of process.argv.slice(1)) { const r = require('child_process').spawnSync(n, ['by node'], {encoding: 'utf8'}); console.log(n, r.status, r.stdout, r.stderr, r.error && r.error.code) }"] + [X + n for n in names],
                            capture_output=True, text=True).stdout.replace("NODE_CHANNEL", ""))


def fork(f):
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            f()
        except OSError as e:
            print(errno.errorcode[e.errno], flush=True)
        finally:
            os._exit(9)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


# Descriptors, the signal mask, threads.
r, w = os.pipe()
os.set_inheritable(w, True)
fork(lambda: os.execv(X + "told", ["inherits"]))
fork(lambda: os.execv(X + "script", ["inherits"]))
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
fork(lambda: os.execv(X + "told", ["masked"]))
fork(lambda: os.execv(X + "inner", ["masked"]))
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])


def threaded(name):
    def f():
        t = threading.Thread(target=lambda: os.execv(X + name, ["thread"]))
        for _ in range(3):
            threading.Thread(target=lambda: signal.pause(), daemon=True).start()
        t.start()
        t.join()
    return f


for n in ["told", "script", "inner", "none"]:
    fork(threaded(n))
fork(lambda: os.execv(X + "told", [X + "told"] + ["x" * 100] * 5))
libc = ctypes.CDLL(None, use_errno=True)
nr = {"x86_64": 322, "aarch64": 281}[os.uname().machine]


def execveat(fd, path, flags):
    argv = (ctypes.c_char_p * 3)(b"at", b"me", None)
    libc.syscall(nr, fd, path, argv, None, flags)
    print(errno.errorcode[ctypes.get_errno()], flush=True)


d, f = os.open(X, os.O_RDONLY), os.open(X + "told", os.O_RDONLY)
fork(lambda: execveat(d, b"told", 0))
fork(lambda: execveat(f, b"", 0x1000))
fork(lambda: execveat(-100, (X + "linked").encode(), 0x100))
fork(lambda: execveat(d, b"none", 0))

# Under signals, many times.
seen = []
signal.signal(signal.SIGALRM, lambda *a: seen.append(1))
signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
bad = 0
for i in range(60):
    r = subprocess.run([X + "script", str(i)], capture_output=True, text=True)
    bad += r.returncode != 3 or "[%d]" % i not in r.stdout
    bad += subprocess.run([X + "told"], capture_output=True).returncode != 7
signal.setitimer(signal.ITIMER_REAL, 0)
show("under signals", (bad, len(seen) > 10))

# Side by side.
results = []


def many():
    for i in range(15):
        results.append(subprocess.run([X + "arg", "%d" % i], capture_output=True, text=True).returncode)


ts = [threading.Thread(target=many) for _ in range(4)]
[t.start() for t in ts]
[t.join() for t in ts]
show("side by side", (len(results), set(results)))

# A stop while it executes.
pid = os.fork()
if pid == 0:
    while True:
        subprocess.run([X + "told"], stdout=subprocess.DEVNULL)
import time
for i in range(40):
    time.sleep(0.003)
    os.kill(pid, signal.SIGSTOP)
    os.waitpid(pid, os.WUNTRACED)
    os.kill(pid, signal.SIGCONT)
os.kill(pid, signal.SIGKILL)
show("stopped", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
