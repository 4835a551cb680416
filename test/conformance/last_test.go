package conformance

import (
	"bufio"
	"fmt"
	"strings"
	"testing"

	"github.com/stead-dev/stead/test/internal/bed"
)

// What a program writes before it ends is delivered, as a kernel does for sockets that are closed
// with bytes in them.
func TestTheLastWordsOfAProgramArrive(t *testing.T) {
	b := bed.Up(t, stead, "conformance-last")
	const size = 8 << 20
	sink := func(script string) (result func() string) {
		c := b.Command("playground", "exec", "db", "--", "python3", "-u", "-c", script)
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		r := bufio.NewReader(out)
		if l, _ := r.ReadString('\n'); l != "up\n" {
			t.Fatalf("the sink says %q", l)
		}
		return func() string { l, _ := r.ReadString('\n'); c.Wait(); return strings.TrimSpace(l) }
	}
	for i := range 5 {
		got := sink("import socket; l = socket.create_server(('', 7101)); print('up'); c = l.accept()[0]; n = 0\nwhile True:\n    d = c.recv(1 << 16)\n    if not d: break\n    n += len(d)\nprint(n)")
		r := b.Exec([]string{"--no-incoming"}, "python3", "-c", fmt.Sprintf("import os, socket; c = socket.create_connection(('db', 7101)); c.sendall(bytes(%d)); os._exit(3)", size))
		if n := got(); n != fmt.Sprint(size) || r.Code != 3 {
			t.Errorf("TCP, time %d: %s of %d bytes arrived, exit code %d: %s", i, n, size, r.Code, r.Stderr)
		}
		for _, send := range []string{"c.connect(('db', 7102)); [c.send(b'x%d' % i) for i in range(20)]", "[c.sendto(b'x%d' % i, ('db', 7102)) for i in range(20)]"} {
			got = sink("import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('', 7102)); s.settimeout(20); print('up'); print(len({s.recv(100) for i in range(20)}))")
			r = b.Exec([]string{"--no-incoming"}, "python3", "-c", "import os, socket; c = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); "+send+"; os._exit(0)")
			if n := got(); n != "20" || r.Code != 0 {
				t.Errorf("UDP, time %d: %q of 20 datagrams arrived, exit code %d: %s", i, n, r.Code, r.Stderr)
			}
		}
		c := b.Command("exec", "-t", "playground/orders", "--steal", "--", "python3", "-u", "-c", fmt.Sprintf(
			"import os, socket; l = socket.create_server(('', 8080)); print('up'); c = l.accept()[0]; c.recv(1000); c.sendall(b'HTTP/1.1 200 OK\\r\\nConnection: close\\r\\nContent-Length: %d\\r\\n\\r\\n' + b'y' * %d); os._exit(0)", size, size))
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		bufio.NewReader(out).ReadString('\n')
		if r := b.Call("http://10.244.0.11:8080/"); len(strings.TrimSpace(r.Stdout)) != size {
			t.Errorf("served, time %d: %d of %d bytes arrived: %s", i, len(strings.TrimSpace(r.Stdout)), size, r.Stderr)
		}
		c.Wait()
	}
}
