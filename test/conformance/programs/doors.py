"""Prints what path calls say, for two ways of showing the pod's files to be compared."""
import ctypes, errno, os, signal, socket, stat, subprocess, sys, threading

libc = ctypes.CDLL(None, use_errno=True)


def call(what, f, *a, **k):
    try:
        r = f(*a, **k)
    except OSError as e:
        print(what, errno.errorcode.get(e.errno, e.errno))
        return None
    print(what, "ok" if r is None else r)
    return r


def opened(what, path, flags, mode=0o600, dir_fd=None):
    try:
        fd = os.open(path, flags, mode, dir_fd=dir_fd)
    except OSError as e:
        print(what, errno.errorcode[e.errno])
        return
    st = os.fstat(fd)
    print(what, "opened", oct(st.st_mode), st.st_size if stat.S_ISREG(st.st_mode) else "-", os.readlink("/proc/self/fd/%d" % fd))
    os.close(fd)


def raw(what, name, *a):
    r = getattr(libc, name)(*a)
    print(what, r if r >= 0 else errno.errorcode[ctypes.get_errno()])


def facts(path):
    st = os.lstat(path)
    return oct(st.st_mode), st.st_size if not stat.S_ISDIR(st.st_mode) else 0, st.st_nlink, st.st_uid, int(st.st_mtime)


laptop = sys.argv[1]  # a directory of the laptop's, in which we may write
os.makedirs(laptop + "/sub", exist_ok=True)
open(laptop + "/own", "w").write("own\n")
os.umask(0o027)

P = "/var/data"
for p in [P, P + "/", P + "/.", P + "//big.bin", P + "/../data/big.bin", P + "/link", P + "/link/", P + "/many/..", P + "/none", P + "/none/x",
          P + "/big.bin/", P + "/big.bin/x", "/etc/../var/data/link", "/usr/../var/data/big.bin", laptop + "/../../../../../../../var/data", "/..", "/../var/data",
          "/var/run/secrets/orders/token", "/etc/hostname", "/etc", "/usr/bin/env", "/bin/sh", "/etc/localtime", "/etc/ssl/openssl.cnf", "/tmp", "/etc/passwd",
          "/var/data/many/" + "x" * 255, "/var/data/" + "x" * 256, "/var/" + "d/" * 3000]:
    short = p if len(p) < 80 else p[:20] + "...%d" % len(p)
    call("lstat " + short, lambda: oct(os.lstat(p).st_mode))
    call("stat " + short, lambda: oct(os.stat(p).st_mode))
    call("access " + short, os.access, p, os.R_OK)
    call("W_OK " + short, os.access, p, os.W_OK)
    call("readlink " + short, os.readlink, p)
    call("realpath " + short, lambda: os.path.realpath(p)[:80])
    call("statvfs " + short, lambda: os.statvfs(p).f_namemax)
    call("getxattr " + short, lambda: os.getxattr(p, "user.none"))
    call("listxattr " + short, lambda: os.listxattr(p, follow_symlinks=False))
print(facts(P + "/big.bin"), facts(P + "/link"), facts(P + "/many"))

F = P + "/big.bin"
for what, path, flags in [("read", F, os.O_RDONLY), ("write", F, os.O_WRONLY), ("both", F, os.O_RDWR), ("trunc", F, os.O_WRONLY | os.O_TRUNC), ("append", F, os.O_WRONLY | os.O_APPEND),
                          ("creat there", F, os.O_RDONLY | os.O_CREAT), ("excl there", F, os.O_WRONLY | os.O_CREAT | os.O_EXCL), ("creat", P + "/new", os.O_WRONLY | os.O_CREAT),
                          ("excl", P + "/new", os.O_WRONLY | os.O_CREAT | os.O_EXCL), ("excl on link", P + "/link", os.O_WRONLY | os.O_CREAT | os.O_EXCL),
                          ("creat below none", P + "/no/new", os.O_WRONLY | os.O_CREAT), ("link", P + "/link", os.O_RDONLY), ("nofollow", P + "/link", os.O_RDONLY | os.O_NOFOLLOW),
                          ("directory", P, os.O_RDONLY | os.O_DIRECTORY), ("directory on a file", F, os.O_RDONLY | os.O_DIRECTORY), ("write directory", P, os.O_WRONLY),
                          ("slash", F + "/", os.O_RDONLY), ("empty", "", os.O_RDONLY), ("nonblock", F, os.O_RDONLY | os.O_NONBLOCK),
                          ("laptop", laptop + "/own", os.O_RDWR), ("laptop new", laptop + "/new", os.O_RDWR | os.O_CREAT), ("root", "/", os.O_RDONLY)]:
    opened("open " + what, path, flags)
fd = os.open(F, os.O_RDONLY)
import fcntl
print("flags", fcntl.fcntl(fd, fcntl.F_GETFL) & ~0o100000, fcntl.fcntl(fd, fcntl.F_GETFD))
os.close(fd)

