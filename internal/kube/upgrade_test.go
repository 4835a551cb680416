package kube

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"k8s.io/client-go/rest"

	"net/url"
)

// server is an API server that answers as serve says.
func server(t *testing.T, serve http.HandlerFunc) *Client {
	t.Helper()
	s := httptest.NewUnstartedServer(serve)
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	base, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	config := &rest.Config{Host: s.URL, TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
	return &Client{base: base, upgrades: func() (http.RoundTripper, error) { return newUpgrades(config) }}
}

func TestAnUpgradedConnectionGivesWhatCameEarlyAndThenCarriesAll(t *testing.T) {
	c := server(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "X" || r.URL.Path != "/path" {
			t.Errorf("asked for %s %s with %v", r.Method, r.URL, r.Header)
		}
		conn, b, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		b.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nearly")
		b.Flush()
		_, _ = io.Copy(conn, b)
	})
	ctx, cancel := context.WithCancel(t.Context())
	conn, err := c.upgrade(ctx, "/path", "X", "p")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	cancel() // it was for the request
	whole := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
	go func() {
		for rest := whole; len(rest) > 0; {
			n, err := conn.Write(rest[:min(len(rest), 300<<10)])
			if err != nil {
				t.Error(err)
				return
			}
			rest = rest[n:]
		}
	}()
	got := make([]byte, 5+len(whole))
	if _, err := io.ReadFull(conn, got); err != nil {
		t.Fatal(err)
	}
	if string(got[:5]) != "early" || !bytes.Equal(got[5:], whole) {
		t.Error("other bytes came")
	}
	if conn.(*upgraded).cork == nil {
		t.Error("the cork was not found below the TLS")
	}
}

func TestWhatIsNoUpgradeIsTold(t *testing.T) {
	refusal := `{"kind":"Status","status":"Failure","message":"pods \"x\" is forbidden","reason":"Forbidden","code":403}`
	for name, c := range map[string]struct {
		code    int
		body    string
		refused bool
	}{
		"the API server refuses": {403, refusal, true},
		"a proxy answers":        {502, "bad gateway", false},
		"a page comes":           {200, "<html>", false},
	} {
		client := server(t, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(c.code)
			_, _ = io.WriteString(w, c.body)
		})
		_, err := client.upgrade(t.Context(), "/path", "X", "p")
		if got := refusedByServer(err); (got != nil) != c.refused || c.refused && got.Code != c.code {
			t.Errorf("%s: %v", name, err)
		}
		if upgradeFailed(err) == c.refused {
			t.Errorf("%s: an upgrade that failed: %v", name, err)
		}
	}
}

// counted counts the writes that reach it.
type counted struct {
	net.Conn
	sizes []int
	err   error
}

func (c *counted) Write(p []byte) (int, error) {
	c.sizes = append(c.sizes, len(p))
	return len(p), c.err
}

func TestACorkWritesAtOnceWhatItHeld(t *testing.T) {
	n := &counted{}
	k := &cork{Conn: n}
	write := func(size int) {
		t.Helper()
		if got, err := k.Write(make([]byte, size)); got != size || err != nil {
			t.Errorf("write of %d: %d, %v", size, got, err)
		}
	}
	write(1)
	k.hold()
	write(10)
	write(20)
	if len(n.sizes) != 1 {
		t.Errorf("written while held: %v", n.sizes)
	}
	if err := k.release(); err != nil {
		t.Error(err)
	}
	k.hold()
	write(5)
	write(corkSize)
	write(6)
	if err := k.release(); err != nil {
		t.Error(err)
	}
	if want := []int{1, 30, 5, corkSize, 6}; len(n.sizes) != len(want) {
		t.Errorf("writes of %v, want %v", n.sizes, want)
	} else {
		for i := range want {
			if n.sizes[i] != want[i] {
				t.Errorf("writes of %v, want %v", n.sizes, want)
			}
		}
	}
	k.hold()
	write(7)
	n.err = errors.New("gone")
	if err := k.release(); err != n.err {
		t.Errorf("release: %v, want %v", err, n.err)
	}
}
