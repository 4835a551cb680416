package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const manyConnections = 1000

// hold keeps connections until it may end: none, or many of which each has carried a message.
func hold(host string, many bool) error {
	if many {
		b := make([]byte, message)
		for range manyConnections {
			c, err := dial(host, echoPort)
			if err != nil {
				return err
			}
			defer c.Close()
			if _, err := c.Write(b); err != nil {
				return err
			}
			if _, err := io.ReadFull(c, b); err != nil {
				return err
			}
		}
	}
	fmt.Println("holding")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// memory prints what the agent takes, idle and with many connections. Its process is one of this
// machine's, as the cluster is.
func memory(stead, self, target, ip string) error {
	const id = "jsonpath={.status.containerStatuses[0].containerID}"
	container, err := run("kubectl", "get", target, "-o", id)
	if err != nil {
		return err
	}
	_, container, _ = strings.Cut(container, "://")
	for _, row := range []struct{ what, client string }{
		{"with one idle session", "idle"},
		{fmt.Sprintf("with %d connections", manyConnections), "many"},
	} {
		c := exec.Command(stead, "exec", "-q", "--no-incoming", "--files", "none", "--target", target, "--", self, "client", row.client, ip)
		in, err := c.StdinPipe()
		if err != nil {
			return err
		}
		out, err := c.StdoutPipe()
		if err != nil {
			return err
		}
		if err := c.Start(); err != nil {
			return err
		}
		if !bufio.NewScanner(out).Scan() {
			return errors.Join(errors.New("nothing to hold"), c.Wait())
		}
		time.Sleep(time.Second)
		rss, err := agentMemory(container)
		in.Close()
		if err := errors.Join(err, c.Wait()); err != nil {
			return err
		}
		fmt.Printf("| the agent's memory %s, MB | | %.1f | |\n", row.what, float64(rss)/1e3)
	}
	return nil
}

// agentMemory is the RSS of the agent beside a container, in KB.
func agentMemory(container string) (kb int, err error) {
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return 0, err
	}
	for _, f := range lines {
		b, err := os.ReadFile(f)
		if err != nil || !strings.Contains(string(b), "stead-agent\x00--container-id\x00"+container) {
			continue
		}
		status, err := os.ReadFile(filepath.Join(filepath.Dir(f), "status"))
		if err != nil {
			continue // it has ended
		}
		for line := range strings.Lines(string(status)) {
			if f := strings.Fields(line); len(f) > 1 && f[0] == "VmRSS:" {
				if n, err := strconv.Atoi(f[1]); err == nil {
					kb = n // the newest, where another is about to end
				}
			}
		}
	}
	if kb == 0 {
		return 0, errors.New("no agent beside container " + container)
	}
	return kb, nil
}
