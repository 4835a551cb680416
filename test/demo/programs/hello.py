import http.server, os, socket, sys

def look():
    with socket.create_connection(("db", 5432)) as c:
        c.sendall(b"hello\n")
        answer = c.makefile().readline().strip()
        here, there = ("%s:%d" % s[:2] for s in (c.getsockname(), c.getpeername()))
    print("env    GREETING:", os.environ["GREETING"])
    print("host  ", socket.gethostname())
    print("file   /etc/orders/config.yaml:", len(open("/etc/orders/config.yaml", "rb").read()), "bytes")
    print("name   db:", socket.getaddrinfo("db", None, socket.AF_INET)[0][4][0])
    print("tcp   ", here, "->", there + ":", answer)

class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        print("got", self.command, self.path, "from", self.client_address[0])
        self.send_response(200)
        self.end_headers()
        self.wfile.write(("the program on the laptop: GET %s\n" % self.path).encode())
    def log_message(self, *_): pass

if len(sys.argv) < 2:
    look()
server = http.server.HTTPServer(("", 8080), Answer)
print("listening on 8080", flush=True)
server.handle_request()
