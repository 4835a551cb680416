// local measures stead in the playground, each figure beside its bare path in the same run, and
// prints a table for docs/benchmarks.md. Started without arguments it is the bench; with one it is
// the program that is measured.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// programs are what is measured: each prints one number.
var programs = map[string]func(args []string) float64{
	"bulk":  bulk,
	"pings": pings,
	"stats": stats,
	"read":  read,
	"calls": calls,
}

func main() {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "sink":
			serve(os.Args[2], func(c net.Conn) { io.Copy(io.Discard, c) })
		case "echo":
			serve(os.Args[2], func(c net.Conn) { io.Copy(c, c) })
		default:
			fmt.Println(programs[os.Args[1]](os.Args[2:]))
		}
		return
	}
	bench()
}

func serve(addr string, f func(net.Conn)) {
	l, err := net.Listen("tcp", addr)
	check(err)
	fmt.Println("listening")
	for {
		c, err := l.Accept()
		check(err)
		go func() { f(c); c.Close() }()
	}
}

// bulk sends for a while and gives MiB/s.
func bulk(a []string) float64 {
	c, err := net.Dial("tcp", a[0])
	check(err)
	b := make([]byte, 256<<10)
	began, total := time.Now(), 0
	for time.Since(began) < 1500*time.Millisecond {
		n, err := c.Write(b)
		check(err)
		total += n
	}
	c.(*net.TCPConn).CloseWrite()
	io.Copy(io.Discard, c) // the sink closes when it has read all
	return float64(total) / (1 << 20) / time.Since(began).Seconds()
}

// pings gives the median of a 1 KiB round trip in microseconds.
func pings(a []string) float64 {
	c, err := net.Dial("tcp", a[0])
	check(err)
	b := make([]byte, 1024)
	var d []float64
	for range 3000 {
		t := time.Now()
		_, err := c.Write(b)
		check(err)
		_, err = io.ReadFull(c, b)
		check(err)
		d = append(d, float64(time.Since(t).Nanoseconds())/1e3)
	}
	return median(d)
}

// stats gives microseconds for each of many stats of one file.
func stats(a []string) float64 {
	var st syscall.Stat_t
	const n = 200_000
	began := time.Now()
	for range n {
		check(syscall.Stat(a[0], &st))
	}
	return float64(time.Since(began).Nanoseconds()) / 1e3 / n
}

// read gives MiB/s of reading a file once.
func read(a []string) float64 {
	f, err := os.Open(a[0])
	check(err)
	b := make([]byte, 1<<20)
	began := time.Now()
	total := 0
	for {
		n, err := f.Read(b)
		total += n
		if err == io.EOF {
			break
		}
		check(err)
	}
	return float64(total) / (1 << 20) / time.Since(began).Seconds()
}

