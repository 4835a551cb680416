package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/client-go/rest"
)

// seat counts what a follower tells it.
type seat struct{ ending, left int }

func (s *seat) Done() <-chan struct{} { return nil }
func (s *seat) TargetGone() bool      { return false }
func (s *seat) Ending()               { s.ending++ }
func (s *seat) Leave()                { s.left++ }

func TestWhatIsDoneAboutTheTargetsPods(t *testing.T) {
	now := time.Unix(1000, 0)
	at := func(name, id string, what string) view {
		return view{m: mark{pod: name, uid: "uid-" + name, id: id},
			usable: !strings.Contains(what, "waits") && !strings.Contains(what, "ending"),
			ready:  !strings.Contains(what, "waits") && !strings.Contains(what, "ending") && !strings.Contains(what, "unready"),
			ending: strings.Contains(what, "ending")}
	}
	type P = map[string]string // what is to be done, by pod
	for _, c := range []struct {
		what   string
		all    bool
		stands []view // beside which there is an agent
		pods   []view
		prior  func(*follower)
		want   P
	}{
		{"nothing", false, []view{at("a", "1", "")}, []view{at("a", "1", "")}, nil, P{}},
		{"one is enough", false, []view{at("a", "1", "")}, []view{at("a", "1", ""), at("b", "2", "")}, nil, P{}},
		{"all are wanted", true, []view{at("a", "1", "")}, []view{at("a", "1", ""), at("b", "2", ""), at("c", "3", "")}, nil, P{"b": "join", "c": "join"}},
		{"only those that are ready", true, []view{at("a", "1", "")}, []view{at("a", "1", ""), at("b", "2", "unready"), at("c", "3", "waits")}, nil, P{}},
		{"gone", false, []view{at("a", "1", "")}, []view{at("b", "2", "")}, nil, P{"a": "leave", "b": "join"}},
		{"gone, and the first of the others", false, []view{at("a", "1", "")}, []view{at("b", "2", ""), at("c", "3", "")}, nil, P{"a": "leave", "b": "join"}},
		{"about to end, with another", false, []view{at("a", "1", "")}, []view{at("b", "2", ""), at("a", "1", "ending")}, nil, P{"a": "ending", "b": "join"}},
		{"about to end, without another", false, []view{at("a", "1", "")}, []view{at("a", "1", "ending")}, nil, P{"a": "ending"}},
		{"about to end, which is told once", false, []view{at("a", "1", "")}, []view{at("a", "1", "ending")}, func(r *follower) { r.stands["uid-a"].ending = true }, P{}},
		{"about to end, while its agent starts", false, []view{at("a", "1", "")}, []view{at("a", "1", "ending")}, func(r *follower) { r.stands["uid-a"].seat = nil }, P{}},
		{"an agent that starts is one", false, []view{at("a", "1", "")}, []view{at("a", "1", ""), at("b", "2", "")}, func(r *follower) { r.stands["uid-a"].seat = nil }, P{}},
		{"started anew", false, []view{at("a", "1", "")}, []view{at("a", "2", "")}, nil, P{"a": "leave join"}},
		{"between two crashes", false, []view{at("a", "1", "")}, []view{at("a", "2", "waits")}, nil, P{}},
		{"a container that has ended, as the cluster does not know yet", false, nil, []view{at("a", "1", "")}, func(r *follower) { r.dead["1"] = true }, P{}},
		{"and its next", false, nil, []view{at("a", "2", "")}, func(r *follower) { r.dead["1"] = true }, P{"a": "join"}},
		{"one that rests", false, nil, []view{at("a", "1", "")}, func(r *follower) { r.rest["1"] = now.Add(1) }, P{}},
		{"one that has rested", false, nil, []view{at("a", "1", "")}, func(r *follower) { r.rest["1"] = now }, P{"a": "join"}},
		{"not ready, for a moment", false, nil, []view{at("a", "1", "unready")}, func(r *follower) { r.since = now.Add(-unreadyAfter + 1) }, P{}},
		{"not ready, for long", false, nil, []view{at("a", "1", "unready"), at("b", "2", "unready")}, func(r *follower) { r.since = now.Add(-unreadyAfter) }, P{"a": "join"}},
		{"not ready, while there is another", true, []view{at("b", "2", "")}, []view{at("b", "2", ""), at("a", "1", "unready")}, func(r *follower) { r.since = now.Add(-time.Hour) }, P{}},
	} {
		r := &follower{all: c.all, stands: make(map[string]*stand), dead: make(map[string]bool), rest: make(map[string]time.Time)}
		for _, v := range c.stands {
			r.stands[v.m.uid] = &stand{m: v.m, seat: &seat{}}
		}
		if c.prior != nil {
			c.prior(r)
		}
		p := r.decide(c.pods, now)
		got := P{}
		add := func(name, what string) { got[name] = strings.TrimSpace(got[name] + " " + what) }
		for _, uid := range p.leave {
			add(strings.TrimPrefix(uid, "uid-"), "leave")
		}
		for _, uid := range p.ending {
			add(strings.TrimPrefix(uid, "uid-"), "ending")
		}
		for _, m := range p.join {
			add(m.pod, "join")
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: -want +got:\n%s", c.what, diff)
		}
	}
}

