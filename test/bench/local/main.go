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

const repeats = 7

// bench is a playground and the two programs that are measured in it.
type bench struct{ stead, self string }

func newBench() *bench {
	root, err := os.Getwd()
	check(err)
	self, err := os.Executable()
	check(err)
	os.Setenv("STEAD_PLAYGROUND", "bench")
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

// row measures the bare path and ours in turn.
func row(what string, bare, ours func() float64) {
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
		{b.self, "sink", "127.0.0.1:17001"}, {b.self, "echo", "127.0.0.1:17002"},
		b.pod("db", b.self, "sink", ":7001"), b.pod("db", b.self, "echo", ":7002"),
	} {
		defer background(c...)()
	}
	b.table()
	b.incoming()
	b.files()
	b.agent()
}

const noIncoming = "--no-incoming"

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
	row("stat of a pod file, us (bare: in the pod)", value(b.pod("orders", b.self, "stats", big)...), under(b.self, "stats", big))
	row("the same by the trap", value(b.pod("orders", b.self, "stats", big)...), value(b.under(noIncoming+" --files trap", b.self, "stats", big)...))
	row("stat of a laptop file, us, by the trap", value(b.self, "stats", "/usr/bin/env"), value(b.under(noIncoming+" --files trap", b.self, "stats", "/usr/bin/env")...))
	const huge = "/var/data/huge.bin" // goes with the playground
	output(b.pod("orders", "sh", "-c", "cat "+strings.Repeat(big+" ", 4)+"> "+huge)...)
	row("first read of 256 MiB, MiB/s (bare: in the pod)", value(b.pod("orders", b.self, "read", huge)...), under(b.self, "read", huge))
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
}

// files measures programs that work on files of the laptop's, through both doors: each load is run
// some times in one session.
func (b *bench) files() {
	work, err := os.MkdirTemp("/var/tmp", "stead-loads")
	check(err)
	defer os.RemoveAll(work)
	var sources, objects []string
	for i := range 24 {
		name := fmt.Sprintf("f%d", i)
		check(os.WriteFile(filepath.Join(work, name+".c"), fmt.Appendf(nil, "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\nint %s(void) { return puts(\"%s\"); }\n", name, name), 0o644))
		sources, objects = append(sources, name+".c"), append(objects, name+".o")
	}
	check(os.WriteFile(filepath.Join(work, "Makefile"), []byte("all: "+strings.Join(objects, " ")+"\n%.o: %.c\n\tgcc -c -o $@ $<\n"), 0o644))
	inWork := func(cmd string) []string { return []string{"sh", "-c", "cd " + work + " && " + cmd} }

	fmt.Println("\n| load, ms | native | mount, ratio | trap, ratio |\n|---|---|---|---|")
	for _, l := range []struct {
		what string
		n    int
		argv []string
	}{
		{"true", 30, []string{"true"}},
		{"bash -c true", 30, []string{"bash", "-c", "true"}},
		{"python3 -c pass", 10, []string{"python3", "-c", "pass"}},
		{"python3, five modules", 5, []string{"python3", "-c", "import asyncio, http.server, json, ssl, sqlite3"}},
		{"node -e 0", 5, []string{"node", "-e", "0"}},
		{"java -version", 5, []string{"java", "-version"}},
		{"git status", 10, []string{"git", "status"}},
		{"go build ./internal/wire, warm", 5, []string{"go", "build", "./internal/wire"}},
		{"go vet ./internal/wire, warm", 5, []string{"go", "vet", "./internal/wire"}},
		{"gcc -c, a small file", 10, inWork("gcc -c -o x.o f0.c")},
		{"make -j2, 24 small files", 2, inWork("rm -f *.o; make -s -j2")},
		{"find /usr/lib -newer X", 2, []string{"find", "/usr/lib", "-newer", "/usr/bin/env"}},
	} {
		load := append([]string{b.self, "load", strconv.Itoa(l.n)}, l.argv...)
		var native, mount, trap []float64
		for range repeats {
			x := value(load...)()
			native = append(native, x)
			for _, d := range []struct {
				door string
				to   *[]float64
			}{{"mount", &mount}, {"trap", &trap}} {
				*d.to = append(*d.to, value(b.under(noIncoming+" --files "+d.door+" --files-laptop "+work, load...)...)()/x)
			}
		}
		fmt.Printf("| %s | %s | %s | %s |\n", l.what, spread(native), spread(mount), spread(trap))
	}
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
