// cluster measures stead against a real cluster (test/cluster), beside kubectl port-forward to the
// same pod in the same run, and prints a table for docs/benchmarks.md.
//
//	cluster                         measure; STEAD is the binary, KUBECONFIG the cluster
//	cluster serve                   what runs in the pod: echo, sink and source
//	cluster client WHAT HOST        what runs on the laptop
package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

func main() {
	var err error
	switch {
	case len(os.Args) == 2 && os.Args[1] == "serve":
		err = serve()
	case len(os.Args) == 4 && os.Args[1] == "client":
		err = client(os.Args[2], os.Args[3])
	default:
		err = measure()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// The ports of the pod. kubectl forwards each to the same port of the laptop.
const (
	echoPort   = 7001
	sinkPort   = 7002
	sourcePort = 7003
)

func serve() error {
	for port, f := range map[int]func(net.Conn){
		echoPort: func(c net.Conn) { io.Copy(c, c) },
		sinkPort: func(c net.Conn) {
			n, _ := io.Copy(io.Discard, c)
			fmt.Fprintln(c, n)
		},
		sourcePort: func(c net.Conn) {
			b := make([]byte, 256<<10)
			for {
				if _, err := c.Write(b); err != nil {
					return
				}
			}
		},
	} {
		l, err := net.Listen("tcp", ":"+strconv.Itoa(port))
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
	}
	for {
		time.Sleep(time.Hour)
	}
}

const (
	span    = 2 * time.Second
	message = 1 << 10
)

func dial(host string, port int) (net.Conn, error) {
	c, err := net.DialTimeout("tcp", net.JoinHostPort(host, strconv.Itoa(port)), 20*time.Second)
	if err == nil {
		c.SetDeadline(time.Now().Add(60 * time.Second))
	}
	return c, err
}

// client prints figures, separated by spaces.
func client(what, host string) error {
	switch what {
	case "rtt1", "rtt10":
		n, _ := strconv.Atoi(what[3:])
		return roundTrips(host, n)
	case "beside-up", "beside-down":
		stop, err := bulk(host, what[7:] == "up")
		if err != nil {
			return err
		}
		defer stop()
		time.Sleep(500 * time.Millisecond)
		began, before := time.Now(), moved.Load()
		if err := roundTrips(host, 1); err != nil {
			return err
		}
		fmt.Println(rate(before, began))
		return nil
	case "up", "down":
		stop, err := bulk(host, what == "up")
		if err != nil {
			return err
		}
		time.Sleep(500 * time.Millisecond)
		began, before := time.Now(), moved.Load()
		time.Sleep(span)
		fmt.Println(rate(before, began))
		stop()
		return nil
	case "now":
		fmt.Println(time.Now().UnixMicro())
		return nil
	case "idle", "many":
		return hold(host, what == "many")
	}
	return fmt.Errorf("no measurement %q", what)
}

// rate is that of bulk since began, in MiB/s.
func rate(before int64, began time.Time) float64 {
	return float64(moved.Load()-before) / time.Since(began).Seconds() / (1 << 20)
}

// roundTrips prints p50 and p99 in microseconds, and the rate.
func roundTrips(host string, connections int) error {
	var mu sync.Mutex
	var all []float64
	var errs []error
	var work sync.WaitGroup
	began := time.Now()
	for range connections {
		work.Go(func() {
			took, err := one(host)
			mu.Lock()
			defer mu.Unlock()
			all, errs = append(all, took...), append(errs, err)
		})
	}
	work.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	slices.Sort(all)
	fmt.Println(all[len(all)/2], all[len(all)*99/100], float64(len(all))/time.Since(began).Seconds())
	return nil
}

func one(host string) (took []float64, err error) {
	c, err := dial(host, echoPort)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	b := make([]byte, message)
	for end := time.Now().Add(span); time.Now().Before(end); {
		t := time.Now()
		if _, err := c.Write(b); err != nil {
			return nil, err
		}
		if _, err := io.ReadFull(c, b); err != nil {
			return nil, err
		}
		took = append(took, float64(time.Since(t).Microseconds()))
	}
	return took, nil
}

var moved counter

type counter struct {
	mu sync.Mutex
	n  int64
}

func (c *counter) Load() int64 { c.mu.Lock(); defer c.mu.Unlock(); return c.n }
func (c *counter) add(n int)   { c.mu.Lock(); c.n += int64(n); c.mu.Unlock() }

// bulk moves as much as it can until stop.
func bulk(host string, up bool) (stop func(), err error) {
	port := sourcePort
	if up {
		port = sinkPort
	}
	c, err := dial(host, port)
	if err != nil {
		return nil, err
	}
	go func() {
		b := make([]byte, 64<<10)
		for {
			var n int
			var err error
			if up {
				n, err = c.Write(b)
			} else {
				n, err = c.Read(b)
			}
			moved.add(n)
			if err != nil {
				return
			}
		}
	}()
	return func() { c.Close() }, nil
}

const rounds = 5

func run(name string, args ...string) (string, error) {
	c := exec.Command(name, args...)
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	if err := c.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, errs.String())
	}
	return strings.TrimSpace(out.String()), nil
}

