// local measures stead in the playground, each figure beside its bare path in the same run, and
// prints the tables of docs/benchmarks.md. Started without arguments it is the bench; with one it is
// the program that is measured.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func main() {
	if len(os.Args) < 2 {
		newBench().run()
		return
	}
	if f := servers[os.Args[1]]; f != nil {
		f(os.Args[2:])
		return
	}
	fmt.Println(programs[os.Args[1]](os.Args[2:]))
}

func median(d []float64) float64 {
	d = slices.Clone(d)
	slices.Sort(d)
	return d[len(d)/2]
}

func spread(d []float64) string {
	s := slices.Clone(d)
	slices.Sort(s)
	return fmt.Sprintf("%s (%s..%s)", number(s[len(s)/2]), number(s[len(s)/4]), number(s[len(s)*3/4]))
}

func number(v float64) string {
	if v >= 100 {
		return strconv.FormatFloat(v, 'f', 0, 64)
	}
	return strconv.FormatFloat(v, 'f', 2, 64)
}

// repeats is how often each thing is measured: $REPEATS, or 7 times.
var repeats = 7

// bench is a playground and the two programs that are measured in it.
type bench struct{ stead, self string }

func newBench() *bench {
	root, err := os.Getwd()
	check(err)
	self, err := os.Executable()
	check(err)
	os.Setenv("STEAD_PLAYGROUND", fmt.Sprint("bench-", os.Getpid()))
	if n, err := strconv.Atoi(os.Getenv("REPEATS")); err == nil && n > 0 {
		repeats = n
	}
	return &bench{stead: filepath.Join(root, "bin/stead"), self: self}
}

// output runs a command to its end.
func output(argv ...string) string {
	c := exec.Command(argv[0], argv[1:]...)
	c.Stderr = os.Stderr
	b, err := c.Output()
	check(err)
	return strings.TrimSpace(string(b))
}

// value is the number that a command prints.
func value(argv ...string) func() float64 {
	return func() float64 {
		v, err := strconv.ParseFloat(output(argv...), 64)
		check(err)
		return v
	}
}

// timed is how long a command takes, in milliseconds.
func timed(argv ...string) func() float64 {
	return func() float64 {
		t := time.Now()
		output(argv...)
		return float64(time.Since(t).Microseconds()) / 1e3
	}
}

// background starts a command, waits for its first line, and gives what ends it.
func background(argv ...string) (stop func()) {
	c := exec.Command(argv[0], argv[1:]...)
	c.Stderr = os.Stderr
	out, err := c.StdoutPipe()
	check(err)
	check(c.Start())
	_, err = bufio.NewReader(out).ReadString('\n')
	check(err)
	return func() { c.Process.Kill(); c.Wait() }
}

func (b *bench) pod(name string, argv ...string) []string {
	return append([]string{b.stead, "playground", "exec", name, "--"}, argv...)
}

func (b *bench) under(flags string, argv ...string) []string {
	return append(append(append([]string{b.stead, "exec", "-q", "-t", "playground/orders"}, strings.Fields(flags)...), "--"), argv...)
}

// wanted says whether a row is asked for: ONLY is text that it must have.
func wanted(what string) bool { return strings.Contains(what, os.Getenv("ONLY")) }

// row measures the bare path and ours in turn.
func row(what string, bare, ours func() float64) {
	if !wanted(what) {
		return
	}
	var a, b, r []float64
	for range repeats {
		x, y := bare(), ours()
		a, b, r = append(a, x), append(b, y), append(r, y/x)
	}
	fmt.Printf("| %s | %s | %s | %s |\n", what, spread(a), spread(b), spread(r))
}

func (b *bench) run() {
	output(b.stead, "playground", "up", "--detach")
	defer output(b.stead, "playground", "down")
	for _, c := range [][]string{
		{b.self, "sink", "127.0.0.1:17001"}, {b.self, "echo", "127.0.0.1:17002"}, {b.self, "http", bareHTTP},
		b.pod("db", b.self, "sink", ":7001"), b.pod("db", b.self, "echo", ":7002"),
	} {
		defer background(c...)()
	}
	b.table()
	b.incoming()
	b.files()
	b.agent()
}

const (
	noIncoming = "--no-incoming"
	bareHTTP   = "127.0.0.1:17003" // a server on the laptop
)

