package bed

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"time"
)

// Peak runs a command to its end and returns the most bytes that it had resident, pages of mapped
// files among them. Looked up while it runs: what wait4 tells of a child counts our own memory too,
// which a child has before it executes its program.
func Peak(c *exec.Cmd) (int64, error) {
	if err := c.Start(); err != nil {
		return 0, err
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	var peak int64
	for {
		if status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.Process.Pid)); err == nil {
			if _, rest, ok := bytes.Cut(status, []byte("VmHWM:")); ok {
				if kib, err := strconv.ParseInt(string(bytes.Fields(rest)[0]), 10, 64); err == nil {
					peak = max(peak, kib<<10)
				}
			}
		}
		select {
		case err := <-ended:
			if err == nil && peak == 0 {
				err = fmt.Errorf("%s ended before anybody saw it", c.Path)
			}
			return peak, err
		case <-time.After(time.Millisecond):
		}
	}
}
