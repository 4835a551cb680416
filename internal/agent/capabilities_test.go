package agent_test

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/stead-dev/stead/internal/kube"
)

// confinedTo is the variable that names the capabilities of the bed's agents, as setpriv does.
const confinedTo = "STEAD_TEST_CAPABILITIES"

// confine makes an agent of the bed one with the capabilities of the variable, by executing it anew.
func confine() {
	caps := os.Getenv(confinedTo)
	if caps == "" {
		return
	}
	os.Unsetenv(confinedTo)
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	setpriv, err := exec.LookPath("setpriv")
	if err == nil {
		err = syscall.Exec(setpriv, append([]string{setpriv, "--bounding-set=" + caps, self}, os.Args[1:]...), os.Environ())
	}
	panic(err)
}

// boundingSet is that of setpriv for the capabilities of a cluster's agent but without.
func boundingSet(without string) string {
	set := []string{"-all"}
	for _, c := range kube.Capabilities {
		if c.Name != without {
			set = append(set, "+"+strings.ToLower(c.Name))
		}
	}
	return strings.Join(set, ",")
}

// What an agent of a cluster may do is enough for all that it does.
func TestTheCapabilitiesOfAClustersAgentAreEnough(t *testing.T) {
	again(t, "TestStolen.*|TestASecondThief.*|TestWhatTheProgramRefuses.*|TestAMirrorHears.*|TestAMirrorGoesAlong.*|TestNothingIsLeft.*|"+
		"TestASessionLearns.*|TestConnectionsLeave.*|TestTheProgramsSourcePort.*|TestErrnos.*|TestUDPCarries.*|"+
		"TestFilesAreSeen.*|TestTheAgentEnds.*|TestTheAgentTells.*", nil, confinedTo+"="+boundingSet(""))
}

// Each of them is needed: without it the test that is named fails.
func TestNoCapabilityOfAClustersAgentCanBeLeftOut(t *testing.T) {
	fails := map[string]string{
		"SYS_ADMIN":        "TestASessionLearnsWhatThePodIs",
		"SYS_PTRACE":       "TestFilesAreSeenWithTheRightsOfTheTarget/an_ordinary_user_without",
		"NET_ADMIN":        "TestWhatTheProgramRefusesGoesToTheApp",
		"NET_RAW":          "TestAMirrorGoesAlongWithASteal",
		"DAC_READ_SEARCH":  "TestFilesAreSeenWithTheRightsOfTheTarget/root",
		"SETUID":           "TestFilesAreSeenWithTheRightsOfTheTarget/an_ordinary_user_without",
		"SETGID":           "TestFilesAreSeenWithTheRightsOfTheTarget/an_ordinary_user_with_a_group_more",
		"NET_BIND_SERVICE": "TestTheProgramsSourcePortIsTakenInThePod",
	}
	for _, c := range kube.Capabilities {
		t.Run(c.Name, func(t *testing.T) {
			var run []string
			for _, part := range strings.Split(fails[c.Name], "/") {
				run = append(run, "^"+part+"$")
			}
			x := exec.Command("/proc/self/exe", "-test.v", "-test.timeout=2m", "-test.run="+strings.Join(run, "/"))
			x.Dir, x.Env = "/", append(slices.Clone(os.Environ()), confinedTo+"="+boundingSet(c.Name))
			out, err := x.CombinedOutput()
			if err == nil || !strings.Contains(string(out), "--- FAIL: "+strings.Split(fails[c.Name], "/")[0]) {
				t.Errorf("%s, to %s: %q passes without it: %v\n%s", c.Name, c.Why, fails[c.Name], err, out)
			}
		})
	}
}
