package conformance

import (
	"bufio"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stead-dev/stead/test/internal/bed"
)

// session starts a program of Python's in the stead of orders, which prints "up" when it is ready, and
// ends it when its standard input ends. The result of end is what it printed after that.
func session(t *testing.T, b *bed.Bed, mode, script string) (say func(string) string, end func() string) {
	t.Helper()
	c := b.Command("exec", "-t", "playground/orders", mode, "--", "python3", "-u", "-c", script)
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var errs strings.Builder
	c.Stderr = &errs
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Process.Kill(); c.Wait() })
	lines := bufio.NewScanner(out)
	next := func() string {
		if !lines.Scan() {
			t.Fatalf("the program ended: %s", errs.String())
		}
		return lines.Text()
	}
	if l := next(); l != "up" {
		t.Fatalf("first line %q, stderr %s", l, errs.String())
	}
	say = func(s string) string { in.Write([]byte(s + "\n")); return next() }
	return say, func() string {
		in.Close()
		var rest strings.Builder
		for lines.Scan() {
			rest.WriteString(lines.Text() + "\n")
		}
		c.Wait()
		return rest.String()
	}
}

// answering is a server for one request a connection, from each listener given to serve.
const answering = `
import os, socket, sys, threading
def listener(family, host, port=8080, backlog=100, **options):
    s = socket.socket(family)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    for o in options:
        s.setsockopt(socket.IPPROTO_IPV6 if o.startswith("IPV6") else socket.SOL_SOCKET, getattr(socket, o), options[o])
    s.bind((host, port))
    s.listen(backlog)
    return s
def serve(name, l):
    def loop():
        while True:
            try: c, a = l.accept()
            except OSError: return
            c.recv(1000)
            b = "%s program: from %s\n" % (name, a[0])
            c.sendall(("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(b), b)).encode())
            c.close()
    threading.Thread(target=loop, daemon=True).start()
    return l
`

// nginx and others listen for each family by itself.
func TestEachClientComesToTheListenerOfItsFamily(t *testing.T) {
	b := bed.Up(t, stead, "conformance-families")
	say, end := session(t, b, "--steal", answering+`
serve("v4", listener(socket.AF_INET, "0.0.0.0"))
six = serve("v6", listener(socket.AF_INET6, "::", IPV6_V6ONLY=1))
print("up")
input()
six.shutdown(socket.SHUT_RDWR)
six.close()
print("closed")
input()
`)
	v4, v6 := "http://10.244.0.11:8080/", "http://[fd00:244::11]:8080/"
	for url, want := range map[string]string{v4: "v4 program: from 10.244.0.13\n", v6: "v6 program: from fd00:244::13\n"} {
		if r := b.Call(url); r.Stdout != want {
			t.Errorf("%s: %q, want %q; %s", url, r.Stdout, want, r.Stderr)
		}
	}
	say("")
	if r := b.Call(v4); r.Stdout != "v4 program: from 10.244.0.13\n" {
		t.Errorf("after the other listener was closed: %q %s", r.Stdout, r.Stderr)
	}
	end()
}

func TestAPortThatIsTakenOnTheLaptopIsTheProgramsOwnAllTheSame(t *testing.T) {
	b := bed.Up(t, stead, "conformance-taken")
	if taken, err := net.Listen("tcp", ":8080"); err == nil { // else somebody else has it, which is as good
		defer taken.Close()
	}
	for _, mode := range []string{"--steal", "--no-incoming"} {
		_, end := session(t, b, mode, answering+`
import errno
served = [serve(str(i), listener(socket.AF_INET, "", SO_REUSEPORT=1)) for i in range(3)]
print("up")
sys.stdin.read()
seen = set()
for i in range(60):
    with socket.create_connection(("127.0.0.1", 8080), 10) as c:
        c.sendall(b"GET / HTTP/1.1\r\n\r\n")
        seen.add(c.makefile("rb").read().split(b"\r\n\r\n")[1])
print(sorted(seen))
try: listener(socket.AF_INET, "")
except OSError as e: print(errno.errorcode[e.errno])
`)
		if mode == "--steal" {
			seen := map[string]bool{}
			for range 60 {
				seen[b.Call("http://10.244.0.11:8080/").Stdout] = true
			}
			if len(seen) != 3 {
				t.Errorf("stolen connections came to these of 3 listeners: %v", seen)
			}
		}
		want := `[b'0 program: from 127.0.0.1\n', b'1 program: from 127.0.0.1\n', b'2 program: from 127.0.0.1\n']` + "\nEADDRINUSE\n"
		if got := end(); got != want {
			t.Errorf("%s: the program itself reached %s, want %s", mode, got, want)
		}
	}
}

