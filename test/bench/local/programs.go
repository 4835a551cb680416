package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// programs are what is measured: each prints one number.
var programs = map[string]func(args []string) float64{
	"bulk":     bulk,
	"fetch":    fetch,
	"pings":    pings,
	"stats":    stats,
	"read":     read,
	"calls":    calls,
	"load":     runs,
	"nothing":  func([]string) float64 { return 0 },
	"requests": requests,
}

// servers print on their own; all but ticks run until they are killed.
var servers = map[string]func(args []string){
	"ticks":  ticks,
	"source": func(a []string) { serve(a[0], source) },
	"sink":   func(a []string) { serve(a[0], func(c net.Conn) { io.Copy(io.Discard, c) }) },
	"echo":   func(a []string) { serve(a[0], func(c net.Conn) { io.Copy(c, c) }) },
	"http":   serveHTTP,
	"idle":   idle,
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

// source sends for as long as somebody reads.
func source(c net.Conn) {
	for b := make([]byte, 256<<10); ; {
		if _, err := c.Write(b); err != nil {
			return
		}
	}
}

// fetch reads for a while and gives MiB/s.
func fetch(a []string) float64 {
	c, err := net.Dial("tcp", a[0])
	check(err)
	b := make([]byte, 256<<10)
	began, total := time.Now(), 0
	for time.Since(began) < 1500*time.Millisecond {
		n, err := c.Read(b)
		check(err)
		total += n
	}
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

// stats gives microseconds for each of many stats of one file, in some threads.
func stats(a []string) float64 {
	n, err := strconv.Atoi(a[1])
	check(err)
	threads, err := strconv.Atoi(a[2])
	check(err)
	began := time.Now()
	var work sync.WaitGroup
	for range threads {
		work.Go(func() {
			runtime.LockOSThread()
			var st syscall.Stat_t
			for range n {
				check(syscall.Stat(a[0], &st))
			}
		})
	}
	work.Wait()
	return float64(time.Since(began).Nanoseconds()) / 1e3 / float64(n)
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

// ticks prints how often a goroutine wakes in a second that sleeps a millisecond each time: without, and
// while 1,000 others dial an address that never answers.
func ticks(a []string) {
	const while = 2 * time.Second
	count := func() float64 {
		n := 0
		for end := time.Now().Add(while); time.Now().Before(end); n++ {
			time.Sleep(time.Millisecond)
		}
		return float64(n) / while.Seconds()
	}
	before := count()
	for range 1000 {
		go net.Dial("tcp", a[0]) // ends with us
	}
	fmt.Println(before, count())
}

// runs runs a command some times and gives the median of its time in milliseconds.
func runs(a []string) float64 {
	n, err := strconv.Atoi(a[0])
	check(err)
	var d []float64
	for i := range n + 1 {
		c := exec.Command(a[1], a[2:]...)
		t := time.Now()
		check(c.Run())
		if i > 0 { // the first fills caches
			d = append(d, float64(time.Since(t).Microseconds())/1e3)
		}
	}
	return median(d)
}

// requests gives the median of a request on a connection that is kept, in microseconds.
func requests(a []string) float64 {
	var d []float64
	for range 2000 {
		t := time.Now()
		r, err := http.Get(a[0])
		check(err)
		io.Copy(io.Discard, r.Body)
		r.Body.Close()
		d = append(d, float64(time.Since(t).Nanoseconds())/1e3)
	}
	return median(d)
}

func serveHTTP(a []string) {
	l, err := net.Listen("tcp", a[0])
	check(err)
	fmt.Println("listening")
	check(http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "program\n") })))
}

// idle opens connections and keeps them.
func idle(a []string) {
	n, err := strconv.Atoi(a[1])
	check(err)
	keep := make([]net.Conn, n)
	for i := range keep {
		keep[i], err = net.Dial("tcp", a[0])
		check(err)
		b := []byte{0}
		_, err = keep[i].Write(b)
		check(err)
		_, err = io.ReadFull(keep[i], b)
		check(err)
	}
	fmt.Println("listening")
	time.Sleep(time.Hour) // it is killed
}
