package kube

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/stead-dev/stead/internal/fault"
)

// StatusError is the API server's refusal.
type StatusError struct {
	Code    int    `json:"code"`
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

func (e *StatusError) Error() string { return e.Message }

func isStatus(err error, code int) bool {
	var s *StatusError
	return errors.As(err, &s) && s.Code == code
}

// Bounds of one conversation with the API server.
const (
	requestTimeout = 30 * time.Second
	maxAnswer      = 64 << 20
)

// request sends one request and decodes the answer into out, which may be nil. path begins with
// /api or /apis. Every error tells the verb and the object.
func (c *Client) request(ctx context.Context, method, path string, query url.Values, contentType string, body, out any) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	r, err := c.send(ctx, method, path, query, contentType, body)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(io.LimitReader(r.Body, maxAnswer))
	if err == nil && out != nil {
		err = json.Unmarshal(b, out)
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	return nil
}

// send sends a request; an answer that is no success is an error.
func (c *Client) send(ctx context.Context, method, path string, query url.Values, contentType string, body any) (*http.Response, error) {
	var in io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w", method, path, err)
		}
		in = bytes.NewReader(b)
	}
	u := *c.base
	u.Path += path
	u.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(ctx, method, u.String(), in)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	req.Header.Set("Accept", "application/json")
	if body != nil {
		if contentType == "" {
			contentType = "application/json"
		}
		req.Header.Set("Content-Type", contentType)
	}
	r, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(err)
	}
	c.clock(r.Header.Get("Date"))
	if r.StatusCode < 300 {
		return r, nil
	}
	defer r.Body.Close()
	b, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	s := &StatusError{}
	if json.Unmarshal(b, s) != nil || s.Message == "" {
		s.Message = strings.TrimSpace(fmt.Sprintf("%s %s: %s %s", method, path, r.Status, firstLine(b)))
	}
	s.Code = r.StatusCode
	return nil, refused(s)
}

// clock notes what time it is in the cluster, to the second.
func (c *Client) clock(date string) {
	if t, err := http.ParseTime(date); err == nil {
		c.ahead.Store(int64(time.Until(t)))
	}
}

// now is the cluster's time.
func (c *Client) now() time.Time { return time.Now().Add(time.Duration(c.ahead.Load())) }

func firstLine(b []byte) string {
	line, _, _ := bytes.Cut(bytes.TrimSpace(b), []byte("\n"))
	return string(line[:min(len(line), 200)])
}

// unreachable explains an API server that did not answer.
func (c *Client) unreachable(err error) error {
	if ue := (*url.Error)(nil); errors.As(err, &ue) {
		err = ue.Err // without the long address
	}
	err = fmt.Errorf("Kubernetes API at %s: %w", c.Server, err)
	var dns *net.DNSError
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, context.DeadlineExceeded), errors.As(err, &dns):
		return fault.With(err, "kubectl cluster-info: is it the right cluster (kubectl config current-context), and is the VPN up?")
	}
	return fault.With(err, "kubectl auth whoami: does kubectl reach the cluster with the same kubeconfig?")
}

func (c *Client) get(ctx context.Context, path string, query url.Values, out any) error {
	return c.request(ctx, http.MethodGet, path, query, "", nil, out)
}

func (c *Client) create(ctx context.Context, path string, in, out any) error {
	return c.request(ctx, http.MethodPost, path, nil, "", in, out)
}

// remove deletes an object and what it owns; one that is gone is no error.
func (c *Client) remove(ctx context.Context, path string) error {
	err := c.request(ctx, http.MethodDelete, path, url.Values{"propagationPolicy": {"Background"}}, "", nil, nil)
	if isStatus(err, http.StatusNotFound) {
		return nil
	}
	return err
}

// watchEvent is one line of a watch.
type watchEvent[T any] struct {
	Type   string `json:"type"`
	Object T      `json:"object"`
}

// watch calls f for every object of the list at path, those that are there and those that change,
// until ctx ends or the API server ends the watch (the caller begins again).
func watch[T any](ctx context.Context, c *Client, path string, query url.Values, f func(kind string, o T)) error {
	q := url.Values{"watch": {"1"}}
	for k, v := range query {
		q[k] = v
	}
	r, err := c.send(ctx, http.MethodGet, path, q, "", nil)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	for d := json.NewDecoder(r.Body); ; {
		var e watchEvent[T]
		if err := d.Decode(&e); err != nil {
			return fmt.Errorf("watch %s: %w", path, err)
		}
		if e.Type == "ERROR" {
			return fmt.Errorf("watch %s: ended by the API server", path)
		}
		f(e.Type, e.Object)
	}
}
