// goprobe prints what a program sees of its machine; run natively in a pod and under stead it must
// print the same.
package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "goprobe:", err)
		os.Exit(1)
	}
}

func main() {
	switch os.Args[1] {
	case "look":
		look()
	case "serve":
		serve(os.Args[2], os.Args[3])
	case "exec":
		execute(os.Args[2:])
	case "blackhole":
		blackhole(os.Args[2])
	}
}

// execute runs programs from many goroutines.
func execute(names []string) {
	var all sync.WaitGroup
	said := make([]string, 4*len(names))
	for i := range said {
		all.Add(1)
		go func() {
			defer all.Done()
			b, err := exec.Command(names[i%len(names)], "by", "Go").CombinedOutput()
			said[i] = fmt.Sprintf("%q %v", b, err)
		}()
	}
	all.Wait()
	fmt.Println(strings.Join(said, "\n"))
}

func errnoOf(err error) string {
	var e syscall.Errno
	if errors.As(err, &e) {
		return e.Error()
	}
	return fmt.Sprint(err)
}

func look() {
	for _, k := range []string{"POD_NAME", "DATABASE_URL", "GREETING"} {
		fmt.Println("env", k, os.Getenv(k))
	}
	name, err := os.Hostname()
	check(err)
	fmt.Println("hostname", name)
	for _, f := range []string{"/etc/orders/config.yaml", "/var/run/secrets/orders/token", "/etc/resolv.conf"} {
		b, err := os.ReadFile(f)
		check(err)
		fmt.Printf("file %s %q\n", f, b)
	}
	to, err := filepath.EvalSymlinks("/var/data/link")
	check(err)
	st, err := os.Stat("/var/data/link")
	check(err)
	f, err := os.Open("/var/data/big.bin")
	check(err)
	h := sha256.New()
	_, err = io.Copy(h, f)
	check(err)
	fmt.Println("big", to, st.Size(), st.Mode(), st.ModTime().Unix(), fmt.Sprintf("%x", h.Sum(nil)))
	entries, err := os.ReadDir("/var/data/many")
	check(err)
	fmt.Println("list", len(entries), entries[0].Name(), entries[len(entries)-1].Name())
	_, err = os.Stat("/etc/no/such")
	fmt.Println("none", errnoOf(err))

	// Both resolvers, where the build has both.
	for _, pure := range []bool{true, false} {
		r := &net.Resolver{PreferGo: pure}
		for _, n := range []string{"db", "db.shop.svc.cluster.local"} {
			a, err := r.LookupHost(context.Background(), n)
			check(err)
			slices.Sort(a)
			fmt.Println("dns", n, a)
		}
		_, err := r.LookupHost(context.Background(), "no-such-name")
		var de *net.DNSError
		fmt.Println("dns none", errors.As(err, &de) && de.IsNotFound)
	}
	addrs, err := net.LookupHost("db")
	check(err)
	slices.Sort(addrs)
	for _, a := range addrs {
		c, err := net.DialTimeout("tcp", net.JoinHostPort(a, "5432"), 10*time.Second)
		check(err)
		fmt.Fprint(c, "ping\n")
		b := make([]byte, 100)
		n, err := c.Read(b)
		check(err)
		fmt.Printf("tcp %q %v %v\n", b[:n], c.RemoteAddr(), c.LocalAddr().(*net.TCPAddr).IP)
		c.Close()
		_, err = net.DialTimeout("tcp", net.JoinHostPort(a, "1"), 10*time.Second)
		fmt.Println("refused", a, errnoOf(err))
		u, err := net.Dial("udp", net.JoinHostPort(a, "5433"))
		check(err)
		u.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprint(u, "x")
		n, err = u.Read(b)
		check(err)
		fmt.Printf("udp %q %v %v\n", b[:n], u.RemoteAddr(), u.LocalAddr().(*net.UDPAddr).IP)
		u.Close()
		p, err := net.ListenPacket("udp", ":0")
		check(err)
		p.SetDeadline(time.Now().Add(10 * time.Second))
		dst, err := net.ResolveUDPAddr("udp", net.JoinHostPort(a, "5433"))
		check(err)
		_, err = p.WriteTo([]byte("y"), dst)
		check(err)
		n, from, err := p.ReadFrom(b)
		check(err)
		fmt.Printf("udp from %q %v\n", b[:n], from)
		p.Close()
	}
	askC()
	// 200 goroutines, each its own connection.
	var wg sync.WaitGroup
	var good atomic.Int32
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 30 * time.Second}
	for range 200 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			r, err := client.Get("http://db/")
			if err != nil {
				fmt.Fprintln(os.Stderr, "goprobe:", err)
				return
			}
			defer r.Body.Close()
			b, err := io.ReadAll(r.Body)
			if err == nil && len(b) > 0 {
				good.Add(1)
			}
		}()
	}
	wg.Wait()
	fmt.Println("http", good.Load())
	r, err := client.Get("http://db/")
	check(err)
	b, err := io.ReadAll(r.Body)
	check(err)
	s := strings.TrimSpace(string(b))
	fmt.Println("http from", s[:strings.LastIndexByte(s, ':')])
	c, err := net.Dial("tcp", "127.0.0.1:9000")
	check(err)
	fmt.Fprint(c, "self")
	b = make([]byte, 100)
	n, err := c.Read(b)
	check(err)
	fmt.Printf("loopback %q %v\n", b[:n], c.RemoteAddr())
}

func serve(port, count string) {
	n, _ := strconv.Atoi(count)
	l, err := net.Listen("tcp", ":"+port)
	check(err)
	fmt.Println("listening", l.Addr().(*net.TCPAddr).Port)
	done := make(chan struct{}, n)
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		local, _, _ := net.SplitHostPort(r.Context().Value(http.LocalAddrContextKey).(net.Addr).String())
		w.Header().Set("Connection", "close")
		fmt.Fprintf(w, "go program: %s %s from %s at %s\n", r.Method, r.URL.Path, host, local)
		fmt.Println("served", r.Method, r.URL.Path, host)
		done <- struct{}{}
	}))
	for range n {
		<-done
	}
	time.Sleep(200 * time.Millisecond) // the last answer leaves
}

// blackhole dials an address that never answers 1,000 times at once, and counts what another
// goroutine gets done meanwhile, against the same time without.
func blackhole(addr string) {
	ticks := func() int {
		n := 0
		for end := time.Now().Add(2 * time.Second); time.Now().Before(end); n++ {
			time.Sleep(time.Millisecond)
		}
		return n
	}
	before := ticks()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var failed atomic.Int32
	for range 1000 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			var d net.Dialer
			if _, err := d.DialContext(ctx, "tcp", addr); err != nil && ctx.Err() == nil {
				failed.Add(1)
			}
		}()
	}
	during := ticks()
	n := failed.Load()
	cancel()
	wg.Wait()
	fmt.Println("ticks", before, during, "failed", n)
}