func TestAPodOfALostNodeGivesWay(t *testing.T) {
	at := func(ready, containers string) Pod {
		return Pod{Meta: Meta{Name: "a", UID: "uid-a"}, Spec: PodSpec{Containers: []Container{{Name: "app"}}}, Status: PodStatus{
			Conditions:        []Condition{{Type: "Ready", Status: ready}, {Type: "ContainersReady", Status: containers}},
			ContainerStatuses: []ContainerStatus{{Name: "app", ContainerID: "containerd://1", State: ContainerState{Running: &Running{}}}}}}
	}
	gated := at("False", "True")
	gated.Spec.ReadinessGates = []ReadinessGate{{ConditionType: "example.com/lb"}}
	for _, c := range []struct {
		what          string
		pod           Pod
		ready, ending bool
	}{
		{"all is well", at("True", "True"), true, false},
		{"its containers are not ready", at("False", "False"), false, false},
		{"the node is lost", at("False", "True"), false, true},
		{"somebody else says that it is not ready", gated, false, false},
	} {
		v := (&follower{}).views([]Pod{c.pod})[0]
		if v.ready != c.ready || v.ending != c.ending {
			t.Errorf("%s: %+v", c.what, v)
		}
	}
}

func TestWhetherAnotherPodMayCome(t *testing.T) {
	owned := func(kind string) *Pod {
		return &Pod{Meta: Meta{OwnerReferences: []OwnerReference{{Kind: kind}}}}
	}
	for _, c := range []struct {
		spec string
		pod  *Pod
		want bool
	}{
		{"deployment/a", owned("ReplicaSet"), true}, {"daemonset/a", owned("DaemonSet"), true}, {"service/a", &Pod{}, true},
		{"label/a=b", &Pod{}, true}, {"rollout/a", &Pod{}, true},
		{"pod/a", &Pod{}, false}, {"pod/a", owned("ReplicaSet"), false}, {"pod/a", owned("Job"), false}, {"pod/a", owned("StatefulSet"), true},
		{"job/a", owned("Job"), false}, {"cronjob/a", owned("Job"), false},
	} {
		s, err := ParseTarget(c.spec)
		if err != nil {
			t.Fatal(err)
		}
		if got := comesAgain(s, c.pod); got != c.want {
			t.Errorf("%s, owned by %v: %v", c.spec, c.pod.Meta.OwnerReferences, got)
		}
	}
	at := func(phase, policy, id string, deleted bool) Pod {
		p := Pod{Spec: PodSpec{RestartPolicy: policy, Containers: []Container{{Name: "app"}}}, Status: PodStatus{Phase: phase, ContainerStatuses: []ContainerStatus{{Name: "app", ContainerID: "containerd://" + id}}}}
		if deleted {
			now := time.Now()
			p.Meta.DeletionTimestamp = &now
		}
		return p
	}
	r := &follower{dead: map[string]bool{"dead": true}}
	for _, c := range []struct {
		what string
		pods []Pod
		want bool
	}{
		{"no pod", nil, false},
		{"one that runs", []Pod{at("Running", "Always", "1", false)}, true},
		{"one whose container has ended and is started anew", []Pod{at("Running", "Always", "dead", false)}, true},
		{"one whose container has ended for good", []Pod{at("Running", "Never", "dead", false)}, false},
		{"one that is deleted", []Pod{at("Running", "Always", "1", true)}, false},
		{"one that has ended", []Pod{at("Succeeded", "OnFailure", "1", false)}, false},
		{"one that has ended and one that is about to be", []Pod{at("Failed", "Never", "dead", false), at("Pending", "Never", "", false)}, true},
	} {
		if got := r.hopeful(c.pods); got != c.want {
			t.Errorf("%s: %v", c.what, got)
		}
	}
}

