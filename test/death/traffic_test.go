package death

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stead-dev/stead/internal/sys"
	"github.com/stead-dev/stead/test/internal/bed"
)

const (
	fromApp     = "orders-0 (pod): GET /traffic\n"
	fromProgram = "program\n"
)

// traffic is requests to orders from the pod client, one after the other on each of some roads, until
// stop. A request belongs to the phase in which it was begun: before the death, at it, after it. One of
// before that was not answered until then belongs to the death, which may have cut it.
type traffic struct {
	end   chan struct{}
	ctx   context.Context // of connecting
	leave context.CancelFunc
	once  sync.Once
	work  sync.WaitGroup

	mu      sync.Mutex
	open    map[net.Conn]bool
	phase   int
	answers [3]map[string]int
}

func (s *scene) traffic(t *testing.T) *traffic {
	t.Helper()
	tr := &traffic{end: make(chan struct{}), open: map[net.Conn]bool{}}
	tr.ctx, tr.leave = context.WithCancel(context.Background())
	for i := range tr.answers {
		tr.answers[i] = map[string]int{}
	}
	for _, to := range []string{"10.244.0.11:8080", "[fd00:244::11]:8080", "10.244.0.11:8080"} {
		room, err := sys.EnterNetwork(s.client)
		if err != nil {
			t.Fatal(err)
		}
		tr.work.Add(1)
		go func() {
			defer tr.work.Done()
			defer room.Close()
			for {
				select {
				case <-tr.end:
					return
				case <-time.After(time.Millisecond): // the other processes want to run, too
				}
				tr.ask(room, netip.MustParseAddrPort(to))
			}
		}()
	}
	return tr
}

// ask makes one request on a connection of its own.
func (tr *traffic) ask(room *sys.Namespaces, to netip.AddrPort) {
	tr.mu.Lock()
	begun := tr.phase
	tr.mu.Unlock()
	answer, err := tr.get(room, to)
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if err != nil {
		answer = "error: " + err.Error()
		if begun == 0 && tr.phase > 0 {
			begun = 1
		}
	}
	tr.answers[begun][answer]++
}

func (tr *traffic) get(room *sys.Namespaces, to netip.AddrPort) (string, error) {
	var c net.Conn
	err := room.Do(func() (err error) {
		c, err = (&net.Dialer{Timeout: bed.Limit}).DialContext(tr.ctx, "tcp", to.String())
		return err
	})
	if err != nil {
		return "", err
	}
	tr.mu.Lock()
	tr.open[c] = true
	tr.mu.Unlock()
	defer func() {
		tr.mu.Lock()
		delete(tr.open, c)
		tr.mu.Unlock()
		c.Close()
	}()
	c.SetDeadline(time.Now().Add(bed.Limit))
	if _, err := io.WriteString(c, "GET /traffic HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n"); err != nil {
		return "", err
	}
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return "", err
	}
	b, err := io.ReadAll(r.Body)
	return string(b), err
}

// next begins the next phase.
func (tr *traffic) next() {
	tr.mu.Lock()
	tr.phase++
	tr.mu.Unlock()
}

func (tr *traffic) count(phase int, answer string) int {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return tr.answers[phase][answer]
}

func (tr *traffic) total(phase int) (n int) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	for _, x := range tr.answers[phase] {
		n += x
	}
	return n
}

func (tr *traffic) until(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(bed.Limit); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s; %s", bed.Limit, what, tr)
		}
	}
}

func (tr *traffic) stop() {
	tr.once.Do(func() { close(tr.end) })
	tr.work.Wait()
}

// cut stops when nobody is left who could answer.
func (tr *traffic) cut() {
	tr.once.Do(func() { close(tr.end) })
	tr.leave()
	tr.mu.Lock()
	for c := range tr.open {
		c.SetDeadline(time.Now())
	}
	tr.mu.Unlock()
	tr.work.Wait()
}

func (tr *traffic) String() string {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	var out []string
	for i, name := range []string{"before", "at", "after"} {
		for answer, n := range tr.answers[i] {
			out = append(out, fmt.Sprintf("%s its death %d x %q", name, n, answer))
		}
	}
	slices.Sort(out)
	return strings.Join(out, "; ")
}
