//go:build e2e

package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// front is a proxy before the API server, which it reaches as the test's own user, that does not
// let a protocol through.
func front(t *testing.T, without string) (config string, upgrades func() []string) {
	t.Helper()
	view := func(path string) []byte {
		r := kubectl("config", "view", "--raw", "-o", "jsonpath={"+path+"}")
		b, err := base64.StdEncoding.DecodeString(r.stdout)
		if err != nil || len(b) == 0 {
			t.Fatalf("%s of the kubeconfig: %v %s", path, err, r.stderr)
		}
		return b
	}
	cert, err := tls.X509KeyPair(view(".users[0].user.client-certificate-data"), view(".users[0].user.client-key-data"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(view(".clusters[0].cluster.certificate-authority-data"))
	server, err := url.Parse(kubectl("config", "view", "-o", "jsonpath={.clusters[0].cluster.server}").stdout)
	if err != nil {
		t.Fatal(err)
	}
	p := httputil.NewSingleHostReverseProxy(server)
	p.Transport = &http.Transport{TLSClientConfig: &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: roots}}
	p.ErrorLog = log.New(io.Discard, "", 0)
	var mu sync.Mutex
	var seen []string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		up := strings.ToLower(r.Header.Get("Upgrade"))
		if up != "" {
			mu.Lock()
			seen = append(seen, up)
			mu.Unlock()
		}
		if without != "" && strings.HasPrefix(up, without) {
			http.Error(w, "this proxy does not know "+up, http.StatusBadRequest)
			return
		}
		p.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	config = filepath.Join(t.TempDir(), "kubeconfig")
	text := "{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}], users: [{name: u, user: {}}], clusters: [{name: c, cluster: {server: '" + s.URL + "'}}]}"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return config, func() []string { mu.Lock(); defer mu.Unlock(); return seen }
}

func TestBehindAProxyThatKnowsOneProtocolTheOtherStandsIn(t *testing.T) {
	pod := podOf(t, "orders")
	want := kubectl("exec", pod, "--", "sha256sum", "/var/data/big.bin").stdout
	for _, c := range []struct{ without, uses string }{{"", "websocket spdy/3.1"}, {"websocket", "spdy/3.1"}, {"spdy", "websocket"}} {
		config, upgrades := front(t, c.without)
		r := execIn("pod/"+pod, []string{"--kubeconfig", config, "--no-incoming"}, "sha256sum", "/var/data/big.bin")
		if r.code != 0 || r.stdout != want || want == "" {
			t.Errorf("without %q: exit code %d, %q, want %q: %s", c.without, r.code, r.stdout, want, r.stderr)
		}
		for _, u := range strings.Fields(c.uses) {
			if !strings.Contains(strings.Join(upgrades(), " "), u) {
				t.Errorf("without %q: used %v", c.without, upgrades())
			}
		}
	}
}
