package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// said is how a command line ended, and what it said.
type said struct {
	stdout, stderr string
	code           int
}

// run runs a command line in this process.
func run(t *testing.T, env []string, args ...string) said {
	t.Helper()
	var out, errs bytes.Buffer
	code := Run(context.Background(), args, env, strings.NewReader(""), &out, &errs)
	return said{out.String(), errs.String(), code}
}

// api is an API server that knows what is in its table and records what it is told.
type api struct {
	*httptest.Server
	kubeconfig string

	mu      sync.Mutex
	objects map[string]any    // by METHOD PATH; a refusal is a status
	told    map[string]string // bodies, by METHOD PATH
}

// status is a refusal of the API server's.
type status struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

func newAPI(t *testing.T, objects map[string]any) *api {
	t.Helper()
	a := &api{objects: objects, told: make(map[string]string)}
	a.Server = httptest.NewServer(http.HandlerFunc(a.serve))
	t.Cleanup(a.Close)
	a.kubeconfig = filepath.Join(t.TempDir(), "config")
	config := fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: c, clusters: [{name: c, cluster: {server: %q}}],
users: [{name: u, user: {token: t}}], contexts: [{name: c, context: {cluster: c, user: u, namespace: shop}}]}`, a.URL)
	if err := os.WriteFile(a.kubeconfig, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *api) serve(w http.ResponseWriter, r *http.Request) {
	b, _ := io.ReadAll(r.Body)
	key := r.Method + " " + r.URL.Path
	a.mu.Lock()
	a.told[key] += string(b)
	o, ok := a.objects[key]
	a.mu.Unlock()
	if f, is := o.(func(body string) any); is {
		o = f(string(b))
	}
	if !ok {
		o = status{http.StatusNotFound, key + " is not in the table"}
	}
	if s, refused := o.(status); refused {
		w.WriteHeader(s.Code)
	}
	json.NewEncoder(w).Encode(o)
}

// got is what the server was told by METHOD PATH.
func (a *api) got(key string) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.told[key]
}

// object reads YAML's flow style, which is JSON here.
func object(t *testing.T, text string) any {
	t.Helper()
	var o any
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return o
}

var allowed = func(string) any {
	return map[string]any{"status": map[string]any{"allowed": true}}
}

const reviews = "POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
