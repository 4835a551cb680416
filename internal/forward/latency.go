package forward

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/stead-dev/stead/internal/podfs"
)

// Latency measures the way to the agent beside the target and back, count times one after the other,
// and prints what came out. to, where its Host is not empty, is connected to from the target each
// time as well.
func Latency(ctx context.Context, o Options, count int, to Local, out io.Writer) error {
	began := time.Now()
	r := newRun(ctx, o)
	if err := r.join(nil); err != nil {
		return err
	}
	defer r.pod.Close()
	fmt.Fprintf(out, "session with the agent beside %s: %s\n", o.Target, round(time.Since(began)))
	c := podfs.NewClient(r.pod.Files)
	defer c.Close()
	c.Stat(ctx, "/") // opens the stream
	var there []time.Duration
	for range count {
		t := time.Now()
		if _, errno := c.Stat(ctx, "/"); errno != 0 {
			return fmt.Errorf("ask the agent: %w", errno)
		}
		there = append(there, time.Since(t))
	}
	fmt.Fprintf(out, "there and back: %s\n", summary(there))
	if to.Host == "" {
		return nil
	}
	var err error
	if r.names, err = newNames(ctx, r.pod); err != nil {
		return err
	}
	t := time.Now()
	addrs, err := r.names.lookup(ctx, to.Host)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "name %s: %s %v\n", to.Host, round(time.Since(t)), addrs)
	var connect []time.Duration
	for range count {
		t := time.Now()
		st, err := r.dial(to)
		if err != nil {
			return err
		}
		connect = append(connect, time.Since(t))
		st.Close()
	}
	fmt.Fprintf(out, "connections to %s:%d from the target: %s\n", to.Host, to.Port, summary(connect))
	return nil
}

// summary is what is told of many measurements.
func summary(d []time.Duration) string {
	slices.Sort(d)
	at := func(p int) time.Duration { return round(d[(len(d)-1)*p/100]) }
	return fmt.Sprintf("median %s, 90%% within %s, 99%% within %s, fastest %s, slowest %s (%d)", at(50), at(90), at(99), at(0), at(100), len(d))
}

func round(d time.Duration) time.Duration {
	if d < time.Millisecond {
		return d.Round(100 * time.Nanosecond)
	}
	return d.Round(10 * time.Microsecond)
}
