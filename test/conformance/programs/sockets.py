"""Prints what calls on sockets say; run natively in the pod orders and in its stead it must print the same.
`sockets.py [NAME...]`: the cases of that name alone."""
import errno, select, socket, struct, sys, time

DB = ("10.244.0.12", "fd00:244::12")
cases = []

def case(f):
    cases.append(f)

def family(a):
    return socket.AF_INET6 if ":" in a else socket.AF_INET

def err(f, *a):
    try:
        return f(*a)
    except OSError as e:
        return errno.errorcode.get(e.errno, str(e))

def pending(a, port):
    """a socket whose connection has ended in one way or the other"""
    s = socket.socket(family(a))
    s.setblocking(False)
    s.connect_ex((a, port))
    p = select.poll()
    p.register(s, select.POLLOUT)
    p.poll(20000)
    time.sleep(0.02) # what was awakened by the first of several steps sees the last
    return s, p

@case
def refused():
    for a in DB:
        for ask in (
            lambda s: err(s.send, b"x"),
            lambda s: err(s.recv, 10),
            lambda s: errno.errorcode[s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)],
            lambda s: errno.errorcode[s.connect_ex((a, 1))],
        ):
            s, p = pending(a, 1)
            yield ask(s), err(s.recv, 10), err(s.send, b"x"), [e for _, e in p.poll(0)], s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            s, p = pending(a, 1)
            ask(s)
            again = [errno.errorcode[s.connect_ex((a, 5432))]]
            if again == ["ECONNABORTED"]:
                again.append(errno.errorcode[s.connect_ex((a, 5432))])
            p.poll(20000)
            yield again, err(s.send, b"again\n"), err(s.getpeername)

@case
def mapped():
    s = socket.socket(socket.AF_INET6)
    s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    yield err(s.connect, ("::ffff:" + DB[0], 5432))

@case
def bound():
    """to the pod's own address"""
    for a in ("10.244.0.11", "fd00:244::11"):
        l = socket.socket(family(a))
        l.bind((a, 7700))
        l.listen()
        yield l.getsockname()
        c = socket.socket(family(a))
        c.bind((a, 0))
        yield c.getsockname()[0], c.getsockname()[1] != 0
        c.connect((DB[":" in a], 5432))
        yield c.getsockname()[0], c.getpeername()

def datagram(a, *bind):
    s = socket.socket(family(a), socket.SOCK_DGRAM)
    s.settimeout(10)
    if bind:
        s.bind(bind)
    return s

@case
def segments():
    """UDP_SEGMENT: one call, several datagrams, as QUIC sends"""
    one = struct.pack("H", 100)
    for a in DB:
        for send in (
            lambda s: s.sendmsg([b"x" * 130, b"x" * 120], [(socket.IPPROTO_UDP, 103, one)], 0, (a, 5433)),
            lambda s: s.connect((a, 5433)) or s.sendmsg([b"x" * 250], [(socket.IPPROTO_UDP, 103, one)]),
            lambda s: s.setsockopt(socket.IPPROTO_UDP, 103, 100) or s.sendto(b"x" * 250, (a, 5433)),
        ):
            s = datagram(a)
            yield send(s), sorted(len(s.recv(1000)) for i in range(3))

@case
def answered():
    """a datagram of the program's to itself, from a socket that nobody bound"""
    for a in ("127.0.0.1", "::1"):
        l = datagram(a, a, 7701)
        for send in (lambda s: s.sendto(b"ask", (a, 7701)), lambda s: s.connect((a, 7701)) or s.send(b"ask")):
            s = datagram(a)
            send(s)
            d, of = l.recvfrom(10)
            l.sendto(b"answer", of)
            yield d, of[0], of == s.getsockname() or of[1] == s.getsockname()[1], s.recvfrom(10)

for f in cases:
    if not sys.argv[1:] or f.__name__ in sys.argv[1:]:
        for line in f():
            print(f.__name__, line, flush=True)
