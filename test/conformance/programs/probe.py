"""Prints what a program sees of its machine; run natively in a pod and under stead it must print
the same. `probe.py look`, `probe.py serve PORT COUNT`, `probe.py own PORT` speaks with itself on a port
of its own, `probe.py errnos ADDRESS...` tells how connecting fails, `probe.py inodes DIRECTORY...` whether listing and
stat agree, `probe.py options ADDRESS...` what options set before connecting to where nobody answers do."""
import concurrent.futures, errno, hashlib, mmap, os, select, socket, socketserver, struct, sys, urllib.request

DB = "db.shop.svc.cluster.local"

def out(*a):
    print(" ".join(map(str, a)) + "\n", end="", flush=True)  # one write: threads print, too

def err(f):
    try:
        f()
        return "ok"
    except OSError as e:
        return errno.errorcode.get(e.errno, str(e))

def text(name):
    try:
        return repr(open(name).read())
    except OSError as e:
        return errno.errorcode[e.errno]

def addresses(name):
    r = socket.getaddrinfo(name, 80, type=socket.SOCK_STREAM)
    return [a[4][0] for a in r]

def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET

def look():
    for k in ("POD_NAME", "DATABASE_URL", "GREETING"):
        out("env", k, os.environ.get(k))
    out("hostname", socket.gethostname(), os.uname().nodename)
    for f in ("/etc/orders/config.yaml", "/var/run/secrets/orders/token", "/etc/resolv.conf", "/etc/hostname", "/etc/hosts", "/etc/ssl/certs/orders-pod.pem"):
        out("file", f, text(f))
    out("link", os.readlink("/var/data/link"), os.path.realpath("/var/data/link"))
    st = os.stat("/var/data/big.bin")
    h = hashlib.sha256()
    with open("/var/data/link", "rb") as f:
        with mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as m:
            h.update(m)
    out("big", st.st_size, oct(st.st_mode), int(st.st_mtime), st.st_nlink, h.hexdigest(), open("/var/data/big.bin.sha256").read().split()[0] == h.hexdigest())
    names = sorted(os.listdir("/var/data/many"))
    out("list", len(names), names[0], names[-1], sum(e.is_file() for e in os.scandir("/var/data/many")))
    fd = os.open("/var/data/many", os.O_RDONLY)
    out("dirfd", os.readlink(f"/proc/self/fd/{fd}"), len(os.listdir(fd)), err(lambda: os.stat("no-such", dir_fd=fd)))
    old = os.getcwd()
    os.chdir("/var/data")
    out("cwd", os.getcwd(), os.path.getsize("big.bin"), os.path.realpath("../data/link"), os.access("big.bin", os.R_OK), os.access("none", os.R_OK))
    os.chdir(old)
    for name in ("/etc/orders/config.yaml", "/var/data/big.bin"):
        a, b = socket.socketpair()
        with open(name, "rb") as f:
            h = hashlib.sha256()
            sent = 0
            while n := os.sendfile(a.fileno(), f.fileno(), sent, 65536):
                sent += n
                while n > 0:
                    h.update(d := b.recv(n))
                    n -= len(d)
        out("sendfile", name, sent, h.hexdigest())
        a.close(); b.close()
    out("write", err(lambda: open("/etc/orders/config.yaml", "r+").close()) in ("EROFS", "ok"), err(lambda: open("/etc/no/such")))
    for n in ("db", "db.shop", DB, "DB.shop.svc.cluster.local.", "localhost", socket.gethostname()):
        out("dns", n, addresses(n))
    for n in ("dozens", "hundreds"):  # answers that are truncated over UDP
        try:
            out("dns", n, len(set(addresses(n))))
        except socket.gaierror as e:
            out("dns", n, e.errno)
    try:
        out("dns", addresses("no-such-name"))
    except socket.gaierror as e:
        out("dns none", e.errno)
    for a in sorted(set(addresses("db"))):
        with socket.create_connection((a, 5432), 10) as s:
            s.sendall(b"ping\n")
            out("tcp", a, s.recv(100), s.getpeername()[:2], s.getsockname()[0])
        with socket.create_connection((a, 80), 10) as s:
            s.sendall(b"GET / HTTP/1.0\r\n\r\n")
            said = s.makefile().read().split()[-1]  # the client's end as the other sees it
            host, port = s.getsockname()[:2]
            out("ends", a, said.rpartition(":")[0], said == (f"[{host}]:{port}" if ":" in host else f"{host}:{port}"))
        out("refused", a, err(lambda: socket.create_connection((a, 1), 10)))
        s = socket.socket(family(a))
        s.setblocking(False)
        e = s.connect_ex((a, 5432))
        p = select.poll(); p.register(s, select.POLLOUT)
        out("nonblocking", errno.errorcode.get(e, e), p.poll(10000)[0][1] & select.POLLOUT, s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), s.getpeername()[:2])
        s.close()
        u = socket.socket(family(a), socket.SOCK_DGRAM)
        u.settimeout(10)
        u.connect((a, 5433)); u.send(b"x"); out("udp", u.recvfrom(100)[0], u.getpeername()[:2], u.getsockname()[0]); u.close()
        u = socket.socket(family(a), socket.SOCK_DGRAM)
        u.settimeout(10)
        u.sendto(b"y", (a, 5433)); d, f = u.recvfrom(100); out("udp from", d, f[:2]); u.close()
    out("http", urllib.request.urlopen("http://db/", timeout=10).read().decode().strip().rsplit(":", 1)[0])
    for a, f in (("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6), ("::ffff:127.0.0.1", socket.AF_INET6), ("0.0.0.0", socket.AF_INET), ("::", socket.AF_INET6)):
        with socket.socket(f) as s:
            s.settimeout(10)
            if e := s.connect_ex((a, 9000)):
                out("loopback", a, errno.errorcode[e])
                continue
            s.sendall(b"self"); out("loopback", s.recv(100), s.getpeername(), s.getsockname()[0])

def inodes(directories):
    """What getdents says of a file is what stat says."""
    for d in directories:
        out("inodes", d, len([e for e in os.scandir(d) if e.inode() != e.stat(follow_symlinks=False).st_ino]))

def own(port):
    """A listener of the program's own is its own, whatever listens on that port of the pod."""
    for a in ("127.0.0.1", "::1"):
        l = socket.create_server((a, port), family=family(a))
        c = socket.create_connection((a, port), 10)
        s, f = l.accept()
        s.sendall(b"own")
        out("own", a, c.recv(100), f[0], c.getpeername()[:2] == l.getsockname()[:2], s.getpeername() == c.getsockname() == f)
        for x in (c, s, l):
            x.close()

def connecting(a, port, blocking):
    with socket.socket(family(a)) as s:
        s.setblocking(blocking)
        e = s.connect_ex((a, port))
        if not blocking:
            p = select.poll(); p.register(s, select.POLLOUT)
            events = p.poll(150000)
            if events and events[0][1] == select.POLLERR:  # tcp_poll takes no lock: a failure may be half told
                events = p.poll(1000)
            again = s.connect_ex((a, port))
            return errno.errorcode.get(e), events[0][1] if events else "no event", errno.errorcode.get(again, again), s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return errno.errorcode.get(e, e)

def datagram(a, connected):
    with socket.socket(family(a), socket.SOCK_DGRAM) as u:
        u.settimeout(10)
        if connected:
            if e := u.connect_ex((a, 1)):
                return errno.errorcode[e]
            return err(lambda: (u.send(b"x"), u.recv(10)))
        return err(lambda: u.sendto(b"x", (a, 1)))

def errnos(addresses):
    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        jobs = [(("tcp", a, blocking), pool.submit(connecting, a, 1, blocking)) for a in addresses for blocking in (True, False)]
        for name, j in jobs:
            out(*name, j.result())
        # What is sent to nobody is told to a connected socket alone.
        jobs = [(("udp", a, connected), pool.submit(datagram, a, connected)) for a in addresses for connected in (True, False)]
        for name, j in jobs:
            try:
                out(*name, j.result())
            except socket.timeout:
                out(*name, "silence")

def options(addresses):
    """Each attempt with an option ends while the plain one goes on."""
    def attempt(a, blocking, set):
        s = socket.socket(family(a))
        set(s)
        s.setblocking(blocking)
        e = s.connect_ex((a, 1))
        if not blocking:
            p = select.poll(); p.register(s, select.POLLOUT); p.poll()
            e = s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return errno.errorcode[e]
    kinds = {
        "TCP_SYNCNT": lambda s: s.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, 1),
        "TCP_USER_TIMEOUT": lambda s: s.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1500),
        "SO_SNDTIMEO": lambda s: s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 1, 0)),
    }
    pool = concurrent.futures.ThreadPoolExecutor(50)
    plain = [pool.submit(attempt, a, b, lambda s: None) for a in addresses for b in (True, False)]
    jobs = [((n, a, b), pool.submit(attempt, a, b, k)) for n, k in kinds.items() for a in addresses for b in (True, False) if b or n != "SO_SNDTIMEO"]
    for name, j in jobs:
        out(*name, j.result())
    out("plain", [p.done() for p in plain])
    os._exit(0)

def serve(port, count):
    class H(socketserver.StreamRequestHandler):
        def handle(self):
            line = self.rfile.readline().decode().split()
            while self.rfile.readline().strip():
                pass
            ends = "%s %s at %s %s peer %s %s" % (*self.client_address[:2], *self.request.getsockname()[:2], *self.request.getpeername()[:2])
            body = f"python program: {line[0]} {line[1]} from {ends}\n"
            self.wfile.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode())
            out("served", line[0], line[1], ends)
    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address, address_family = True, socket.AF_INET6
        def server_bind(self):
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            super().server_bind()
    s = Server(("::", port), H)
    out("listening", s.socket.getsockname()[1])
    for _ in range(count):
        s.handle_request()
    s.server_close()

{"look": look, "serve": lambda: serve(int(sys.argv[2]), int(sys.argv[3])), "own": lambda: own(int(sys.argv[2])), "errnos": lambda: errnos(sys.argv[2:]), "inodes": lambda: inodes(sys.argv[2:]),
 "options": lambda: options(sys.argv[2:])}[sys.argv[1]]()
