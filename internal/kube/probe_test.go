package kube

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestTheKubeletsProbesAreRead(t *testing.T) {
	var p Pod
	if err := json.Unmarshal([]byte(`{"spec": {"containers": [
		{"name": "app", "ports": [{"name": "http", "containerPort": 8080}],
		 "readinessProbe": {"httpGet": {"path": "/ready?full=1", "port": "http"}},
		 "livenessProbe": {"httpGet": {"path": "healthz", "port": 8080}},
		 "startupProbe": {"httpGet": {"path": "/healthz", "port": "http"}}},
		{"name": "other",
		 "readinessProbe": {"httpGet": {"port": 9000}},
		 "livenessProbe": {"tcpSocket": {"port": 8080}},
		 "startupProbe": {"httpGet": {"path": "/", "port": "http"}}},
		{"name": "tls", "readinessProbe": {"httpGet": {"path": "/", "port": 8443, "scheme": "HTTPS"}}},
		{"name": "elsewhere", "readinessProbe": {"httpGet": {"path": "/", "port": 80, "host": "example.com"}}}
	]}}`), &p); err != nil {
		t.Fatal(err)
	}
	want := map[uint16][]string{8080: {"/healthz", "/ready?full=1"}, 9000: {"/"}}
	if diff := cmp.Diff(want, httpProbes(&p)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}