// TestTheSurveyHoldsWhatIsThereAlsoAfterAWatchThatBroke: what was deleted while nobody watched is gone.
func TestTheSurveyHoldsWhatIsThereAlsoAfterAWatchThatBroke(t *testing.T) {
	object := func(name string) Pod { return Pod{Meta: Meta{Name: name, UID: "uid-" + name}} }
	lists, watches := 0, 0
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		out := json.NewEncoder(w)
		if r.URL.Query().Get("labelSelector") != "app=x" {
			t.Errorf("asked for %s", r.URL)
		}
		if r.URL.Query().Get("watch") == "" {
			lists++
			l := List[Pod]{Items: [][]Pod{{object("b"), object("a")}, {object("c")}}[min(lists, 2)-1]}
			l.Meta.ResourceVersion = fmt.Sprint(100 * lists)
			out.Encode(l)
			return
		}
		watches++
		if v := r.URL.Query().Get("resourceVersion"); v != fmt.Sprint(100*lists) {
			t.Errorf("watch from %s", v)
		}
		if watches == 1 {
			out.Encode(watchEvent[Pod]{"ADDED", object("d")})
			out.Encode(watchEvent[Pod]{"DELETED", object("b")})
			out.Encode(watchEvent[Status]{"ERROR", Status{Message: "too old resource version"}})
			return
		}
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	}))
	defer s.Close()
	base, _ := url.Parse(s.URL)
	c := &Client{Server: s.URL, config: &rest.Config{}, http: s.Client(), base: base}
	ctx, cancel := context.WithCancel(t.Context())
	got, done := make(chan []Pod), make(chan struct{})
	go func() {
		defer close(done)
		c.survey(ctx, "shop", url.Values{"labelSelector": {"app=x"}}, got)
	}()
	for _, want := range []string{"a b", "a b d", "a d", "c"} {
		var names []string
		for _, p := range <-got {
			names = append(names, p.Meta.Name)
		}
		if s := strings.Join(names, " "); s != want {
			t.Errorf("it sees %q, want %q", s, want)
		}
	}
	cancel()
	<-done
}

func TestThatThePodsMayNotBeSeenIsToldWhenTheOneThereEnds(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusForbidden)
		json.NewEncoder(w).Encode(Status{Message: `pods is forbidden: User "ann" cannot list resource "pods" in API group "" in the namespace "shop"`})
	}))
	defer s.Close()
	base, _ := url.Parse(s.URL)
	c := &Client{Server: s.URL, config: &rest.Config{}, http: s.Client(), base: base}
	r := &follower{c: c, o: Options{}.withDefaults(), namespace: "shop", query: onePod("a"), comes: true}
	first := &endedSeat{done: make(chan struct{})}
	m := mark{namespace: "shop", pod: "a", uid: "1", container: "app", id: "x"}
	over := make(chan error)
	ready := make(chan struct{})
	go func() {
		over <- r.run(t.Context(), first, m, []Pod{{Meta: Meta{Name: "a", UID: "1"}}}, nil, func() { close(ready) })
	}()
	<-ready
	select {
	case err := <-over:
		t.Fatalf("it ends while the pod is there: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(first.done)
	if err := <-over; err == nil || !strings.Contains(err.Error(), "cannot be followed: ann may not list pods") {
		t.Errorf("it ends with %v", err)
	}
	if first.left != 1 {
		t.Errorf("left %d times", first.left)
	}
}

// endedSeat ends when the test says so.
type endedSeat struct {
	seat
	done chan struct{}
}

func (s *endedSeat) Done() <-chan struct{} { return s.done }
func (s *endedSeat) TargetGone() bool      { return true }

// Status is the API server's word on a watch that cannot go on.
type Status struct {
	Message string `json:"message"`
}
