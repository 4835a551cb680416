package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/rest"
)

// newUpgrades makes the transport of connections that leave HTTP: with what the kubeconfig says of
// proxies and credentials, but HTTP/1.1, and of each a cork can be had.
func newUpgrades(config *rest.Config) (http.RoundTripper, error) {
	config = rest.CopyConfig(config)
	config.NextProtos = []string{"http/1.1"}
	dial := config.Dial
	if dial == nil {
		dial = (&net.Dialer{Timeout: forwardWithin, KeepAlive: 30 * time.Second}).DialContext
	}
	config.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return &cork{Conn: c}, nil
	}
	return rest.TransportFor(config)
}

// upgrade asks the API server for a connection that speaks another protocol from there on.
func (c *Client) upgrade(ctx context.Context, path, to, protocol string) (net.Conn, error) {
	rt, err := c.upgrades()
	if err != nil {
		return nil, err
	}
	u := *c.base
	u.Path += path
	var raw net.Conn
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { raw = i.Conn }})
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", to)
	req.Header.Set("X-Stream-Protocol-Version", protocol)
	r, err := rt.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	body, ok := r.Body.(io.ReadWriteCloser)
	if r.StatusCode == http.StatusSwitchingProtocols && ok && raw != nil && strings.EqualFold(r.Header.Get("Upgrade"), to) {
		return &upgraded{Conn: raw, body: body, cork: corkOf(raw)}, nil
	}
	defer r.Body.Close()
	b, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	s := &StatusError{}
	if r.StatusCode >= 400 && json.Unmarshal(b, s) == nil && s.Message != "" {
		s.Code = r.StatusCode
		return nil, s
	}
	return nil, &upgradeError{fmt.Sprintf("no upgrade to %s: %s %s", to, r.Status, firstLine(b))}
}

// upgradeError is an answer that was neither an upgrade nor the API server's refusal.
type upgradeError struct{ text string }

func (e *upgradeError) Error() string { return e.text }

// upgraded is a connection to the API server after its upgrade. The body gives what was read too
// early, then what comes; the connection has the deadlines.
type upgraded struct {
	net.Conn
	body io.ReadWriteCloser
	cork *cork // below the TLS; nil where it is not known
}

func (u *upgraded) Read(p []byte) (int, error) { return u.body.Read(p) }
func (u *upgraded) Close() error               { return u.body.Close() }

// Write hands all records of TLS that p becomes to the kernel with one call.
func (u *upgraded) Write(p []byte) (int, error) {
	if u.cork == nil {
		return u.body.Write(p)
	}
	u.cork.hold()
	n, err := u.body.Write(p)
	if rerr := u.cork.release(); err == nil {
		err = rerr
	}
	return n, err
}

// corkSize is what a cork holds back at most.
const corkSize = 264 << 10

// cork is a connection that can hold back what is written, to write it at once. A write of TLS's own,
// from the goroutine that reads, may come in between.
type cork struct {
	net.Conn
	mu      sync.Mutex
	holding bool
	held    []byte
}

// corkOf finds the cork below c.
func corkOf(c net.Conn) *cork {
	if t, ok := c.(interface{ NetConn() net.Conn }); ok {
		c = t.NetConn()
	}
	k, _ := c.(*cork)
	return k
}

func (k *cork) hold() {
	k.mu.Lock()
	k.holding = true
	k.mu.Unlock()
}

// Write implements net.Conn.
func (k *cork) Write(p []byte) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.holding && len(k.held)+len(p) <= corkSize {
		k.held = append(k.held, p...)
		return len(p), nil
	}
	if err := k.flushLocked(); err != nil {
		return 0, err
	}
	return k.Conn.Write(p)
}

func (k *cork) release() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.holding = false
	return k.flushLocked()
}

func (k *cork) flushLocked() error {
	if len(k.held) == 0 {
		return nil
	}
	_, err := k.Conn.Write(k.held)
	k.held = k.held[:0]
	return err
}
