//go:build e2e

package e2e

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
)

// field reads one of the test's own kubeconfig.
func field(t *testing.T, path string) string {
	t.Helper()
	r := kubectl("config", "view", "--raw", "-o", "jsonpath={"+path+"}")
	if r.code != 0 || r.stdout == "" {
		t.Fatalf("%s of the kubeconfig: %s", path, r.stderr)
	}
	return r.stdout
}

// configOf writes a kubeconfig for the test's cluster with other ways to be somebody and to get there.
// It has two contexts: here, the current one, and elsewhere, where nobody listens.
func configOf(t *testing.T, user map[string]any, cluster map[string]any) string {
	t.Helper()
	c := map[string]any{"server": field(t, ".clusters[0].cluster.server"), "certificate-authority-data": field(t, ".clusters[0].cluster.certificate-authority-data")}
	for k, v := range cluster {
		c[k] = v
	}
	b, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Config", "current-context": "here",
		"clusters": []any{map[string]any{"name": "c", "cluster": c}, map[string]any{"name": "none", "cluster": map[string]any{"server": "https://127.0.0.1:1"}}},
		"users":    []any{map[string]any{"name": "u", "user": user}},
		"contexts": []any{
			map[string]any{"name": "here", "context": map[string]any{"cluster": "c", "user": "u", "namespace": namespace}},
			map[string]any{"name": "elsewhere", "context": map[string]any{"cluster": "none", "user": "u"}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// certificate is how the test itself is somebody.
func certificate(t *testing.T) map[string]any {
	return map[string]any{"client-certificate-data": field(t, ".users[0].user.client-certificate-data"), "client-key-data": field(t, ".users[0].user.client-key-data")}
}

// sees runs a session by a kubeconfig, in its own namespace, and fails the test unless it works.
func sees(t *testing.T, flags ...string) {
	t.Helper()
	args := append([]string{"exec", "-q", "--target", "deployment/bare", "--no-incoming"}, flags...)
	if r := command("", stead, append(args, "--", "cat", "/etc/hostname")...); r.code != 0 || !strings.HasPrefix(r.stdout, "bare-") {
		t.Errorf("stead %v: exit code %d: %s%s", args, r.code, r.stdout, r.stderr)
	}
}

func TestTheKubeconfigMeansWhatItMeansToKubectl(t *testing.T) {
	t.Run("client certificates, and the context's namespace", func(t *testing.T) {
		sees(t, "--kubeconfig", configOf(t, certificate(t), nil))
	})
	t.Run("a context that is chosen", func(t *testing.T) {
		config := configOf(t, certificate(t), nil)
		sees(t, "--kubeconfig", config, "--context", "here")
		r := command("", stead, "exec", "--kubeconfig", config, "--context", "elsewhere", "--target", "deployment/bare", "--", "true")
		if r.code != 125 || !strings.Contains(r.stderr, "https://127.0.0.1:1") {
			t.Errorf("exit code %d: %s", r.code, r.stderr)
		}
	})
	t.Run("a token, of a service account with the printed Role", func(t *testing.T) {
		const who = "system:serviceaccount:shop:orders"
		if r := apply(tool("rbac", "--user", who).stdout); r.code != 0 {
			t.Fatal(r.stderr)
		}
		t.Cleanup(func() { kubectl("delete", "role,rolebinding", "stead") })
		sees(t, "--kubeconfig", configOf(t, map[string]any{"token": kubectl("create", "token", "orders").stdout}, nil))
	})
	t.Run("a program that gives credentials", func(t *testing.T) {
		pem := func(name string) string {
			b, err := base64.StdEncoding.DecodeString(field(t, ".users[0].user."+name))
			if err != nil {
				t.Fatal(err)
			}
			return string(b)
		}
		b, _ := json.Marshal(map[string]any{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential",
			"status": map[string]any{"clientCertificateData": pem("client-certificate-data"), "clientKeyData": pem("client-key-data")}})
		dir := t.TempDir()
		plugin := filepath.Join(dir, "login")
		script := fmt.Sprintf("#!/bin/sh\necho \"$WHO\" >> %s/asked\ncat <<'E'\n%s\nE\n", dir, b)
		if err := os.WriteFile(plugin, []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
		exec := func(command string) map[string]any {
			return map[string]any{"exec": map[string]any{"apiVersion": "client.authentication.k8s.io/v1", "command": command, "interactiveMode": "Never",
				"env": []any{map[string]any{"name": "WHO", "value": "ann"}}, "installHint": "install the login program"}}
		}
		sees(t, "--kubeconfig", configOf(t, exec(plugin), nil))
		if asked, _ := os.ReadFile(dir + "/asked"); !strings.HasPrefix(string(asked), "ann\n") {
			t.Errorf("the program was asked as %q", asked)
		}
		for what, command := range map[string]string{"one that fails": "/bin/false", "one that is not there": filepath.Join(dir, "none")} {
			r := execIn("deployment/bare", []string{"--kubeconfig", configOf(t, exec(command), nil)}, "true")
			if r.code != 125 || !strings.HasPrefix(r.stderr, "error: ") || !strings.Contains(r.stderr, command) || !strings.Contains(r.stderr, "hint: ") {
				t.Errorf("%s: exit code %d: %s", what, r.code, r.stderr)
			}
		}
	})
	t.Run("impersonation of a user, with a group and without", func(t *testing.T) {
		sees(t, "-n", namespace, "--as", "eve", "--as-group", "nobodies", "--as-group", "system:masters")
		r := execIn("deployment/bare", []string{"--as", "eve", "--as-group", "nobodies"}, "true")
		if r.code != 125 || !strings.Contains(r.stderr, "eve may not get deployments") {
			t.Errorf("exit code %d: %s", r.code, r.stderr)
		}
	})
	t.Run("a proxy", func(t *testing.T) {
		proxy, through := connectProxy(t, "")
		sees(t, "--kubeconfig", configOf(t, certificate(t), map[string]any{"proxy-url": proxy}))
		// The API's own connection, and the forward's.
		if n := through.Load(); n < 2 {
			t.Errorf("%d connections by the proxy", n)
		}
		r := execIn("deployment/bare", []string{"--kubeconfig", configOf(t, certificate(t), map[string]any{"proxy-url": "http://127.0.0.1:1"})}, "true")
		if r.code != 125 || !strings.Contains(r.stderr, "refused") {
			t.Errorf("a proxy that is away: exit code %d: %s", r.code, r.stderr)
		}
	})
	t.Run("a proxy that the environment names", func(t *testing.T) {
		server, err := url.Parse(field(t, ".clusters[0].cluster.server"))
		if err != nil {
			t.Fatal(err)
		}
		proxy, through := connectProxy(t, server.Host)
		// Nobody asks a proxy for the loopback: another name of it is wanted.
		config := func(host string) string {
			return configOf(t, certificate(t), map[string]any{"server": "https://" + host, "tls-server-name": server.Hostname()})
		}
		t.Setenv("HTTPS_PROXY", proxy)
		sees(t, "--kubeconfig", config("kubernetes.shop.test:443")) // which only the proxy knows
		if n := through.Load(); n < 2 {
			t.Errorf("%d connections by the proxy", n)
		}
		direct := config("0.0.0.0:" + server.Port())
		through.Store(0)
		sees(t, "--kubeconfig", direct)
		if n := through.Load(); n < 2 {
			t.Errorf("%d connections by the proxy", n)
		}
		for _, none := range []string{"example.com,0.0.0.0", "0.0.0.0/8"} {
			t.Setenv("NO_PROXY", none)
			through.Store(0)
			sees(t, "--kubeconfig", direct)
			if n := through.Load(); n != 0 {
				t.Errorf("NO_PROXY=%s: %d connections by the proxy", none, n)
			}
		}
	})
	nothingLeft(t, soon)
}

// connectProxy is a proxy that counts its connections; they lead to the address, if one is given.
func connectProxy(t *testing.T, to string) (address string, through *atomic.Int32) {
	t.Helper()
	through = new(atomic.Int32)
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodConnect {
			http.Error(w, "only CONNECT", http.StatusMethodNotAllowed)
			return
		}
		far, err := net.Dial("tcp", cmp.Or(to, r.Host))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		through.Add(1)
		near, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			far.Close()
			return
		}
		io.WriteString(near, "HTTP/1.1 200 Connected\r\n\r\n")
		go func() { io.Copy(far, near); far.(*net.TCPConn).CloseWrite() }()
		io.Copy(near, far)
		near.Close()
		far.Close()
	}))
	t.Cleanup(proxy.Close)
	return proxy.URL, through
}
