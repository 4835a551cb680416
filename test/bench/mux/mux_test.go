// Package mux measures internal/tunnel beside the two mux libraries that could stand in its place,
// over the same transports:
//
//	go test -bench . -benchtime 1s -count 3
//
// Bulk counts bytes that arrived on one stream. PingPong answers 1 KiB with 1 KiB; its median is
// reported as p50-us. BesideBulk is PingPong while another stream of the same connection carries
// as many bytes as it can.
package mux

import (
	"context"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/yamux"
	"github.com/xtaci/smux"

	"github.com/stead-dev/stead/internal/tunnel"
)

// ends are a mux with one end of each kind: what open gives arrives at accept.
type ends struct {
	open, accept func() (net.Conn, error)
	close        func()
}

type opener func(b *testing.B, pair func(b *testing.B) (net.Conn, net.Conn)) ends

var muxes = []struct {
	name string
	open opener
}{
	{"stead", openStead(tunnel.Options{})},
	{"smux", openSmux},
	{"yamux", openYamux},
	{"bare", openBare},
}

var transports = []struct {
	name string
	pair func(b *testing.B) (net.Conn, net.Conn)
}{
	{"unix", unixPair},
	{"tcp", tcpPair},
}

func must[T any](b *testing.B) func(T, error) T {
	return func(v T, err error) T {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
		return v
	}
}

func unixPair(b *testing.B) (net.Conn, net.Conn) {
	fds := must[[2]int](b)(syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0))
	conn := func(fd int) net.Conn {
		f := os.NewFile(uintptr(fd), "pair")
		defer f.Close()
		return must[net.Conn](b)(net.FileConn(f))
	}
	return conn(fds[0]), conn(fds[1])
}

func tcpPair(b *testing.B) (net.Conn, net.Conn) {
	l := must[net.Listener](b)(net.Listen("tcp", "127.0.0.1:0"))
	defer l.Close()
	x := must[net.Conn](b)(net.Dial("tcp", l.Addr().String()))
	return x, must[net.Conn](b)(l.Accept())
}

func openStead(o tunnel.Options) opener {
	return func(b *testing.B, pair func(b *testing.B) (net.Conn, net.Conn)) ends {
		ctx := context.Background()
		srv := tunnel.NewServer(o)
		var handled sync.WaitGroup
		c := must[tunnel.Conn](b)(tunnel.Dial(ctx, func(context.Context) (net.Conn, error) {
			x, y := pair(b)
			handled.Go(func() { _ = srv.Handle(ctx, y) })
			return x, nil
		}, o))
		a := must[tunnel.Conn](b)(srv.Accept(ctx))
		return ends{
			open:   func() (net.Conn, error) { return c.Open(ctx) },
			accept: func() (net.Conn, error) { return a.Accept(ctx) },
			close:  func() { c.Close(); srv.Close(); handled.Wait() },
		}
	}
}

func openSmux(b *testing.B, pair func(b *testing.B) (net.Conn, net.Conn)) ends {
	cfg := smux.DefaultConfig()
	cfg.Version = 2
	cfg.MaxFrameSize = 65535
	cfg.MaxReceiveBuffer = 16 << 20
	cfg.MaxStreamBuffer = 4 << 20
	x, y := pair(b)
	c, a := must[*smux.Session](b)(smux.Client(x, cfg)), must[*smux.Session](b)(smux.Server(y, cfg))
	return ends{
		open:   func() (net.Conn, error) { return c.OpenStream() },
		accept: func() (net.Conn, error) { return a.AcceptStream() },
		close:  func() { c.Close(); a.Close() },
	}
}

func openYamux(b *testing.B, pair func(b *testing.B) (net.Conn, net.Conn)) ends {
	cfg := yamux.DefaultConfig()
	cfg.MaxStreamWindowSize = 4 << 20
	cfg.LogOutput = io.Discard
	x, y := pair(b)
	c, a := must[*yamux.Session](b)(yamux.Client(x, cfg)), must[*yamux.Session](b)(yamux.Server(y, cfg))
	return ends{
		open:   func() (net.Conn, error) { return c.OpenStream() },
		accept: func() (net.Conn, error) { return a.AcceptStream() },
		close:  func() { c.Close(); a.Close() },
	}
}

