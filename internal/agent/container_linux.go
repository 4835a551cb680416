package agent

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/fault"
)

// findWait bounds the search for a container's processes: the cluster may tell that it runs a
// moment before its first process is in its cgroup.
const findWait = 2 * time.Second

// findContainer gives the main process of the container with the runtime's id, as it is numbered
// here: of the processes in its cgroup whose parent is not among them, the oldest (a command that
// was started in the container later has no parent there either).
func findContainer(id string) (pid int, err error) {
	if len(id) < 12 || strings.ContainsAny(id, "/ \n") {
		return 0, fmt.Errorf("container %q: not an id that a container runtime gives: %w", id, unix.EINVAL)
	}
	for end := time.Now().Add(findWait); ; time.Sleep(20 * time.Millisecond) {
		pid, err := scanContainer("/proc", id)
		if err != nil || pid > 0 {
			return pid, err
		}
		if time.Now().After(end) {
			return 0, fault.With(fmt.Errorf("container %.12s has no process that can be seen from here", id),
				"does it still run? The agent needs hostPID, and a runtime whose containers are processes of the node (not gVisor, not Kata)")
		}
	}
}

func scanContainer(proc, id string) (int, error) {
	dirs, err := os.ReadDir(proc)
	if err != nil {
		return 0, err
	}
	type process struct {
		parent int
		start  uint64
	}
	found := make(map[int]process)
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil {
			continue
		}
		dir := filepath.Join(proc, d.Name())
		groups, err := os.ReadFile(dir + "/cgroup")
		if err != nil || !inContainer(groups, id) {
			continue // gone, or another's
		}
		stat, err := os.ReadFile(dir + "/stat")
		if err != nil {
			continue
		}
		parent, start, err := parseStat(stat)
		if err != nil {
			return 0, fmt.Errorf("%s/stat: %w", dir, err)
		}
		found[pid] = process{parent, start}
	}
	best := 0
	for pid, p := range found {
		if _, inside := found[p.parent]; inside {
			continue
		}
		if best == 0 || p.start < found[best].start || p.start == found[best].start && pid < best {
			best = pid
		}
	}
	return best, nil
}

// inContainer says whether a /proc/PID/cgroup shows a process of the container: one directory of a
// path is ID, RUNTIME-ID.scope or RUNTIME-ID, but not that of CRI-O's monitor beside it.
func inContainer(groups []byte, id string) bool {
	for line := range bytes.Lines(groups) {
		if !bytes.Contains(line, []byte(id)) {
			continue
		}
		_, path, _ := strings.Cut(strings.TrimSpace(string(line)), ":")
		for _, dir := range strings.FieldsFunc(path, func(r rune) bool { return r == '/' || r == ':' }) {
			dir = strings.TrimSuffix(dir, ".scope")
			if dir == id || strings.HasSuffix(dir, "-"+id) && !strings.Contains(dir, "conmon") {
				return true
			}
		}
	}
	return false
}

// parseStat reads the parent and the start time from /proc/PID/stat, whose second field may hold
// anything, parentheses and spaces too.
func parseStat(b []byte) (parent int, start uint64, err error) {
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 20 {
		return 0, 0, errors.New("too short")
	}
	if parent, err = strconv.Atoi(f[1]); err != nil {
		return 0, 0, err
	}
	start, err = strconv.ParseUint(f[19], 10, 64)
	return parent, start, err
}