call("mkdir", os.mkdir, P + "/d")
call("mkdir there", os.mkdir, P + "/many")
call("mkdir slash", os.mkdir, P + "/d/")
call("mkdir below none", os.mkdir, P + "/no/d")
call("rmdir", os.rmdir, P + "/many")
call("rmdir none", os.rmdir, P + "/none")
call("rmdir file", os.rmdir, F)
call("unlink", os.unlink, F)
call("unlink none", os.unlink, P + "/none")
call("unlink dir", os.unlink, P + "/many")
call("rename", os.rename, F, P + "/other")
call("rename none", os.rename, P + "/none", P + "/other")
call("rename out", os.rename, F, laptop + "/stolen")
call("rename in", os.rename, laptop + "/own", P + "/given")
call("rename of the laptop's", os.rename, laptop + "/new", laptop + "/newer")
call("link", os.link, F, P + "/hard")
call("link out", os.link, F, laptop + "/hard")
call("symlink", os.symlink, "to", P + "/soft")
call("symlink there", os.symlink, "to", P + "/link")
call("symlink of the laptop's", os.symlink, F, laptop + "/soft")
call("mkfifo", os.mkfifo, P + "/fifo")
call("chmod", os.chmod, F, 0o600)
call("chmod none", os.chmod, P + "/none", 0o600)
call("chown", os.chown, F, os.getuid(), os.getgid())
call("lchown", os.lchown, P + "/link", os.getuid(), os.getgid())
call("utime", os.utime, F)
call("truncate", os.truncate, F, 0)
call("setxattr", os.setxattr, F, "user.x", b"x")
call("removexattr", os.removexattr, F, "user.x")
raw("creat NULL", "creat", None, 0o600)
raw("stat bad pointer", "access", ctypes.c_void_p(8), 0)
buf = ctypes.create_string_buffer(4)
os.chdir(P)
raw("getcwd small", "syscall", {"x86_64": 79, "aarch64": 17}[os.uname().machine], buf, 4)
os.chdir(laptop)

s = socket.socket(socket.AF_UNIX)
call("bind unix", s.bind, P + "/socket")
call("connect unix", s.connect, P + "/socket")
call("bind unix of the laptop's", s.bind, laptop + "/socket")

ifd = libc.inotify_init1(os.O_CLOEXEC)
raw("inotify", "inotify_add_watch", ifd, P.encode(), 0x100)
raw("inotify none", "inotify_add_watch", ifd, (P + "/none").encode(), 0x100)

print("from", os.getcwd() == laptop)
os.chdir(P)
print(os.getcwd(), os.readlink("/proc/self/cwd"), sorted(os.listdir("."))[:3], os.stat("big.bin").st_size, os.path.exists("../data/link"))
opened("relative", "big.bin", os.O_RDONLY)
opened("relative laptop", "../../usr/bin/env", os.O_RDONLY)
opened("relative tmp", "../.." + laptop + "/own", os.O_RDWR)
call("mkdir relative", os.mkdir, "d")
print(subprocess.run("pwd; cat big.bin.sha256 | wc -c; cd many && ls | wc -l; cd ..; pwd; cd ../../usr && pwd; cd " + laptop + " && ls", shell=True, capture_output=True, text=True))
done = []
threading.Thread(target=lambda: (os.chdir("many"), done.append(os.getcwd()))).start()
while not done:
    pass
print(done, os.getcwd(), len(os.listdir()))
sys.stdout.flush()
if os.fork() == 0:
    os.chdir("..")
    print("child", os.getcwd(), os.access("big.bin", os.R_OK), flush=True)
    os._exit(0)
os.wait()
print("parent", os.getcwd())
call("chdir none", os.chdir, P + "/none")
call("chdir file", os.chdir, F)
call("chdir up", os.chdir, "../..")
print(os.getcwd(), len(os.listdir("data/many")))
call("chdir home", os.chdir, laptop)
print(os.getcwd() == laptop, sorted(os.listdir()))

d = os.open(P, os.O_RDONLY)
opened("at", "link", os.O_RDONLY, dir_fd=d)
opened("at up", "../../etc/orders/config.yaml", os.O_RDONLY, dir_fd=d)
call("stat at", lambda: os.stat("big.bin", dir_fd=d).st_size)
call("mkdir at", os.mkdir, "d", dir_fd=d)
os.fchdir(d)
print("fchdir", os.getcwd())
r = os.open("/", os.O_RDONLY)
print("root", "usr" in os.listdir(r), oct(os.stat("usr/bin/env", dir_fd=r).st_mode), os.stat("var/data/big.bin", dir_fd=r).st_size)
with os.scandir("/etc/orders") as it:
    print([(e.name, e.is_file(), e.stat().st_size) for e in it])

# Signals come all the time while the directory changes.
signals = []
signal.signal(signal.SIGALRM, lambda *a: signals.append(1))
signal.siginterrupt(signal.SIGALRM, False)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
wrong = 0
for i in range(300):
    for to in (P, "many", "..", laptop):
        os.chdir(to)
    os.chdir(P + "/many")
    if os.getcwd() != P + "/many" or not os.path.exists("../big.bin") or open("../big.bin.sha256").read()[64] != " ":
        wrong += 1