// openBare gives each stream a transport of its own: what the machine can do.
func openBare(b *testing.B, pair func(b *testing.B) (net.Conn, net.Conn)) ends {
	waiting := make(chan net.Conn, 16)
	return ends{
		open: func() (net.Conn, error) {
			x, y := pair(b)
			waiting <- y
			return x, nil
		},
		accept: func() (net.Conn, error) { return <-waiting, nil },
		close:  func() {},
	}
}

// each runs f for every mux over every transport.
func each(b *testing.B, f func(b *testing.B, e ends)) {
	for _, t := range transports {
		for _, m := range muxes {
			b.Run(t.name+"/"+m.name, func(b *testing.B) {
				e := m.open(b, t.pair)
				defer e.close()
				f(b, e)
			})
		}
	}
}

const blockSize = 256 << 10

func BenchmarkBulk(b *testing.B) {
	each(b, func(b *testing.B, e ends) {
		s := must[net.Conn](b)(e.open())
		b.SetBytes(blockSize)
		var got sync.WaitGroup
		got.Go(func() {
			r, err := e.accept()
			if err == nil {
				_, err = io.CopyN(io.Discard, onlyReader{r}, int64(b.N)*blockSize)
			}
			if err != nil {
				b.Error(err)
			}
		})
		block := make([]byte, blockSize)
		for range b.N {
			if _, err := s.Write(block); err != nil {
				b.Fatal(err)
			}
		}
		got.Wait()
		s.Close()
	})
}

// onlyReader hides WriteTo, so that every mux is read alike.
type onlyReader struct{ io.Reader }

func BenchmarkPingPong1(b *testing.B)  { each(b, func(b *testing.B, e ends) { pingPong(b, e, 1) }) }
func BenchmarkPingPong10(b *testing.B) { each(b, func(b *testing.B, e ends) { pingPong(b, e, 10) }) }

func BenchmarkBesideBulk(b *testing.B) {
	each(b, func(b *testing.B, e ends) {
		bulk := must[net.Conn](b)(e.open())
		if _, err := bulk.Write([]byte{0}); err != nil {
			b.Fatal(err)
		}
		sink := must[net.Conn](b)(e.accept())
		var work sync.WaitGroup
		work.Go(func() { _, _ = io.Copy(io.Discard, onlyReader{sink}) })
		work.Go(func() {
			block := make([]byte, blockSize)
			for {
				if _, err := bulk.Write(block); err != nil {
					return
				}
			}
		})
		pingPong(b, e, 1)
		bulk.Close()
		sink.Close()
		e.close()
		work.Wait()
	})
}

// pingPong does b.N round trips with n streams at once and reports their median.
func pingPong(b *testing.B, e ends, n int) {
	var work sync.WaitGroup
	clients := make([]net.Conn, n)
	for i := range clients {
		clients[i] = must[net.Conn](b)(e.open())
		if _, err := clients[i].Write([]byte{0}); err != nil {
			b.Fatal(err)
		}
		s := must[net.Conn](b)(e.accept())
		work.Go(func() {
			p := make([]byte, 1024)
			if _, err := io.ReadFull(s, p[:1]); err != nil {
				return
			}
			for {
				if _, err := io.ReadFull(s, p); err != nil {
					return
				}
				if _, err := s.Write(p); err != nil {
					return
				}
			}
		})
	}
	var mu sync.Mutex
	var took []time.Duration
	var clientsDone sync.WaitGroup
	b.ResetTimer()
	for i, c := range clients {
		clientsDone.Go(func() {
			p := make([]byte, 1024)
			mine := make([]time.Duration, 0, b.N/n+1)
			for range b.N/n + min(1, max(0, b.N%n-i)) {
				start := time.Now()
				if _, err := c.Write(p); err != nil {
					b.Error(err)
					return
				}
				if _, err := io.ReadFull(c, p); err != nil {
					b.Error(err)
					return
				}
				mine = append(mine, time.Since(start))
			}
			mu.Lock()
			defer mu.Unlock()
			took = append(took, mine...)
		})
	}
	clientsDone.Wait()
	b.StopTimer()
	slices.Sort(took)
	if len(took) > 0 {
		b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/1000, "p50-us")
		b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds())/1000, "p99-us")
	}
	for _, c := range clients {
		c.Close()
	}
	e.close()
	work.Wait()
}