// machine is a network namespace with a loopback and a setting of its own, in which stead runs.
func machine(t *testing.T, name, setting string) *bed.Bed {
	t.Helper()
	holder := exec.Command("unshare", "--net", "--kill-child", "--fork", "sh", "-c", "ip link set lo up && "+setting+" && echo up && exec sleep 1000")
	out, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { holder.Process.Kill(); holder.Wait() })
	if l, _ := bufio.NewReader(out).ReadString('\n'); l != "up\n" {
		t.Fatalf("a machine with %s: %q", setting, l)
	}
	child, err := exec.Command("pgrep", "-P", strconv.Itoa(holder.Process.Pid)).Output()
	if err != nil {
		t.Fatal(err)
	}
	b := &bed.Bed{Stead: stead, T: t, Env: append(os.Environ(), bed.Playground(name))}
	b.Before = []string{"nsenter", "--net", "--target", strings.TrimSpace(string(child)), "--"}
	if r := b.Run("playground", "up", "--detach"); r.Code != 0 {
		t.Fatal(r.Stderr)
	}
	t.Cleanup(func() { b.Run("playground", "down") })
	return b
}

// A client that closes first leaves our end of the way to the program in TIME_WAIT for a minute.
func TestMoreConnectionsAreStolenThanALoopbackAddressHasPorts(t *testing.T) {
	b := machine(t, "conformance-ports", "echo 40000 40063 > /proc/sys/net/ipv4/ip_local_port_range")
	_, end := session(t, b, "--steal", `
import socket, sys, threading
l = socket.create_server(("", 8080))
def loop():
    while True:
        c, a = l.accept()
        c.sendall(b"program")
        c.recv(1)
        c.close()
threading.Thread(target=loop, daemon=True).start()
print("up")
sys.stdin.read()
`)
	r := b.Run("playground", "exec", "client", "--", "python3", "-c", `
import socket
n = 0
for i in range(300):
    with socket.create_connection(("10.244.0.11", 8080), 20) as c:
        c.settimeout(5)
        try: n += c.recv(100) == b"program"
        except TimeoutError: pass
    if n <= i: break
print(n)
`)
	if r.Stdout != "300\n" {
		t.Errorf("%s of 300 connections came to the program: %s", strings.TrimSpace(r.Stdout), r.Stderr)
	}
	end()
}

// As with a program that a debugger has stopped.
func TestClientsWaitForAProgramThatDoesNotAccept(t *testing.T) {
	b := bed.Up(t, stead, "conformance-queue")
	say, end := session(t, b, "--steal", answering+`
l = listener(socket.AF_INET, "", backlog=0)
print("up")
input()
serve("late", l)
print("serving")
input()
`)
	answers := make(chan string)
	for range 4 {
		go func() {
			r := b.Command("playground", "exec", "client", "--", "curl", "-sS", "-m", "60", "http://10.244.0.11:8080/")
			out, _ := r.Output()
			answers <- string(out)
		}()
	}
	select {
	case a := <-answers:
		t.Errorf("somebody answered %q while the program did not accept", a)
		go func() { answers <- a }()
	case <-time.After(7 * time.Second): // longer than what is waited for a listener that is gone
	}
	say("")
	for range 4 {
		if a := <-answers; a != "late program: from 10.244.0.13\n" {
			t.Errorf("answered %q", a)
		}
	}
	end()
}
