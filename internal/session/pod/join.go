package pod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"syscall"
	"time"

	"github.com/stead-dev/stead/internal/tunnel"
	"github.com/stead-dev/stead/internal/wire"
)

// dialAgain is how long an agent that ends just when we come is tried again for: the next one takes
// its place.
const dialAgain = 5 * time.Second

// Join reaches an agent beside target, which is named in errors, and introduces us. hello's holder
// is filled in.
func Join(ctx context.Context, target string, dial tunnel.Dialer, hello wire.Hello, h Handlers) (*Conn, error) {
	var t tunnel.Conn
	var err error
	for end := time.Now().Add(dialAgain); ; time.Sleep(100 * time.Millisecond) {
		t, err = tunnel.Dial(ctx, dial, tunnel.Options{})
		gone := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
		if !gone || time.Now().After(end) || ctx.Err() != nil {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("reach an agent beside %s: %w", target, err)
	}
	hello.Holder = holder()
	return Attach(ctx, t, hello, h)
}

// holder says who we are to those who find a port taken.
func holder() string {
	name := "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return name + "@" + host
}
