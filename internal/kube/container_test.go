package kube

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stead-dev/stead/internal/fault"
)

// withSidecar is a pod with an app, a native sidecar and an init container that has ended.
const withSidecar = `{"metadata": {"name": "p", "namespace": "shop", "uid": "uid-1"}, "spec": {"nodeName": "node1",
	"containers": [{"name": "app", "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080}}}],
	"initContainers": [{"name": "furnish"}, {"name": "proxy", "restartPolicy": "Always", "ports": [{"name": "admin", "containerPort": 9000}],
		"startupProbe": {"httpGet": {"path": "/started", "port": "admin"}}}]},
	"status": {"phase": "Running",
		"containerStatuses": [{"name": "app", "containerID": "containerd://aa", "state": {"running": {}}}],
		"initContainerStatuses": [{"name": "furnish", "containerID": "containerd://bb", "state": {"terminated": {"reason": "Completed"}}},
			{"name": "proxy", "containerID": "containerd://cc", "state": {"running": {}}}]}}`

func podOf(t *testing.T, text string) *Pod {
	t.Helper()
	p := new(Pod)
	if err := json.Unmarshal([]byte(text), p); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestANativeSidecarCanBeATargetToo(t *testing.T) {
	p := podOf(t, withSidecar)
	for _, c := range []struct{ asked, name, id string }{{"", "app", "aa"}, {"app", "app", "aa"}, {"proxy", "proxy", "cc"}} {
		name, _, err := ChooseContainer(p, c.asked)
		if name != c.name || err != nil || usable(p, name) != nil || markOf(p, name).id != c.id {
			t.Errorf("%q: %s, %v, %v, %+v", c.asked, name, err, usable(p, name), markOf(p, name))
		}
	}
	_, _, err := ChooseContainer(p, "furnish")
	if err == nil || fault.Hint(err) != "its containers: app; its sidecars: proxy" {
		t.Errorf("an init container that ends: %v, hint %q", err, fault.Hint(err))
	}
	if diff := cmp.Diff(map[uint16][]string{8080: {"/ready"}, 9000: {"/started"}}, httpProbes(p)); diff != "" {
		t.Error(diff)
	}
}

func TestAPodOfWindowsIsNamed(t *testing.T) {
	for _, spec := range []string{`{"os": {"name": "windows"}, "containers": [{"name": "app"}]}`, `{"nodeSelector": {"kubernetes.io/os": "windows"}, "containers": [{"name": "app"}]}`} {
		err := usable(podOf(t, `{"metadata": {"name": "p", "namespace": "shop"}, "spec": `+spec+`}`), "app")
		if err == nil || !strings.Contains(err.Error(), "pod shop/p is for Windows") || fault.Hint(err) == "" {
			t.Errorf("%s: %v", spec, err)
		}
	}
}

func TestPodsThatHaveEndedAreNotCounted(t *testing.T) {
	var pods []Pod
	for _, phase := range []string{"Running", "Failed", "Succeeded", "Pending"} {
		pods = append(pods, Pod{Status: PodStatus{Phase: phase}})
	}
	if n := living(pods); n != 2 {
		t.Errorf("%d live", n)
	}
}
