package kube

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"

	"k8s.io/client-go/rest"
)

// clientOf is a client of an API server that is a function.
func clientOf(t *testing.T, f http.HandlerFunc) *Client {
	t.Helper()
	s := httptest.NewServer(f)
	t.Cleanup(s.Close)
	base, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	return &Client{Server: s.URL, Namespace: "shop", config: &rest.Config{}, http: s.Client(), base: base}
}

func TestEndedAgentsThatAreKeptForLongMakeRoom(t *testing.T) {
	var mu sync.Mutex
	removed := make(map[string]bool)
	c := clientOf(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		name := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
		answer := func(code int, o any) { w.WriteHeader(code); json.NewEncoder(w).Encode(o) }
		switch r.Method {
		case http.MethodDelete:
			removed[name] = true
			answer(200, struct{}{})
		case http.MethodGet:
			j := Job{Meta: Meta{Name: name, Labels: map[string]string{labelTargetUID: "uid-1"}}, Status: JobStatus{Conditions: []Condition{{Type: "Complete", Status: "True"}}}}
			answer(200, j)
		case http.MethodPost:
			var j Job
			json.NewDecoder(r.Body).Decode(&j)
			if removed[j.Meta.Name] {
				answer(422, StatusError{Message: "made"})
			} else {
				answer(409, StatusError{Message: "it is there"})
			}
		}
	})
	o := Options{Image: "i"}.withDefaults()
	_, _, err := c.startJob(context.Background(), markOf(podWith("app"), "app"), &o)
	if err == nil || !strings.HasSuffix(err.Error(), ": made") || len(removed) != maxGenerations {
		t.Errorf("%v; removed %d", err, len(removed))
	}
}

func TestWhatAnAgentWaitsForIsTold(t *testing.T) {
	a := &Agent{Image: "registry.example.com/stead-agent:1", Node: "node1", State: "ContainerCreating"}
	event := func(reason, message string) Event { return Event{Reason: reason, Message: message} }
	pulling := event("Pulling", `Pulling image "registry.example.com/stead-agent:1"`)
	for _, c := range []struct {
		name   string
		events []Event
		want   string
	}{
		{"nothing is known", nil, "still waiting for the agent on node node1: ContainerCreating"},
		{"its image", []Event{event("Scheduled", "x"), pulling}, "still pulling image registry.example.com/stead-agent:1 on node node1"},
		{"no more its image", []Event{pulling, event("Pulled", `Successfully pulled image "registry.example.com/stead-agent:1" in 3s`)}, "still waiting for the agent on node node1: ContainerCreating"},
		{"the app's image, in whose pod it is", []Event{event("Pulling", `Pulling image "app:1"`)}, "still waiting for the agent on node node1: ContainerCreating"},
	} {
		if got := waitsFor(a, c.events); got != c.want {
			t.Errorf("%s: %q", c.name, got)
		}
	}
}
