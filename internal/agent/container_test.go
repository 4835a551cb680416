package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestAContainerIsKnownByItsCgroup(t *testing.T) {
	id := strings.Repeat("0123456789abcdef", 4)
	for _, c := range []struct {
		name, groups string
		want         bool
	}{
		{"v2, systemd", "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-" + id + ".scope\n", true},
		{"v2, from another cgroup namespace", "0::/../cri-containerd-" + id + ".scope\n", true},
		{"v2, a cgroup that the container made", "0::/kubepods/pod1/" + id + "/init.scope\n", true},
		{"v1, cgroupfs", "12:cpuset:/kubepods/besteffort/pod1/" + id + "\n1:name=systemd:/kubepods/besteffort/pod1/" + id + "\n", true},
		{"v1, containerd's systemd form", "3:pids:/system.slice/containerd.service/kubepods-pod1.slice:cri-containerd:" + id + "\n", true},
		{"CRI-O", "0::/kubepods.slice/kubepods-pod1.slice/crio-" + id + ".scope\n", true},
		{"CRI-O's monitor", "0::/kubepods.slice/kubepods-pod1.slice/crio-conmon-" + id + ".scope\n", false},
		{"another", "0::/kubepods/pod1/" + strings.Repeat("f", 64) + "\n", false},
		{"longer", "0::/kubepods/pod1/" + id + "0\n", false},
		{"none", "0::/\n", false},
	} {
		if got := inContainer([]byte(c.groups), id); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func TestTheMainProcessIsTheOldestWithoutAParentInTheContainer(t *testing.T) {
	id := strings.Repeat("ab", 32)
	proc := t.TempDir()
	for pid, p := range map[string]struct{ stat, group string }{
		"10": {"10 (containerd-shim) S 1 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 5 0", "/"},
		"40": {"40 (child) of (it) S 30 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 7 0", "/" + id},
		"30": {"30 (a b) R) S 10 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 6 0", "/" + id},
		"20": {"20 (kubectl exec) S 10 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 9 0", "/" + id},
	} {
		dir := filepath.Join(proc, pid)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]string{"stat": p.stat, "cgroup": "0::" + p.group + "\n"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	if pid, err := scanContainer(proc, id); pid != 30 || err != nil {
		t.Errorf("found %d, %v", pid, err)
	}
	if pid, err := scanContainer(proc, strings.Repeat("cd", 32)); pid != 0 || err != nil {
		t.Errorf("found %d, %v for a container that is not there", pid, err)
	}
}

func TestANonsenseContainerIDIsRefused(t *testing.T) {
	for _, id := range []string{"", "abc", "../../../etc/passwd", "0123456789ab/.."} {
		if pid, err := findContainer(id); err == nil {
			t.Errorf("%q: process %d", id, pid)
		}
	}
}