func (b *bench) table() {
	fmt.Println("| what | bare | under stead | ratio |\n|---|---|---|---|")
	under := func(argv ...string) func() float64 { return value(b.under(noIncoming, argv...)...) }
	output(b.under(noIncoming, "true")...) // the agent is there from now on
	row("`true`, start to end, ms", timed("true"), timed(b.under(noIncoming, "true")...))
	row("untrapped system call, ns", value(b.self, "calls"), under(b.self, "calls"))
	row("bulk TCP, MiB/s (bare: loopback)", value(b.self, "bulk", "127.0.0.1:17001"), under(b.self, "bulk", "db:7001"))
	row("bulk TCP, MiB/s (bare: in the pod)", value(b.pod("orders", b.self, "bulk", "db:7001")...), under(b.self, "bulk", "db:7001"))
	row("1 KiB round trip, us (bare: loopback)", value(b.self, "pings", "127.0.0.1:17002"), under(b.self, "pings", "db:7002"))
	row("1 KiB round trip, us (bare: in the pod)", value(b.pod("orders", b.self, "pings", "db:7002")...), under(b.self, "pings", "db:7002"))
	var during float64
	row("a goroutine's ticks a second, while 1,000 others dial who never answers (bare: before, in the same run)", func() (before float64) {
		_, err := fmt.Sscan(output(b.under(noIncoming, b.self, "ticks", "198.51.100.1:80")...), &before, &during)
		check(err)
		return before
	}, func() float64 { return during })
	const big = "/var/data/big.bin"
	row("stat of a pod file, us (bare: in the pod)", value(b.pod("orders", b.self, "stats", big, "200000", "1")...), under(b.self, "stats", big, "200000", "1"))
	row("the same by the trap", value(b.pod("orders", b.self, "stats", big, "200000", "1")...), value(b.under(noIncoming+" --files trap", b.self, "stats", big, "200000", "1")...))
	row("stat of a laptop file, us, by the trap", value(b.self, "stats", "/usr/bin/env", "200000", "1"), value(b.under(noIncoming+" --files trap", b.self, "stats", "/usr/bin/env", "200000", "1")...))
	const huge = "/var/data/huge.bin" // goes with the playground
	output(b.pod("orders", "sh", "-c", "cat "+strings.Repeat(big+" ", 4)+"> "+huge)...)
	for _, door := range []string{"mount", "trap"} {
		row("first read of 256 MiB, "+door+", MiB/s (bare: in the pod)", value(b.pod("orders", b.self, "read", huge)...), value(b.under(noIncoming+" --files "+door, b.self, "read", huge)...))
	}
}

// incoming measures what the target's clients see.
func (b *bench) incoming() {
	const url = "http://orders:8080/"
	ask := value(b.pod("client", b.self, "requests", url)...)
	for _, c := range []struct{ what, flag string }{
		{"request on a kept connection, us, stolen (bare: the app)", "--steal"},
		{"the same, mirrored: the app's answer (bare: without a session)", "--mirror"},
	} {
		row(c.what, ask, func() float64 {
			defer background(b.under(c.flag, b.self, "http", ":8080")...)()
			return ask()
		})
	}
	// A download of another client's from the app, which the session's program gets a copy of: what the
	// app sends is not in the copy, so the program has only the request.
	defer background(b.pod("orders", b.self, "source", ":7003")...)()
	fetch := value(b.pod("client", b.self, "fetch", "orders:7003")...)
	row("a download from a mirrored port, MiB/s (bare: without a session)", fetch, func() float64 {
		defer background(b.under("--mirror", b.self, "sink", ":7003")...)()
		return fetch()
	})
}

// load is a program that works on files of the laptop's.
type load struct {
	what string
	n    int // how often in one session
	argv []string
	bare []string // natively, where that is not the same
}

