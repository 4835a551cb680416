"""odd.py make: strange files in /var/data/odd. odd.py look: what a program sees of them."""
import errno, hashlib, mmap, os, stat, sys, threading

D = b"/var/data/odd"
NAMES = [b"plain", b"with space", b"new\nline", b"\xff\xfe invalid utf-8", b"x" * 255, "ünïcode".encode(), b"-dash", b"quote'\""]

def make():
    os.makedirs(D + b"/deep" + b"/d" * 100)
    for n in NAMES:
        with open(os.path.join(D, n), "wb") as f:
            f.write(n)
    os.symlink(b"loop2", D + b"/loop1"); os.symlink(b"loop1", D + b"/loop2")
    os.symlink(b"/var/data/big.bin", D + b"/absolute")
    os.symlink(b"../../../../../../../var/data/big.bin.sha256", D + b"/relative")
    os.symlink(b"nowhere", D + b"/dangling")
    os.symlink(b"/etc/orders", D + b"/directory")
    os.mkfifo(D + b"/fifo")
    os.link(D + b"/plain", D + b"/hard")
    with open(D + b"/hole", "wb") as f:
        f.seek(10_000_000); f.write(b"end")
    open(D + b"/empty", "w").close()
    os.chmod(D + b"/plain", 0o640); os.utime(D + b"/plain", ns=(1_000_000_001, 1_234_567_891_123_456_789))

def err(f, *a, **k):
    try:
        f(*a, **k)
        return "ok"
    except OSError as e:
        return errno.errorcode[e.errno]

def look():
    for e in sorted(os.scandir(D), key=lambda e: e.name):
        st = e.stat(follow_symlinks=False)
        print(e.name, stat.filemode(st.st_mode), st.st_size, st.st_nlink, st.st_mtime_ns if e.name == b"plain" else "", e.is_dir(follow_symlinks=False), e.is_symlink())
        if stat.S_ISREG(st.st_mode):
            print(hashlib.sha256(open(e.path, "rb").read()).hexdigest())
    for n in (b"loop1", b"absolute", b"relative", b"dangling", b"directory/config.yaml", b"none", b"plain/x", b"y" * 256, b"deep" + b"/d" * 100, b"deep/../plain", b"fifo"):
        p = os.path.join(D, n)
        print(n[:20], err(os.stat, p), err(os.lstat, p), err(os.open, p, os.O_RDONLY | os.O_NONBLOCK) if n != b"fifo" else "", err(os.readlink, p), os.path.realpath(p)[-40:])
    print(os.stat(D + b"/plain").st_ino == os.stat(D + b"/hard").st_ino, os.path.samefile(D + b"/plain", D + b"/hard"))
    fd = os.open(D + b"/hole", os.O_RDONLY)
    print(os.pread(fd, 5, 9_999_999), os.lseek(fd, 0, os.SEEK_END), os.readlink(f"/proc/self/fd/{fd}"), os.fstat(fd).st_size)
    with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as m:
        print(m[10_000_000:], m[:4])
    os.chdir(D + b"/deep/d"); print(os.getcwd()[-20:], err(os.stat, b"../../plain"), os.path.realpath(b".."))
    os.chdir(b"d"); print(os.getcwd()[-10:])
    big = []
    def reader(i):
        h = hashlib.sha256()
        with open("/var/data/big.bin", "rb", buffering=0) as f:
            while b := f.read(100_000 + i * 33_333):
                h.update(b)
        big.append(h.hexdigest())
    ts = [threading.Thread(target=reader, args=(i,)) for i in range(8)]
    for t in ts: t.start()
    for t in ts: t.join()
    print(len(big), set(big))

make() if sys.argv[1] == "make" else look()
