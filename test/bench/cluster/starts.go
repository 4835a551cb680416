package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// starts measures from the command to the program's first instruction and to its end, without an agent
// and with one that is there, for both forms of the agent.
func starts(stead, self, target string) error {
	for _, form := range []struct{ what, agent string }{{"a Job", "job"}, {"an ephemeral container", "ephemeral"}} {
		var cold, warm struct{ first, end []float64 }
		for i := range rounds {
			if err := gone(target); err != nil {
				return err
			}
			time.Sleep(time.Duration(i) * time.Second / rounds) // the kubelet looks once a second
			for n := range 4 {
				into := &cold
				if n > 0 {
					into = &warm
				}
				began := time.Now()
				out, err := run(stead, "exec", "-q", "--agent", form.agent, "--target", target, "--", self, "client", "now", "")
				if err != nil {
					return err
				}
				into.end = append(into.end, float64(time.Since(began).Microseconds())/1e3)
				first, err := strconv.ParseInt(out, 10, 64)
				if err != nil {
					return err
				}
				into.first = append(into.first, float64(first-began.UnixMicro())/1e3)
			}
		}
		fmt.Printf("| start, agent as %s, none there: to the first instruction, ms | | %s | |\n| to the end of the program | | %s | |\n", form.what, show(cold.first), show(cold.end))
		fmt.Printf("| start, agent as %s, one there: to the first instruction, ms | | %s | |\n| to the end of the program | | %s | |\n", form.what, show(warm.first), show(warm.end))
	}
	return nil
}

// gone waits until nothing is left of earlier agents, of either form. That an ephemeral container does not
// run is not enough: the kubelet tells of one that begins up to a second late, and of each it tells its end.
func gone(target string) error {
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		jobs, err := run("kubectl", "get", "jobs,pods", "-l", "app.kubernetes.io/managed-by=stead", "-o", "name")
		made, merr := run("kubectl", "get", target, "-o", "jsonpath={.spec.ephemeralContainers[*].name}")
		ended, eerr := run("kubectl", "get", target, "-o", "jsonpath={.status.ephemeralContainerStatuses[?(@.state.terminated)].name}")
		all := errors.Join(err, merr, eerr)
		if all == nil && jobs == "" && len(strings.Fields(made)) == len(strings.Fields(ended)) {
			return nil
		}
		if time.Now().After(end) {
			return errors.Join(fmt.Errorf("left of an agent: %s %q, ended are %q", jobs, made, ended), all)
		}
	}
}