func figures(s string, err error) ([]float64, error) {
	var out []float64
	for _, f := range strings.Fields(s) {
		v, perr := strconv.ParseFloat(f, 64)
		if perr != nil {
			return nil, perr
		}
		out = append(out, v)
	}
	return out, err
}

func measure() error {
	stead, self := os.Getenv("STEAD"), "/proc/self/exe"
	if p, err := os.Readlink(self); err == nil {
		self = p
	}
	const target = "pod/bench"
	ip, err := run("kubectl", "get", "pod", "bench", "-o", "jsonpath={.status.podIP}")
	if err != nil {
		return err
	}
	f := exec.Command("kubectl", "port-forward", target, "7001", "7002", "7003")
	out, err := f.StdoutPipe()
	if err != nil {
		return err
	}
	if err := f.Start(); err != nil {
		return err
	}
	defer f.Wait()
	defer f.Process.Kill()
	for lines := bufio.NewScanner(out); ; {
		if !lines.Scan() {
			return errors.New("kubectl port-forward did not begin")
		}
		if c, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(sourcePort)); err == nil { // the last
			c.Close()
			break
		}
	}
	go io.Copy(io.Discard, out)

	under := func(argv ...string) (string, error) {
		return run(stead, append([]string{"exec", "-q", "--no-incoming", "--files", "none", "--target", target, "--"}, argv...)...)
	}
	fmt.Println("| what | kubectl port-forward | stead | ratio |")
	fmt.Println("|---|---|---|---|")
	for _, row := range []struct {
		what  string
		names []string
	}{
		{"rtt1", []string{"1 KiB round trip, 1 in flight: p50, us", "p99, us", "a second"}},
		{"rtt10", []string{"1 KiB round trip, 10 connections: p50, us", "p99, us", "a second"}},
		{"beside-down", []string{"1 KiB round trip beside a bulk stream down: p50, us", "p99, us", "a second", "the bulk stream meanwhile, MiB/s"}},
		{"beside-up", []string{"1 KiB round trip beside a bulk stream up: p50, us", "p99, us", "a second", "the bulk stream meanwhile, MiB/s"}},
		{"down", []string{"bulk down, MiB/s"}},
		{"up", []string{"bulk up, MiB/s"}},
	} {
		theirs, ours := make([][]float64, len(row.names)), make([][]float64, len(row.names))
		for range rounds {
			t, err := figures(run(self, "client", row.what, "127.0.0.1"))
			if err != nil {
				return err
			}
			o, err := figures(under(self, "client", row.what, ip))
			if err != nil {
				return err
			}
			for i := range row.names {
				theirs[i], ours[i] = append(theirs[i], t[i]), append(ours[i], o[i])
			}
		}
		for i, name := range row.names {
			fmt.Printf("| %s | %s | %s | %s |\n", name, show(theirs[i]), show(ours[i]), show(ratios(ours[i], theirs[i])))
		}
	}
	if err := starts(stead, self, target); err != nil {
		return err
	}
	return memory(stead, self, target, ip)
}

func ratios(a, b []float64) (out []float64) {
	for i := range a {
		out = append(out, a[i]/b[i])
	}
	return out
}

// show prints the median with the quartiles.
func show(v []float64) string {
	v = slices.Clone(v)
	slices.Sort(v)
	form := func(x float64) string {
		if math.Abs(x) >= 100 {
			return strconv.FormatFloat(x, 'f', 0, 64)
		}
		return strconv.FormatFloat(x, 'f', 2, 64)
	}
	return fmt.Sprintf("%s (%s..%s)", form(v[len(v)/2]), form(v[len(v)/4]), form(v[len(v)*3/4]))
}
