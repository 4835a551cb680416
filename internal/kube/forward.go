package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/httpstream"
	ws "k8s.io/client-go/transport/websocket"

	"github.com/stead-dev/stead/internal/kube/spdy"
)

// A forward is one connection to a port of a pod, through the API server, the kubelet and the
// container runtime. Each has a transport of its own to the API server: the streams of one SPDY
// connection hold up each other (beside a bulk stream kubectl port-forward's round trips go from
// half a millisecond to tens).
//
// There are two ways. One is the kubelet's own WebSocket protocol, which the API server passes on
// untouched: binary messages whose first byte is the channel, 0 for data and 1 for the error, each
// channel begun by the port's number. The other is SPDY (package spdy). Measured with containerd
// on 2 CPUs, the first takes 600 us for 1 KiB there and back and carries 75 MiB/s up, the second 770
// us and 140 MiB/s (the runtime spends its time in taking WebSocket messages apart): so the one is
// for small traffic, the other for bulk, and each stands in where the other cannot be had, behind a
// proxy that does not know it.

const (
	wsProtocol    = "v4.channel.k8s.io"
	wsMaxPayload  = 32 << 10 // of one frame: the peer takes a continuation for a message
	dataChannel   = 0
	errorChannel  = 1
	portNumber    = 2 // bytes at the begin of each channel
	maxErrorText  = 4 << 10
	forwardWithin = 20 * time.Second
)

// Forward connects to a port of a pod. Success says only that the API server has agreed: whether
// anybody listens is known when the first byte comes, or the error that is read instead of it. bulk
// says what the connection is mainly for.
func (c *Client) Forward(ctx context.Context, namespace, pod string, port int, bulk bool) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, forwardWithin)
	defer cancel()
	path := "/api/v1/namespaces/" + url.PathEscape(namespace) + "/pods/" + url.PathEscape(pod) + "/portforward"
	ways := [2]way{{c.forwardWebSocket, &c.noWebSocket}, {c.forwardSPDY, &c.noSPDY}}
	if bulk {
		ways[0], ways[1] = ways[1], ways[0]
	}
	if ways[0].missing.Load() {
		ways[0], ways[1] = ways[1], ways[0]
	}
	conn, err := ways[0].dial(ctx, path, port)
	if err == nil || !upgradeFailed(err) || refusedByServer(err) != nil {
		return conn, c.forwardError(namespace, pod, err)
	}
	// Not known on the way to the kubelet, or not just now: the other way tells which.
	if conn, oerr := ways[1].dial(ctx, path, port); oerr == nil {
		ways[0].missing.Store(true)
		return conn, nil
	}
	return nil, c.forwardError(namespace, pod, err)
}

// way is one of the two protocols of a forward.
type way struct {
	dial    func(ctx context.Context, path string, port int) (net.Conn, error)
	missing *atomic.Bool // found not to be had here
}

// upgradeFailed says that an answer came which was no upgrade.
func upgradeFailed(err error) bool {
	var up *upgradeError
	return httpstream.IsUpgradeFailure(err) || errors.As(err, &up)
}

// refusedByServer gives the API server's refusal that an upgrade failed by, nil for none.
func refusedByServer(err error) *StatusError {
	var ours *StatusError
	if errors.As(err, &ours) {
		return ours
	}
	var up *httpstream.UpgradeFailureError
	if errors.As(err, &up) {
		err = up.Cause
	}
	var s *apierrors.StatusError
	if !errors.As(err, &s) {
		return nil
	}
	return &StatusError{Code: int(s.ErrStatus.Code), Reason: string(s.ErrStatus.Reason), Message: s.ErrStatus.Message}
}

func (c *Client) forwardError(namespace, pod string, err error) error {
	if err == nil {
		return nil
	}
	if s := refusedByServer(err); s != nil {
		err = refused(s)
	} else if ne := net.Error(nil); errors.As(err, &ne) {
		err = c.unreachable(err)
	}
	return fmt.Errorf("forward to pod %s/%s: %w", namespace, pod, err)
}

func (c *Client) forwardSPDY(ctx context.Context, path string, port int) (net.Conn, error) {
	t, err := c.upgrade(ctx, path, spdy.Upgrade, spdy.Protocol)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { t.Close() })
	f, err := spdy.Open(t, port)
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		t.Close()
		return nil, err
	}
	return f, nil
}

func (c *Client) forwardWebSocket(ctx context.Context, path string, port int) (net.Conn, error) {
	rt, holder, err := ws.RoundTripperFor(c.config) // one for each: it keeps the connection
	if err != nil {
		return nil, err
	}
	u := *c.base
	u.Path += path
	u.RawQuery = url.Values{"ports": {strconv.Itoa(port)}}.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	conn, err := ws.Negotiate(rt, holder, req, wsProtocol)
	if err != nil {
		return nil, err
	}
	return &wsForward{Conn: conn, begun: [2]int{portNumber, portNumber}}, nil
}

// wsForward is a forward over the kubelet's WebSocket protocol. One goroutine may read beside one
// that writes. A deadline that has passed ends it.
type wsForward struct {
	*websocket.Conn
	message io.Reader // what is left of a data message
	begun   [2]int    // how many bytes of the port's number are still to come, by channel
}

// Read implements net.Conn.
func (f *wsForward) Read(p []byte) (int, error) {
	for {
		if f.message == nil {
			if err := f.next(); err != nil {
				return 0, err
			}
			continue
		}
		n, err := f.message.Read(p)
		if err == io.EOF {
			f.message, err = nil, nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// next takes a message.
func (f *wsForward) next() error {
	_, r, err := f.NextReader()
	if err != nil {
		var ce *websocket.CloseError
		if errors.As(err, &ce) && (ce.Code == websocket.CloseNormalClosure || ce.Code == websocket.CloseAbnormalClosure) {
			return io.EOF
		}
		return err
	}
	var channel [1]byte
	if _, err := io.ReadFull(r, channel[:]); err != nil || channel[0] > errorChannel {
		return nil // an empty message, or a channel that we did not ask for
	}
	if begun := &f.begun[channel[0]]; *begun > 0 {
		n, err := io.CopyN(io.Discard, r, int64(*begun))
		*begun -= int(n)
		if err != nil {
			return nil
		}
	}
	if channel[0] == dataChannel {
		f.message = r
		return nil
	}
	text, err := io.ReadAll(io.LimitReader(r, maxErrorText))
	if err != nil || len(text) == 0 {
		return err
	}
	return &spdy.Complaint{Text: string(text)}
}

// Write implements net.Conn.
func (f *wsForward) Write(p []byte) (int, error) {
	n, err := f.WriteBuffers(net.Buffers{p})
	return int(n), err
}

// WriteBuffers writes b, which it consumes, in few messages.
func (f *wsForward) WriteBuffers(b net.Buffers) (n int64, err error) {
	for len(b) > 0 {
		w, err := f.NextWriter(websocket.BinaryMessage)
		if err != nil {
			return n, err
		}
		_, err = w.Write([]byte{dataChannel})
		for room := wsMaxPayload; err == nil && room > 0 && len(b) > 0; {
			var k int
			k, err = w.Write(b[0][:min(len(b[0]), room)])
			n, room = n+int64(k), room-k
			if b[0] = b[0][k:]; len(b[0]) == 0 {
				b[0] = nil
				b = b[1:]
			}
		}
		if err == nil {
			err = w.Close()
		}
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// SetDeadline implements net.Conn.
func (f *wsForward) SetDeadline(t time.Time) error {
	return errors.Join(f.SetReadDeadline(t), f.SetWriteDeadline(t))
}
