"""Prints what a program sees of its machine; run natively in a pod and under stead it must print
the same. `probe.py look` or `probe.py serve PORT COUNT`."""
import errno, hashlib, os, select, socket, socketserver, sys, urllib.request, mmap

DB = "db.shop.svc.cluster.local"

def out(*a):
    print(*a, flush=True)

def err(f):
    try:
        f()
        return "ok"
    except OSError as e:
        return errno.errorcode.get(e.errno, str(e))

def addresses(name):
    r = socket.getaddrinfo(name, 80, type=socket.SOCK_STREAM)
    return [a[4][0] for a in r]

def look():
    for k in ("POD_NAME", "DATABASE_URL", "GREETING"):
        out("env", k, os.environ.get(k))
    out("hostname", socket.gethostname(), os.uname().nodename)
    for f in ("/etc/orders/config.yaml", "/var/run/secrets/orders/token", "/etc/resolv.conf", "/etc/hostname"):
        out("file", f, repr(open(f).read()))
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
    r, w = os.pipe()
    with open("/etc/orders/config.yaml", "rb") as f:
        out("sendfile", os.sendfile(w, f.fileno(), 0, 4096) == os.path.getsize("/etc/orders/config.yaml"))
    out("write", err(lambda: open("/etc/orders/config.yaml", "r+").close()) in ("EROFS", "ok"), err(lambda: open("/etc/no/such")))
    for n in ("db", "db.shop", DB, "DB.shop.svc.cluster.local."):
        out("dns", n, addresses(n))
    try:
        out("dns", addresses("no-such-name"))
    except socket.gaierror as e:
        out("dns none", e.errno)
    for a in sorted(set(addresses("db"))):
        with socket.create_connection((a, 5432), 10) as s:
            s.sendall(b"ping\n")
            out("tcp", a, s.recv(100), s.getpeername()[:2], s.getsockname()[0])
        out("refused", a, err(lambda: socket.create_connection((a, 1), 10)))
        s = socket.socket(socket.AF_INET6 if ":" in a else socket.AF_INET)
        s.setblocking(False)
        e = s.connect_ex((a, 5432))
        p = select.poll(); p.register(s, select.POLLOUT)
        out("nonblocking", errno.errorcode.get(e, e), p.poll(10000)[0][1] & select.POLLOUT, s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), s.getpeername()[:2])
        s.close()
        u = socket.socket(socket.AF_INET6 if ":" in a else socket.AF_INET, socket.SOCK_DGRAM)
        u.settimeout(10)
        u.connect((a, 5433)); u.send(b"x"); out("udp", u.recvfrom(100)[0], u.getpeername()[:2], u.getsockname()[0]); u.close()
        u = socket.socket(socket.AF_INET6 if ":" in a else socket.AF_INET, socket.SOCK_DGRAM)
        u.settimeout(10)
        u.sendto(b"y", (a, 5433)); d, f = u.recvfrom(100); out("udp from", d, f[:2]); u.close()
    out("http", urllib.request.urlopen("http://db/", timeout=10).read().decode().strip().rsplit(":", 1)[0])
    with socket.create_connection(("127.0.0.1", 9000), 10) as s:
        s.sendall(b"self"); out("loopback", s.recv(100), s.getpeername())

def serve(port, count):
    class H(socketserver.StreamRequestHandler):
        def handle(self):
            line = self.rfile.readline().decode().split()
            while self.rfile.readline().strip():
                pass
            body = f"python program: {line[0]} {line[1]} from {self.client_address[0]} at {self.request.getsockname()[0]} peer {self.request.getpeername()[0]}\n"
            self.wfile.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode())
            out("served", line[0], line[1], self.client_address[0])
    socketserver.ThreadingTCPServer.allow_reuse_address = True
    socketserver.ThreadingTCPServer.address_family = socket.AF_INET
    s = socketserver.ThreadingTCPServer(("0.0.0.0", port), H)
    out("listening", s.socket.getsockname()[1])
    for _ in range(count):
        s.handle_request()
    s.server_close()

if sys.argv[1] == "look":
    look()
else:
    serve(int(sys.argv[2]), int(sys.argv[3]))
