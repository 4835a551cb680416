package forward

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"net/netip"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/stead-dev/stead/internal/tunnel"
	"github.com/stead-dev/stead/internal/wire"
)

// Dump prints the bytes of the new connections that reach a port of the target, while the app
// answers them, until ctx ends. Each piece has a line before it: the connection's number and client,
// and the time; text is printed as it is, anything else in hexadecimal.
func Dump(ctx context.Context, o Options, ports []uint16, out io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r := newRun(ctx, o)
	d := &dump{out: out}
	if err := r.join(d.connection); err != nil {
		return err
	}
	defer r.pod.Close()
	for _, p := range ports {
		sub, err := r.subscribe(wire.Subscribe{Network: "tcp", Port: p, Mode: wire.Mirror})
		if err != nil {
			return err
		}
		defer sub.Close()
		r.say("what reaches port %d of %s (Ctrl-C ends it)", p, o.Target)
	}
	return r.wait()
}

type dump struct {
	mu  sync.Mutex
	out io.Writer
	n   int
}

// connection prints one mirrored connection. It owns st.
func (d *dump) connection(st tunnel.Stream, in wire.Incoming) {
	defer st.Close()
	if wire.Write(st, wire.Reply{}) != nil {
		return
	}
	d.mu.Lock()
	d.n++
	n := d.n
	d.mu.Unlock()
	d.print(n, in.Remote, in.Local, "begins", nil)
	b := make([]byte, 64<<10)
	for {
		k, err := st.Read(b)
		if k > 0 {
			d.print(n, in.Remote, in.Local, fmt.Sprintf("%d bytes", k), b[:k])
		}
		if err != nil {
			how := "ends"
			if err != io.EOF {
				how = "was reset"
			}
			d.print(n, in.Remote, in.Local, how, nil)
			return
		}
	}
}

func (d *dump) print(n int, from, to netip.AddrPort, what string, b []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	fmt.Fprintf(d.out, "#%d %s -> :%d %s %s\n", n, from, to.Port(), time.Now().Format("15:04:05.000"), what)
	if len(b) == 0 {
		return
	}
	if !text(b) {
		fmt.Fprint(d.out, hex.Dump(b))
		return
	}
	d.out.Write(b)
	if b[len(b)-1] != '\n' {
		fmt.Fprintln(d.out)
	}
}

// text says whether a terminal can print b: UTF-8 (cut anywhere) without control characters but
// blanks.
func text(b []byte) bool {
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		if r == utf8.RuneError && n <= 1 && len(b) >= utf8.UTFMax || r < ' ' && r != '\n' && r != '\r' && r != '\t' || r == 0x7f {
			return false
		}
		b = b[n:]
	}
	return true
}
