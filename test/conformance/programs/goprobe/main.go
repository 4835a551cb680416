// goprobe prints what a program sees of its machine; run natively in a pod and under stead it must
// print the same. Which resolver of Go answers is the build's and GODEBUG's to say (netdns=go, cgo; with +2
// it tells).
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
	case "names":
		names(os.Args[2:])
	case "own":
		own(os.Args[2])
	case "errnos":
		errnos(os.Args[2:])
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
	for _, f := range []string{"/etc/orders/config.yaml", "/var/run/secrets/orders/token", "/etc/resolv.conf", "/etc/hosts", "/etc/ssl/certs/orders-pod.pem"} {
		b, err := os.ReadFile(f)
		fmt.Printf("file %s %q %v\n", f, b, err)
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

	names([]string{"db", "db.shop.svc.cluster.local", "no-such-name", "dozens", "hundreds"}) // the last two do not fit a datagram
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
		if c, err = net.DialTimeout("tcp", net.JoinHostPort(a, "80"), 10*time.Second); err == nil {
			fmt.Fprint(c, "GET / HTTP/1.0\r\n\r\n")
			said, _ := io.ReadAll(c) // the client's end as the other sees it
			fmt.Println("ends", a, strings.HasSuffix(string(said), "\n"+c.LocalAddr().String()+"\n"))
			c.Close()
		}
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
	for _, a := range []string{"127.0.0.1", "::1"} {
		c, err := net.Dial("tcp", net.JoinHostPort(a, "9000"))
		if err != nil {
			fmt.Println("loopback", a, errnoOf(err))
			continue
		}
		fmt.Fprint(c, "self")
		b = make([]byte, 100)
		n, err := c.Read(b)
		check(err)
		fmt.Printf("loopback %q %v %v\n", b[:n], c.RemoteAddr(), c.LocalAddr().(*net.TCPAddr).IP)
		c.Close()
	}
}

// names resolves: the Go resolver, then the one that the build and GODEBUG choose (without cgo the
// same).
func names(names []string) {
	for _, pure := range []bool{true, false} {
		r := &net.Resolver{PreferGo: pure}
		for _, n := range names {
			a, err := r.LookupHost(context.Background(), n)
			var de *net.DNSError
			switch {
			case errors.As(err, &de) && de.IsNotFound: // its text names the nameserver
				fmt.Println("dns", n, "none")
			case len(a) > 4 || err != nil:
				fmt.Println("dns", n, len(a), err)
			default:
				slices.Sort(a)
				fmt.Println("dns", n, a)
			}
		}
	}
}

// own speaks with itself: a listener of the program's own is its own, whatever listens on that port of the
// pod.
func own(port string) {
	for _, a := range []string{"127.0.0.1", "::1"} {
		l, err := net.Listen("tcp", net.JoinHostPort(a, port))
		check(err)
		c, err := net.Dial("tcp", l.Addr().String())
		check(err)
		s, err := l.Accept()
		check(err)
		fmt.Fprint(s, "own")
		b := make([]byte, 10)
		n, err := c.Read(b)
		fmt.Printf("own %q %v %v %v\n", b[:n], err, c.RemoteAddr().String() == l.Addr().String(), s.RemoteAddr().String() == c.LocalAddr().String())
		c.Close()
		s.Close()
		l.Close()
	}
}

// errnos tells how connecting fails.
func errnos(addrs []string) {
	said := make([]string, 2*len(addrs))
	var all sync.WaitGroup
	for i, a := range addrs {
		for j, network := range []string{"tcp", "udp"} {
			all.Go(func() {
				c, err := net.Dial(network, net.JoinHostPort(a, "1"))
				if err == nil {
					c.SetDeadline(time.Now().Add(5 * time.Second))
					if _, err = c.Write([]byte("x")); err == nil {
						_, err = c.Read(make([]byte, 10))
					}
					c.Close()
				}
				said[2*i+j] = network + " " + a + ": " + errnoOf(err)
				if errors.Is(err, os.ErrDeadlineExceeded) {
					said[2*i+j] = network + " " + a + ": silence"
				}
			})
		}
	}
	all.Wait()
	fmt.Println(strings.Join(said, "\n"))
}

func serve(port, count string) {
	n, _ := strconv.Atoi(count)
	l, err := net.Listen("tcp", ":"+port)
	check(err)
	fmt.Println("listening", l.Addr().(*net.TCPAddr).Port)
	done := make(chan struct{}, n)
	type conn struct{} // the key of a request's connection
	server := &http.Server{
		ConnContext: func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, conn{}, c) },
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			c := r.Context().Value(conn{}).(*net.TCPConn)
			ends := end(c.RemoteAddr()) + " at " + end(c.LocalAddr()) + " peer " + end(getpeername(c))
			w.Header().Set("Connection", "close")
			fmt.Fprintf(w, "go program: %s %s from %s\n", r.Method, r.URL.Path, ends)
			fmt.Println("served", r.Method, r.URL.Path, ends)
			done <- struct{}{}
		}),
	}
	go server.Serve(l)
	for range n {
		<-done
	}
	time.Sleep(200 * time.Millisecond) // the last answer leaves
}

// end is an end of a connection, as the programs of the corpus print it.
func end(a net.Addr) string {
	host, port, _ := net.SplitHostPort(a.String())
	return host + " " + port
}

// getpeername asks the kernel: RemoteAddr is what accept has told.
func getpeername(c *net.TCPConn) net.Addr {
	raw, err := c.SyscallConn()
	check(err)
	var sa syscall.Sockaddr
	check(raw.Control(func(fd uintptr) { sa, err = syscall.Getpeername(int(fd)) }))
	check(err)
	switch sa := sa.(type) {
	case *syscall.SockaddrInet4:
		return &net.TCPAddr{IP: sa.Addr[:], Port: sa.Port}
	case *syscall.SockaddrInet6:
		return &net.TCPAddr{IP: sa.Addr[:], Port: sa.Port}
	}
	return nil
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