signal.setitimer(signal.ITIMER_REAL, 0)
print("under signals", wrong, len(signals) > 10, os.listdir("/proc/self/fd").__len__() < 15)

# A path whose ".." follow what is the pod's only in the middle.
for p in ["/../var/data/../../tmp", "/usr/../var/data/../../usr/bin/env", "/tmp/../usr/../var/none/../../usr/bin/env"]:
    call("stat " + p, lambda: oct(os.stat(p).st_mode))

# Another process with the number of one that has ended (only root may choose it).
import struct, time


def clone(pid):
    pids = (ctypes.c_int * 1)(pid)
    args = ctypes.create_string_buffer(struct.pack("11Q", 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, ctypes.addressof(pids), 1, 0))
    return libc.syscall(435, args, 88)


os.chdir(laptop)
for to in (P, None):
    pid = clone(31000)
    if pid == 0:
        if to:
            os.chdir(to)
        print("number", os.getcwd(), os.path.exists("big.bin"), os.path.exists("own"), flush=True)
        os._exit(0)
    if pid < 0:
        print("number", "not for us")
        break
    os.waitpid(pid, 0)
    time.sleep(0.03)  # a number comes again only after all the others

# The process is stopped and goes on while it changes its directory.
sys.stdout.flush()
pid = os.fork()
if pid == 0:
    while True:
        for to in (P, laptop):
            try:
                os.chdir(to)
                wrong = os.getcwd() != to
            except OSError as e:
                wrong = e
            if wrong:
                print("stopped:", wrong, flush=True)
lost = 0
for i in range(60):
    time.sleep(0.001)
    os.kill(pid, signal.SIGSTOP)
    for _ in range(1000):
        if os.waitpid(pid, os.WUNTRACED | os.WNOHANG)[0]:
            break
        time.sleep(0.001)
    else:
        lost += 1
        break
    os.kill(pid, signal.SIGCONT)
os.kill(pid, signal.SIGKILL)
os.waitpid(pid, 0)
print("lost stops", lost)

# Links of the pod's to what is this machine's: our own /proc/self, our own umask, and nothing is made
# on this machine in a place that is the pod's.
os.umask(0o077)
with open(laptop + "/stdout", "w") as f:
    old = os.dup(1)
    os.dup2(f.fileno(), 1)
    try:
        fd = os.open(P + "/out", os.O_WRONLY)
        os.write(fd, b"to the program's own\n")
        os.close(fd)
    finally:
        os.dup2(old, 1)
print(open(laptop + "/stdout").read())
r, w = os.pipe()
os.dup2(w, 1)
try:
    fd = os.open(P + "/out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.write(fd, b"by a pipe")
finally:
    os.dup2(old, 1)
print(os.read(r, 100), [l for l in open(P + "/self") if l.startswith("Pid")] == ["Pid:\t%d\n" % os.getpid()])
print("mounts", open(P + "/mounts").read() == open("/proc/self/mounts").read())
made = "/var/tmp/doors-made"
for p in ["etc", "etc/", "made", "made/", "loop", "bin/env/", "bin/../none", "bin/env/x", "none/x", "bin"]:
    for what, flags in [("creat", os.O_WRONLY | os.O_CREAT), ("excl", os.O_WRONLY | os.O_CREAT | os.O_EXCL), ("nofollow", os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW), ("read", os.O_RDONLY)]:
        if p != "bin/../none":  # root would make it
            opened(what + " " + p, P + "/" + p, flags, 0o666)
    call("stat " + p, lambda: oct(os.stat(P + "/" + p).st_mode))
    call("lstat " + p, lambda: oct(os.lstat(P + "/" + p).st_mode))
    if p != "bin/../none":
        call("mkdir " + p, os.mkdir, P + "/" + p)
    call("listdir " + p, lambda: len(os.listdir(P + "/" + p)))
    if os.path.lexists(made):
        os.unlink(made)

# A process that was root acts with the rights that it has now, whoever looks for it.
if os.getuid() == 0:
    os.chmod(laptop, 0o777)
    open(laptop + "/secret", "w").close()
    sys.stdout.flush()
    if os.fork() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        opened("dropped secret", P + "/secret", os.O_RDONLY)
        opened("dropped", P + "/link", os.O_RDONLY)
        call("dropped access", os.access, P + "/secret", os.R_OK)
        opened("dropped laptop", P + "/bin/../.." + laptop + "/secret", os.O_RDONLY)
        opened("dropped made", P + "/made", os.O_RDWR | os.O_CREAT)
        call("dropped owner", lambda: os.stat(made).st_uid)
        call("dropped chdir", os.chdir, P + "/many")
        call("dropped self", lambda: os.readlink(P + "/self"))
        call("dropped status", lambda: "\nUid:\t65534\t" in open(P + "/self").read())
        os.unlink(made)
        sys.stdout.flush()
        os._exit(0)
    os.wait()
    opened("still root", P + "/secret", os.O_RDONLY)
