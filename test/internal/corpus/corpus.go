// Package corpus is the real programs that the suites run natively in a pod and in its stead: their
// sources are in test/conformance/programs.
package corpus

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/stead-dev/stead/test/internal/bed"
)

// Program is how one program of the corpus is called.
type Program struct {
	Name string
	Look []string // prints what it sees of its machine
	// Serve is followed by a port and a count: it answers as many HTTP requests with "X program: METHOD
	// PATH from ENDS", and prints "listening PORT" before them and "served METHOD PATH ENDS" for each. ENDS is
	// "ADDRESS PORT at ADDRESS PORT": the client as accept tells it, the own end, and from who can ask for
	// it " peer ADDRESS PORT": what getpeername says.
	Serve []string
	// IPv4 says that it listens on IPv4 alone.
	IPv4 bool
}

// Programs is the corpus that Build made in dir.
func Programs(dir string) []Program {
	p := func(name, argv string) Program {
		f := strings.Fields(argv)
		return Program{Name: name, Look: append(f[:len(f):len(f)], "look"), Serve: append(f[:len(f):len(f)], "serve")}
	}
	ipv4 := p("java with IPv4 sockets", "java -Djava.net.preferIPv4Stack=true -cp "+dir+" Probe")
	ipv4.IPv4 = true
	return []Program{
		p("python3", "/usr/bin/env python3 "+dir+"/probe.py"),
		p("node", "node "+dir+"/probe.js"),
		p("java", "java -cp "+dir+" Probe"),
		ipv4,
		p("static Go", dir+"/goprobe"),
		p("cgo Go", dir+"/cgoprobe"),
		p("static musl C", dir+"/cprobe"),
		p("bash with children and curl", "/usr/bin/env bash "+dir+"/probe.sh"),
	}
}

// Build puts the corpus into dir, which pod and laptop both see by that name. A compiler that is missing
// is an error: make setup installs them all.
func Build(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	src := filepath.Join(bed.Root(), "test/conformance/programs")
	for _, c := range []struct{ cgo, argv string }{
		{"0", "go build -o " + dir + "/goprobe ./test/conformance/programs/goprobe"},
		{"1", "go build -o " + dir + "/cgoprobe ./test/conformance/programs/goprobe"},
		{"0", "musl-gcc -static -O1 -o " + dir + "/cprobe " + src + "/probe.c"},
		{"0", "javac -d " + dir + " " + src + "/Probe.java"},
		{"0", "cp -p " + src + "/probe.py " + src + "/probe.js " + src + "/probe.sh " + dir},
	} {
		argv := strings.Fields(c.argv)
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Dir, cmd.Env = bed.Root(), append(os.Environ(), "CGO_ENABLED="+c.cgo)
		if b, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", c.argv, err, b)
		}
	}
	return nil
}
