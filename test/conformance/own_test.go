package conformance

import (
	"strings"
	"testing"

	"github.com/stead-dev/stead/test/internal/bed"
)

// The loopback is the pod's but for the ports on which the program listens: there it reaches itself, also
// where the pod's app has the port, and as long as it listens.
func TestAProgramReachesItsOwnListeners(t *testing.T) {
	t.Parallel()
	b := bed.Up(t, stead, "conformance-own")
	for _, program := range [][]string{{"/usr/bin/env", "python3", programs + "/probe.py"}, {programs + "/cprobe"}, {programs + "/goprobe"}} {
		native := b.Native(append(program[:len(program):len(program)], "own", "9777")...)
		if native.Code != 0 || strings.Count(native.Stdout, "\n") != 2 {
			t.Fatalf("natively: exit code %d, %q %s", native.Code, native.Stdout, native.Stderr)
		}
		for _, mode := range []string{"--no-incoming", "--mirror", "--steal"} {
			for _, port := range []string{"9777", "9000"} {
				if r := b.Exec([]string{mode}, append(program[:len(program):len(program)], "own", port)...); r != native {
					t.Errorf("%s %q on port %s: %+v, natively %+v", mode, program, port, r, native)
				}
			}
		}
	}
	const turns = `import socket
def ask():
    with socket.create_connection(("127.0.0.1", 9000), 10) as c: # the pod's echo, or we
        c.sendall(b"who?")
        if l: l.accept()[0].sendall(b"own!")
        return c.recv(4)
l = None; said = [ask()]
l = socket.create_server(("127.0.0.1", 9000)); said.append(ask())
l.close(); l = None; said.append(ask())
print(said)`
	if r := b.Exec([]string{"--no-incoming"}, "python3", "-c", turns); r.Stdout != "[b'who?', b'own!', b'who?']\n" {
		t.Errorf("before, while and after it listens: %q, exit code %d, %s", r.Stdout, r.Code, r.Stderr)
	}
}
