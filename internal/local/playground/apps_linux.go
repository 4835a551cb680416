package playground

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

// apps is the table of what runs in the pods.
var apps = map[string]func() error{
	"orders": func() error {
		return errors.Join(
			serveHTTP(":8080", func(w http.ResponseWriter, r *http.Request) {
				fmt.Fprintf(w, "orders-0 (pod): %s %s\n", r.Method, r.URL.RequestURI())
			}),
			serveTCP(":9000", func(c net.Conn) { io.Copy(c, c) }),
			serveUDP(":9001"),
		)
	},
	"db": func() error {
		return errors.Join(
			serveTCP(":5432", func(c net.Conn) { io.Copy(&linePrefix{w: c, begin: true}, c) }),
			serveUDP(":5433"),
			serveHTTP(":80", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, r.RemoteAddr) }),
		)
	},
	"client": func() error { return nil },
}

// appMain is the main process of a pod: it closes descriptor 3 when it serves, or writes to it what
// went wrong.
func appMain(args []string) int {
	ready := os.NewFile(3, "ready")
	app := apps[strings.Join(args, " ")]
	if app == nil {
		fmt.Fprintf(ready, "no app %q", args)
		return 1
	}
	if err := app(); err != nil {
		fmt.Fprint(ready, err)
		return 1
	}
	ready.Close()
	for { // not select: an app without goroutines would be taken for deadlocked
		time.Sleep(time.Hour)
	}
}

func listen(addr string) (net.Listener, error) {
	// A port of an app that was just killed may take a moment to be free.
	var l net.Listener
	var err error
	for range 100 {
		if l, err = net.Listen("tcp", addr); err == nil {
			return l, nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil, err
}

// serveHTTP serves HTTP/1.1 and, without TLS, HTTP/2.
func serveHTTP(addr string, h http.HandlerFunc) error {
	l, err := listen(addr)
	if err != nil {
		return err
	}
	s := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute, Protocols: new(http.Protocols)}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	go s.Serve(l)
	return nil
}

func serveTCP(addr string, f func(net.Conn)) error {
	l, err := listen(addr)
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				continue
			}
			go func() { defer c.Close(); f(c) }()
		}
	}()
	return nil
}

func serveUDP(addr string) error {
	c, err := net.ListenPacket("udp", addr)
	if err != nil {
		return err
	}
	go func() {
		b := make([]byte, 65536)
		for {
			n, from, err := c.ReadFrom(b)
			if err == nil {
				c.WriteTo(b[:n], from)
			}
		}
	}()
	return nil
}

// linePrefix writes "db: " in front of each line.
type linePrefix struct {
	w     io.Writer
	begin bool
}

func (p *linePrefix) Write(b []byte) (int, error) {
	var out bytes.Buffer
	for _, line := range bytes.SplitAfter(b, []byte("\n")) {
		if len(line) == 0 {
			continue
		}
		if p.begin {
			out.WriteString("db: ")
		}
		out.Write(line)
		p.begin = line[len(line)-1] == '\n'
	}
	_, err := p.w.Write(out.Bytes())
	return len(b), err
}

// callMain sends requests from where it runs; it is started in the client pod.
func callMain(args []string, stdout, stderr io.Writer) int {
	fs := flag.NewFlagSet("call", flag.ContinueOnError)
	fs.SetOutput(stderr)
	count := fs.Int("count", 1, "")
	concurrency := fs.Int("concurrency", 1, "")
	method := fs.String("method", "GET", "")
	data := fs.String("data", "", "")
	var headers headerFlags
	fs.Var(&headers, "header", "")
	if fs.Parse(args) != nil || fs.NArg() != 1 {
		return 2
	}
	url := fs.Arg(0)
	one := func() ([]byte, error) { return callHTTP(url, *method, *data, headers) }
	for _, network := range []string{"tcp", "udp"} {
		if addr, ok := strings.CutPrefix(url, network+"://"); ok {
			one = func() ([]byte, error) { return callRaw(network, addr, *data) }
		}
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	failed, began := 0, time.Now()
	slots := make(chan struct{}, max(*concurrency, 1))
	for range *count {
		slots <- struct{}{}
		wg.Add(1)
		go func() {
			defer wg.Done()
			b, err := one()
			mu.Lock()
			defer mu.Unlock()
			stdout.Write(b)
			if err != nil {
				failed++
				fmt.Fprintln(stderr, "error:", err)
			}
			<-slots
		}()
	}
	wg.Wait()
	if *count > 1 {
		fmt.Fprintf(stderr, "%d requests in %v, %d failed\n", *count, time.Since(began).Round(time.Millisecond), failed)
	}
	if failed > 0 {
		fmt.Fprintln(stderr, "hint: stead playground status (the pods and their addresses)")
		return 1
	}
	return 0
}

type headerFlags []string

func (h *headerFlags) String() string     { return "" }
func (h *headerFlags) Set(s string) error { *h = append(*h, s); return nil }

// callTimeout bounds one request.
const callTimeout = 15 * time.Second

// client makes a connection for each request: a caught port shows with the next one.
var client = &http.Client{Timeout: callTimeout, Transport: &http.Transport{DisableKeepAlives: true}}

func callHTTP(url, method, data string, headers []string) ([]byte, error) {
	r, err := http.NewRequest(method, url, strings.NewReader(data))
	if err != nil {
		return nil, err
	}
	for _, h := range headers {
		k, v, _ := strings.Cut(h, ":")
		r.Header.Add(strings.TrimSpace(k), strings.TrimSpace(v))
		if strings.EqualFold(strings.TrimSpace(k), "host") {
			r.Host = strings.TrimSpace(v)
		}
	}
	resp, err := client.Do(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode >= 400 {
		err = fmt.Errorf("%s %s: %s", method, url, resp.Status)
	}
	return b, err
}

func callRaw(network, addr, data string) ([]byte, error) {
	c, err := net.DialTimeout(network, addr, callTimeout)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(callTimeout))
	if _, err := io.WriteString(c, data); err != nil {
		return nil, err
	}
	if t, ok := c.(*net.TCPConn); ok {
		t.CloseWrite()
		return io.ReadAll(c)
	}
	b := make([]byte, 65536)
	n, err := c.Read(b)
	return b[:n], err
}
