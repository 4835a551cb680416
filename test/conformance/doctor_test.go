package conformance

import (
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

// A listener that is there already is found, whoever's it is: here that of another stead.
func TestDoctorFindsThatAnotherSupervisorListens(t *testing.T) {
	target := exec.Command("sleep", "100")
	if err := target.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { target.Process.Kill(); target.Wait() })
	doctor := []string{stead, "doctor", "--target", "process/1"}
	b, err := exec.Command(doctor[0], doctor[1:]...).CombinedOutput()
	if err != nil || !strings.Contains(string(b), "ok    seccomp user notification: there, and nobody else listens\n") {
		t.Fatalf("outside: %v\n%s", err, b)
	}
	c := exec.Command(stead, append([]string{"exec", "-q", "--no-incoming", "--target", "process/" + strconv.Itoa(target.Process.Pid), "--"}, doctor...)...)
	b, err = c.CombinedOutput()
	if c.ProcessState.ExitCode() != 1 || !strings.Contains(string(b), "FAIL  seccomp user notification: another supervisor listens to this process tree already (device or resource busy)\n      hint: grep Seccomp /proc/self/status") {
		t.Errorf("inside: %v\n%s", err, b)
	}
}