// calls gives nanoseconds for a system call that nobody traps.
func calls([]string) float64 {
	const n = 2_000_000
	began := time.Now()
	for range n {
		syscall.RawSyscall(syscall.SYS_GETPPID, 0, 0, 0)
	}
	return float64(time.Since(began).Nanoseconds()) / n
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

func bench() {
	root, err := os.Getwd()
	check(err)
	stead := filepath.Join(root, "bin/stead")
	self, err := os.Executable()
	check(err)
	os.Setenv("STEAD_PLAYGROUND", "bench")
	run := func(argv ...string) string {
		c := exec.Command(argv[0], argv[1:]...)
		c.Stderr = os.Stderr
		b, err := c.Output()
		check(err)
		return strings.TrimSpace(string(b))
	}
	value := func(argv ...string) float64 {
		v, err := strconv.ParseFloat(run(argv...), 64)
		check(err)
		return v
	}
	background := func(argv ...string) *exec.Cmd {
		c := exec.Command(argv[0], argv[1:]...)
		out, err := c.StdoutPipe()
		check(err)
		check(c.Start())
		_, err = bufio.NewReader(out).ReadString('\n')
		check(err)
		return c
	}
	run(stead, "playground", "up", "--detach")
	defer run(stead, "playground", "down")
	inPod := func(pod string, argv ...string) []string {
		return append([]string{stead, "playground", "exec", pod, "--"}, argv...)
	}
	under := func(argv ...string) []string {
		return append([]string{stead, "exec", "-t", "playground/orders", "--no-incoming", "--"}, argv...)
	}
	for _, c := range [][]string{
		{self, "sink", "127.0.0.1:17001"}, {self, "echo", "127.0.0.1:17002"},
		inPod("db", self, "sink", ":7001"), inPod("db", self, "echo", ":7002"),
	} {
		p := background(c...)
		defer p.Process.Kill()
	}

	fmt.Println("| what | bare | under stead | ratio |\n|---|---|---|---|")
	row := func(what string, bare, ours func() float64) {
		var a, b, r []float64
		for range repeats {
			x, y := bare(), ours()
			a, b, r = append(a, x), append(b, y), append(r, y/x)
		}
		fmt.Printf("| %s | %s | %s | %s |\n", what, spread(a), spread(b), spread(r))
	}
	timed := func(argv ...string) func() float64 {
		return func() float64 {
			t := time.Now()
			run(argv...)
			return float64(time.Since(t).Microseconds()) / 1e3
		}
	}
	run(under("true")...) // the agent is there from now on
	row("`true`, start to end, ms", timed("true"), timed(under("true")...))
	row("untrapped system call, ns", func() float64 { return value(self, "calls") }, func() float64 { return value(under(self, "calls")...) })
	row("bulk TCP, MiB/s (bare: loopback)", func() float64 { return value(self, "bulk", "127.0.0.1:17001") }, func() float64 { return value(under(self, "bulk", "db:7001")...) })
	row("1 KiB round trip, us (bare: loopback)", func() float64 { return value(self, "pings", "127.0.0.1:17002") }, func() float64 { return value(under(self, "pings", "db:7002")...) })
	row("1 KiB round trip, us (bare: in the pod)", func() float64 { return value(inPod("orders", self, "pings", "db:7002")...) }, func() float64 { return value(under(self, "pings", "db:7002")...) })
	row("stat of a pod file, us (bare: in the pod)", func() float64 { return value(inPod("orders", self, "stats", "/var/data/big.bin")...) }, func() float64 { return value(under(self, "stats", "/var/data/big.bin")...) })
	row("first read of 64 MiB, MiB/s (bare: in the pod)", func() float64 { return value(inPod("orders", self, "read", "/var/data/big.bin")...) }, func() float64 { return value(under(self, "read", "/var/data/big.bin")...) })
	row("python3, five modules, ms", timed("python3", "-c", "import asyncio, http.server, json, ssl, sqlite3"), timed(under("python3", "-c", "import asyncio, http.server, json, ssl, sqlite3")...))
	row("git status, ms", timed("git", "status"), timed(under("git", "status")...))
	row("go vet ./internal/wire, warm, ms", timed("go", "vet", "./internal/wire"), timed(under("go", "vet", "./internal/wire")...))
	row("find /usr/lib, ms", timed("find", "/usr/lib", "-newer", "/etc/hostname"), timed(under("find", "/usr/lib", "-newer", "/usr/bin/env")...))

	var st struct{ Pods []struct{ Agent int } }
	check(json.Unmarshal([]byte(run(stead, "playground", "status", "-o", "json")), &st))
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", st.Pods[0].Agent))
	if _, rest, ok := strings.Cut(string(b), "VmRSS:"); ok {
		fmt.Println("\nagent (the CLI's own binary), RSS after all of this:", strings.Join(strings.Fields(rest)[:2], " "))
	}
	if fi, err := os.Stat("bin/stead-agent"); err == nil {
		fmt.Printf("stead-agent, stripped: %.1f MB\n", float64(fi.Size())/1e6)
	}
}
