// app is what runs in the pods of the end-to-end tests, and what looks at them.
//
//	app orders [DRAIN]       serve as that pod; with DRAIN it ends gracefully, that long after SIGTERM
//	app db|idle              the same
//	app furnish DIR          make a tree to compare
//	app tree DIR...          print every file below, with mode, size and contents' sum
//	app env                  print the environment
//	app reach ADDR...        connect to each HOST:PORT and print what comes
//	app api PATH             ask the Kubernetes API with the pod's own token
//	app call URL [COUNT]     send requests, one after the other
//	app stream URL WORKERS   send requests to URL/1, URL/2..., so many at a time, until standard input ends
//	app kill COMMAND         end the processes that run it, in a pod whose containers share theirs
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

var commands = map[string]func(args []string) error{
	"orders": orders, "db": db, "idle": idle, "furnish": furnish, "tree": tree,
	"env": env, "reach": reach, "api": api, "call": call, "stream": stream, "kill": kill,
}

func main() {
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "app: no such command")
		os.Exit(2)
	}
	if err := commands[os.Args[1]](os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "app:", err)
		os.Exit(1)
	}
}

func idle([]string) error {
	for { // not select: without goroutines it would be taken for a deadlock
		time.Sleep(time.Hour)
	}
}

func orders(args []string) error {
	name, _ := os.Hostname()
	if err := serveTCP(":9000", func(c net.Conn) { io.Copy(c, c) }); err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "pod %s: %s %s\n", name, r.Method, r.URL.Path)
	})
	s := &http.Server{Addr: ":8080", Handler: mux, Protocols: new(http.Protocols)}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	if len(args) == 0 {
		return s.ListenAndServe()
	}
	drain, err := time.ParseDuration(args[0])
	if err != nil {
		return err
	}
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM)
	failed := make(chan error, 1)
	go func() { failed <- s.ListenAndServe() }()
	select {
	case err := <-failed:
		return err
	case <-end:
	}
	time.Sleep(drain) // the cluster takes its time to send nobody here any more
	return s.Shutdown(context.Background())
}

func db([]string) error {
	err := serveTCP(":5432", func(c net.Conn) {
		b := make([]byte, 4096)
		for {
			n, err := c.Read(b)
			if err != nil {
				return
			}
			c.Write(append([]byte("db: "), b[:n]...))
		}
	})
	if err != nil {
		return err
	}
	u, err := net.ListenPacket("udp", ":5433")
	if err != nil {
		return err
	}
	go func() {
		b := make([]byte, 65536)
		for {
			if n, from, err := u.ReadFrom(b); err == nil {
				u.WriteTo(b[:n], from)
			}
		}
	}()
	return http.ListenAndServe(":80", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, r.RemoteAddr) }))
}

func serveTCP(addr string, f func(net.Conn)) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	go func() {
		for {
			if c, err := l.Accept(); err == nil {
				go func() { defer c.Close(); f(c) }()
			}
		}
	}()
	return nil
}

// furnish makes what the programs of test/conformance look at.
func furnish(args []string) error {
	dir := args[0]
	big := bytes.Repeat([]byte("a large file that is the same in every pod\n"), 1<<15)
	if err := os.MkdirAll(dir+"/many", 0o755); err != nil {
		return err
	}
	errs := []error{
		os.WriteFile(dir+"/big.bin", big, 0o644),
		os.WriteFile(dir+"/big.bin.sha256", fmt.Appendf(nil, "%x  big.bin\n", sha256.Sum256(big)), 0o644),
		os.Symlink("big.bin", dir+"/link"),
		os.WriteFile(dir+"/private", []byte("for its owner alone"), 0o600),
		os.Chown(dir+"/private", 65532, 65532),
		os.WriteFile(dir+"/roots", []byte("for root alone"), 0o600),
	}
	for i := range 500 {
		errs = append(errs, os.WriteFile(fmt.Sprintf("%s/many/entry-%04d", dir, i), nil, 0o644))
	}
	return errors.Join(errs...)
}