// loads prepares in work what they need. A load whose program this machine lacks is left out.
func (b *bench) loads(work string) (all []load) {
	add := func(what string, n int, argv ...string) {
		if _, err := exec.LookPath(argv[0]); err != nil {
			fmt.Fprintf(os.Stderr, "bench: left out: %s: %v\n", what, err)
			return
		}
		all = append(all, load{what: what, n: n, argv: argv})
	}
	inWork := func(cmd string) []string { return []string{"sh", "-c", "cd " + work + " && " + cmd} }
	var sources, objects []string
	for i := range 24 {
		name := fmt.Sprintf("f%d", i)
		check(os.WriteFile(filepath.Join(work, name+".c"), fmt.Appendf(nil, "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\nint %s(void) { return puts(\"%s\"); }\n", name, name), 0o644))
		sources, objects = append(sources, name+".c"), append(objects, name+".o")
	}
	check(os.WriteFile(filepath.Join(work, "Makefile"), []byte("all: "+strings.Join(objects, " ")+"\n%.o: %.c\n\tgcc -c -o $@ $<\n"), 0o644))

	add("true", 30, "true")
	add("bash -c true", 30, "bash", "-c", "true")
	add("bash, 20 commands", 10, "bash", "-c", strings.Repeat("/bin/true; ", 20))
	add("python3 -c pass", 20, "/usr/bin/python3", "-c", "pass")
	const modules = "import asyncio, http.server, json, ssl, sqlite3"
	add("python3, five modules", 5, "/usr/bin/python3", "-c", modules)
	if shim, err := exec.LookPath("python3"); err == nil && strings.Contains(shim, "/shims/") {
		add("python3 -c pass behind a pyenv shim (shell scripts)", 5, shim, "-c", "pass")
	}
	add("node -e 0", 5, "node", "-e", "0")
	if modules := filepath.Join(filepath.Dir(b.self), "node_modules"); exists(modules) { // run.sh installs them
		add("node, require eslint and typescript", 5, "node", "-e", "require('"+modules+"/eslint'); require('"+modules+"/typescript')")
	}
	add("java -version", 5, "java", "-version")
	if javac, err := exec.LookPath("javac"); err == nil {
		output(javac, "-d", work, "test/bench/local/Fetch.java")
		add("java, one HttpClient request", 3, "java", "-cp", work, "Fetch", "http://db/")
		all[len(all)-1].bare = []string{"java", "-cp", work, "Fetch", "http://" + bareHTTP}
	}
	add("go version", 20, "go", "version")
	add("go build ./..., warm", 3, "go", "build", "./...")
	add("go vet ./internal/wire, warm", 5, "go", "vet", "./internal/wire")
	add("git status", 20, "git", "status")
	add("gcc -c, a small file", 10, inWork("gcc -c -o x.o f0.c")...)
	add("make -j2, 24 small files", 2, inWork("rm -f *.o; make -s -j2")...)
	add("find /usr/lib -newer X", 2, "find", "/usr/lib", "-newer", "/usr/bin/env")
	add("ls -R /usr/lib", 2, "ls", "-R", "/usr/lib")
	add("ls -lR /usr/share/doc", 2, "ls", "-lR", "/usr/share/doc")
	add("stat, 100,000 times", 2, b.self, "stats", "/usr/bin/env", "100000", "1")
	add("stat, 25,000 times in 4 threads", 2, b.self, "stats", "/usr/bin/env", "25000", "4")
	return all
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// files measures the loads natively and through both doors: each is run some times in one session.
func (b *bench) files() {
	work, err := os.MkdirTemp("/var/tmp", "stead-loads")
	check(err)
	defer os.RemoveAll(work)
	all := b.loads(work)
	doors := []string{"mount", "trap"}
	under := func(door string, argv ...string) []string {
		return b.under(noIncoming+" --files "+door+" --files-laptop "+work, argv...)
	}
	// CPU time is that of everybody: of the load, and of the session that serves it, without its start.
	start := make([]float64, len(doors))
	for i, door := range doors {
		var d []float64
		for range repeats {
			_, cpu := costs(under(door, b.self, "nothing"))
			d = append(d, cpu)
		}
		start[i] = median(d)
	}
	fmt.Println("\n| load, ms | native | mount, ratio | mount, CPU | trap, ratio | trap, CPU |\n|---|---|---|---|---|---|")
	for _, l := range all {
		if !wanted(l.what) {
			continue
		}
		argv := append([]string{b.self, "load", strconv.Itoa(l.n)}, l.argv...)
		native := argv
		if l.bare != nil {
			native = append(argv[:3:3], l.bare...)
		}
		var walls []float64
		ratios := make([][]float64, 2*len(doors))
		for range repeats {
			wall, cpu := costs(native)
			walls = append(walls, wall)
			for i, door := range doors {
				w, c := costs(under(door, argv...))
				ratios[2*i], ratios[2*i+1] = append(ratios[2*i], w/wall), append(ratios[2*i+1], (c-start[i])/cpu)
			}
		}
		fmt.Printf("| %s | %s", l.what, spread(walls))
		for _, r := range ratios {
			fmt.Printf(" | %s", spread(r))
		}
		fmt.Println(" |")
	}
}

// costs gives the number that a command prints and the CPU time of it and all its children, in
// milliseconds.
func costs(argv []string) (n, cpu float64) {
	c := exec.Command(argv[0], argv[1:]...)
	c.Stderr = os.Stderr
	out, err := c.Output()
	check(err)
	n, err = strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
	check(err)
	return n, float64((c.ProcessState.UserTime() + c.ProcessState.SystemTime()).Microseconds()) / 1e3
}

// agent measures the agent's memory: with nothing to do, and with idle connections.
func (b *bench) agent() {
	rss := func() float64 {
		var st struct{ Pods []struct{ Agent int } }
		check(json.Unmarshal([]byte(output(b.stead, "playground", "status", "-o", "json")), &st))
		f, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", st.Pods[0].Agent))
		check(err)
		_, rest, _ := strings.Cut(string(f), "VmRSS:")
		kb, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
		check(err)
		return kb
	}
	// A fresh one: the last is gone when nobody has asked for it for a while.
	output(b.stead, "playground", "down")
	output(b.stead, "playground", "up", "--detach")
	defer background(b.pod("db", b.self, "echo", ":7002")...)()
	const connections = 1000
	first := background(b.under(noIncoming, b.self, "idle", "10.244.0.12:7002", "1")...)
	defer first()
	idle := rss()
	second := background(b.under(noIncoming, b.self, "idle", "10.244.0.12:7002", strconv.Itoa(connections))...)
	defer second()
	fmt.Printf("\nagent (the CLI's own binary): RSS %.1f MB with one session, %.1f KB more for each of %d idle connections\n", idle/1e3, (rss()-idle)/connections, connections)
	if fi, err := os.Stat("bin/stead-agent"); err == nil {
		fmt.Printf("stead-agent, stripped: %.1f MB\n", float64(fi.Size())/1e6)
	}
}
