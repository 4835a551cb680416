package kube

import (
	"errors"
	"testing"
	"time"
)

func TestOnlyAgentsThatNobodyCanBeUsingAreRemoved(t *testing.T) {
	ended := Job{Status: JobStatus{Conditions: []Condition{{Type: "Complete", Status: "True"}}}}
	deleted := Job{Meta: Meta{DeletionTimestamp: ptr(time.Now())}}
	for _, c := range []struct {
		name string
		j    Job
		u    usage
		keep bool
	}{
		{"in use", Job{}, usage{there: true, sessions: 1}, true},
		{"not in use", Job{}, usage{there: true}, false},
		{"it does not answer", Job{}, usage{there: true, err: errors.New("timeout")}, true},
		{"it has no pod yet", Job{}, usage{}, true},
		{"ended", ended, usage{}, false},
		{"ended, its pod does not know yet", ended, usage{there: true, err: errors.New("refused")}, false},
		{"being deleted", deleted, usage{}, false},
	} {
		if why := keep(&c.j, c.u); (why != "") != c.keep {
			t.Errorf("%s: kept because %q", c.name, why)
		}
	}
}
