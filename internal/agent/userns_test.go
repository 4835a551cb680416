package agent_test

import (
	"bufio"
	"context"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/stead-dev/stead/internal/fault"
	"github.com/stead-dev/stead/internal/local/beside"
	"github.com/stead-dev/stead/internal/session/pod"
	"github.com/stead-dev/stead/internal/wire"
)

const ordinary = 65534 // uid and gid of nobody

// again runs tests of this binary as another user; all that they say is logged.
func again(t *testing.T, run string, attr *syscall.SysProcAttr, env ...string) {
	t.Helper()
	c := exec.Command("/proc/self/exe", "-test.v", "-test.timeout=2m", "-test.run=^("+run+")$")
	c.SysProcAttr = attr
	c.Dir = "/"
	c.Env = append(os.Environ(), env...)
	out, err := c.CombinedOutput()
	t.Logf("%s", out)
	if err != nil || !strings.Contains(string(out), "--- PASS") {
		t.Errorf("%s: %v", run, err)
	}
}

// In a user namespace the kernel allows no BPF: stealing falls back to nftables by itself.
func TestEverythingWorksInARootlessUserNamespaceToo(t *testing.T) {
	one := []syscall.SysProcIDMap{{ContainerID: 0, HostID: ordinary, Size: 1}}
	again(t, "TestStolen.*|TestWhatTheProgramRefuses.*|TestNoConnectionIsLost.*|TestNothingIsLeft.*|TestAMirrorHears.*|"+
		"TestConnectionsLeave.*|TestErrnos.*|TestTheAgentEnds.*|TestAClientThatCalls.*", &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: one, GidMappings: one,
		Credential: &syscall.Credential{Uid: 0, Gid: 0, NoSetGroups: true},
	}, "STEAD_TEST_ENGINES=auto")
}

func TestAnOrdinaryUserReachesAPodOfTheirOwn(t *testing.T) {
	again(t, "TestBesideARootlessPod", &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: ordinary, Gid: ordinary},
	}, "STEAD_TEST_ORDINARY=1")
}

// A target in a user namespace that this user has made: the agent joins it. As root it is one like
// any other.
func TestBesideARootlessPod(t *testing.T) {
	id := os.Getuid()
	for _, inside := range []int{0, 1000} { // with a root of its own, and without
		one := func(id int) []syscall.SysProcIDMap {
			return []syscall.SysProcIDMap{{ContainerID: inside, HostID: id, Size: 1}}
		}
		app := child(t, "app", syscall.CLONE_NEWUSER|syscall.CLONE_NEWNET|syscall.CLONE_NEWUTS,
			&syscall.SysProcAttr{UidMappings: one(id), GidMappings: one(os.Getgid()), AmbientCaps: []uintptr{12}}) // CAP_NET_ADMIN, for its loopback
		for range 5 {
			a, err := beside.Start(app.Process.Pid)
			if err != nil {
				t.Fatal(err)
			}
			c, err := attach(a, "nobody@laptop", pod.Handlers{Incoming: takes("program", nil)})
			if err != nil {
				a.Close()
				t.Fatal(err)
			}
			if env := strings.Join(c.Target().Env, " "); !strings.Contains(env, "POD_NAME=orders-0") {
				t.Errorf("environment %q", env)
			}
			to := netip.MustParseAddrPort("127.0.0.1:8080")
			ask := func(want string) {
				t.Helper()
				s, r, err := c.Dial(context.Background(), wire.Dial{Network: "tcp", To: to})
				if err != nil || s == nil {
					t.Fatalf("%+v, %v", r, err)
				}
				defer s.Close()
				if got, err := say(s, bufio.NewReader(s), "x"); got != want {
					t.Errorf("%q, %v; want %q", got, err, want)
				}
			}
			ask("app: x")
			subscribe(t, c, wire.Mirror)
			subscribe(t, c, wire.Steal)
			ask("program: x")
			c.Close()
			a.Close()
			if err := a.Err(); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestSomebodyElsesProcessIsRefusedWithAHint(t *testing.T) {
	if os.Getenv("STEAD_TEST_ORDINARY") != "" {
		a, err := beside.Start(os.Getppid())
		if err == nil {
			_, err = attach(a, "nobody@laptop", pod.Handlers{})
			a.Close()
		}
		if err == nil || strings.Contains(err.Error(), "\n") || !strings.HasPrefix(fault.Hint(err), "sudo stead exec") {
			t.Errorf("%v (hint %q)", err, fault.Hint(err))
		}
		return
	}
	again(t, "TestSomebodyElsesProcessIsRefusedWithAHint", &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: ordinary, Gid: ordinary},
	}, "STEAD_TEST_ORDINARY=1")
}
