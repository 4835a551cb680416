//go:build e2e

package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// workers is how many requests of a stream are in flight at any moment, at most.
const workers = 4

// request is one of a stream's, and what came of it.
type request struct {
	path         string
	began, ended time.Time
	answer       string
}

// traffic is what became of the requests of a stream.
type traffic struct {
	program, app   int // answered by
	answered, lost []request
}

// containerPID finds the main process of a container on this machine, which the nodes are on.
func containerPID(t *testing.T, pod, container string) string {
	t.Helper()
	id := kubectl("get", "pod", pod, "-o", `jsonpath={.status.containerStatuses[?(@.name=="`+container+`")].containerID}`).stdout
	_, id, _ = strings.Cut(id, "://")
	groups, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil || id == "" {
		t.Fatalf("container %s of %s: id %q, %v", container, pod, id, err)
	}
	for _, g := range groups {
		if b, _ := os.ReadFile(g); bytes.Contains(b, []byte(id)) {
			return filepath.Base(filepath.Dir(g))
		}
	}
	t.Fatalf("no process of container %s of %s", container, pod)
	return ""
}

// stream keeps sending requests from the pod client to a Service until stop, by a process that needs
// neither API server nor kubelet, nor names: a kubelet that is restarted calls the pods that it probes, and
// so the one of the cluster's DNS, not ready for a moment. Each has a path of its own below path.
func stream(t *testing.T, service, path string) (stop func() traffic) {
	t.Helper()
	ip := kubectl("get", "service", service, "-o", "jsonpath={.spec.clusterIP}").stdout
	c := exec.Command("nsenter", "-t", containerPID(t, "client", "client"), "-m", "-n", "/app", "stream", "http://"+ip+"/"+path, strconv.Itoa(workers))
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr, c.Dir = &out, &errs, "/"
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	ended := false
	end := func() {
		if !ended {
			ended = true
			in.Close()
			if err := c.Wait(); err != nil {
				t.Errorf("stream of requests: %v %s", err, errs.String())
			}
		}
	}
	t.Cleanup(end)
	return func() traffic {
		t.Helper()
		end()
		var tr traffic
		for line := range strings.Lines(out.String()) {
			f := strings.SplitN(strings.TrimSpace(line), " ", 4)
			if len(f) != 4 {
				t.Fatalf("stream of requests: %q", line)
			}
			tr.add(request{f[2], micros(t, f[0]), micros(t, f[1]), f[3]})
		}
		return tr
	}
}

func micros(t *testing.T, s string) time.Time {
	t.Helper()
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return time.UnixMicro(n)
}

// add counts one request by its answer, which must be that to this request.
func (tr *traffic) add(r request) {
	own := strings.Contains(r.answer+" ", " GET "+r.path+" ")
	switch {
	case own && strings.Contains(r.answer, "program: "):
		tr.program++
	case own && strings.HasPrefix(r.answer, "pod "):
		tr.app++
	default:
		tr.lost = append(tr.lost, r)
		return
	}
	tr.answered = append(tr.answered, r)
}

// event is something that may cost the requests that are in flight meanwhile, and no others.
type event struct{ from, to time.Time }

// inFlight fails the test for every lost request that was not in flight at one of the events.
func (tr traffic) inFlight(t *testing.T, events ...event) {
	t.Helper()
	for _, r := range tr.lost {
		if !slices.ContainsFunc(events, func(e event) bool { return r.began.Before(e.to) && r.ended.After(e.from) }) {
			t.Errorf("lost, and not in flight at an event: %s began %v after the first, took %v: %s", r.path, r.began.Sub(events[0].to), r.ended.Sub(r.began), r.answer)
		}
	}
	tr.atMost(t, workers*len(events))
}

// atMost fails the test where more requests were lost than are given.
func (tr traffic) atMost(t *testing.T, lost int) {
	t.Helper()
	t.Logf("%d requests were answered by the program, %d by the app, %d were lost", tr.program, tr.app, len(tr.lost))
	if len(tr.lost) > lost {
		t.Errorf("%d requests were lost: %v", len(tr.lost), tr.lost)
	}
	tr.many(t)
}

// copied fails the test unless every request was copied, once: those answered before an event, and all from
// the first one on that begun after it and was copied. Between the two the session is away.
func (tr traffic) copied(t *testing.T, copies func() []string, from, to time.Time) {
	t.Helper()
	var wrong []string
	for end := time.Now().Add(soon); ; time.Sleep(100 * time.Millisecond) {
		times := make(map[string]int)
		for _, l := range copies() {
			if f := strings.Fields(l); len(f) >= 4 && f[0] == "served" {
				times[f[2]]++
			}
		}
		var back time.Time
		for _, r := range tr.answered {
			if r.began.After(to) && times[r.path] > 0 && (back.IsZero() || r.began.Before(back)) {
				back = r.began
			}
		}
		wrong = nil
		for _, r := range tr.answered {
			must := r.ended.Before(from) || !back.IsZero() && r.began.After(back)
			if n := times[r.path]; n > 1 || n == 0 && must {
				wrong = append(wrong, fmt.Sprintf("%s, which began %v after the event, %d times", r.path, r.began.Sub(to), n))
			}
		}
		if len(wrong) == 0 && !back.IsZero() {
			t.Logf("copies came again %v after the event", back.Sub(to).Round(time.Millisecond))
			return
		}
		if time.Now().After(end) {
			t.Errorf("copied (the first after the event began %v after it): %v", back.Sub(to), wrong)
			return
		}
	}
}

// many fails the test where so few requests were answered that nothing is shown.
func (tr traffic) many(t *testing.T) {
	t.Helper()
	if tr.program+tr.app < 10*workers {
		t.Errorf("only %d requests were answered", tr.program+tr.app)
	}
}