func tree(dirs []string) error {
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				fmt.Println(path, err)
				return nil
			}
			st, err := os.Lstat(path)
			if err != nil {
				fmt.Println(path, err)
				return nil
			}
			sys := st.Sys().(*syscall.Stat_t)
			line := fmt.Sprintf("%s %v %d:%d", path, st.Mode(), sys.Uid, sys.Gid)
			switch {
			case st.Mode()&fs.ModeSymlink != 0:
				to, err := os.Readlink(path)
				line += fmt.Sprint(" -> ", to, " ", err)
			case st.Mode().IsRegular():
				b, err := os.ReadFile(path)
				line += fmt.Sprintf(" %d %x %v", st.Size(), sha256.Sum256(b), err)
			}
			fmt.Println(line)
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func env([]string) error {
	e := os.Environ()
	slices.Sort(e)
	for _, kv := range e {
		fmt.Println(kv)
	}
	return nil
}

func reach(addrs []string) error {
	for _, a := range addrs {
		host, _, _ := net.SplitHostPort(a)
		ips, err := net.LookupHost(host)
		slices.Sort(ips)
		fmt.Println("name", host, ips, errText(err))
		c, err := net.DialTimeout("tcp", a, 10*time.Second)
		if err != nil {
			fmt.Println("tcp", a, errText(err))
			continue
		}
		c.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprint(c, "ping\n")
		b := make([]byte, 100)
		n, err := c.Read(b)
		l, _, _ := net.SplitHostPort(c.LocalAddr().String())
		fmt.Printf("tcp %s %q %s peer %s from %s\n", a, b[:n], errText(err), c.RemoteAddr(), l)
		c.Close()
	}
	return nil
}

func errText(err error) string {
	var e syscall.Errno
	var de *net.DNSError
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &e):
		return e.Error()
	case errors.As(err, &de):
		return fmt.Sprint("not found: ", de.IsNotFound)
	}
	return err.Error()
}

const account = "/var/run/secrets/kubernetes.io/serviceaccount/"

func api(args []string) error {
	ca, err := os.ReadFile(account + "ca.crt")
	if err != nil {
		return err
	}
	token, err := os.ReadFile(account + "token")
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	for _, path := range args {
		r, err := http.NewRequest("GET", "https://kubernetes.default"+path, nil)
		if err != nil {
			return err
		}
		r.Header.Set("Authorization", "Bearer "+string(token))
		resp, err := client.Do(r)
		if err != nil {
			return err
		}
		var o struct {
			Kind, Message string
			Data          map[string]string
		}
		err = json.NewDecoder(resp.Body).Decode(&o)
		resp.Body.Close()
		fmt.Println("api", path, resp.StatusCode, o, err)
	}
	return nil
}

// call makes a connection for each request: a caught port shows with the next one.
func call(args []string) error {
	n := 1
	if len(args) > 1 {
		n, _ = strconv.Atoi(args[1])
	}
	client := &http.Client{Timeout: 15 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	var errs []error
	for range n {
		resp, err := client.Get(args[0])
		if err != nil {
			errs = append(errs, err)
			continue
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		errs = append(errs, err)
		fmt.Println(strings.TrimSpace(string(b)))
	}
	return errors.Join(errs...)
}

// pause is between two requests of a worker of stream: many, and the machine does other things too.
const pause = 15 * time.Millisecond

// stream prints for each request when it began and when it ended, in microseconds, its path and what
// answered it, or "lost" and why.
func stream(args []string) error {
	workers, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	base, err := url.Parse(args[0])
	if err != nil {
		return err
	}
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	one := func(u *url.URL) string {
		resp, err := client.Get(u.String())
		if err != nil {
			return "lost " + err.Error()
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			return "lost " + err.Error()
		}
		return strings.TrimSpace(string(b))
	}
	var ended atomic.Bool
	var number atomic.Int64
	var print sync.Mutex
	var work sync.WaitGroup
	for range workers {
		work.Go(func() {
			for !ended.Load() {
				u := base.JoinPath(strconv.FormatInt(number.Add(1), 10))
				began := time.Now()
				answer := one(u)
				took := time.Since(began)
				print.Lock()
				fmt.Println(began.UnixMicro(), began.Add(took).UnixMicro(), u.Path, answer)
				print.Unlock()
				time.Sleep(pause)
			}
		})
	}
	io.Copy(io.Discard, os.Stdin)
	ended.Store(true)
	work.Wait()
	return nil
}

func kill(args []string) error {
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	killed := 0
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		line, rerr := os.ReadFile("/proc/" + d.Name() + "/cmdline")
		if err != nil || rerr != nil || !strings.HasPrefix(string(line), "/app\x00"+args[0]+"\x00") {
			continue
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			return err
		}
		killed++
	}
	if killed == 0 {
		return errors.New("nobody runs " + args[0])
	}
	return nil
}
