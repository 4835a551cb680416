package launch

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCopiesGoToMemoryWhereThereIsRoomElseToADisk(t *testing.T) {
	const little, much = enough / 4, enough * 4
	for _, c := range []struct {
		name string
		all  []base
		want []string
	}{
		{"a plain machine", []base{{"/dev/shm", true, true, much}, {"/run/user/1", true, true, much}, {"/tmp", false, true, much}}, []string{"/dev/shm", "/run/user/1", "/tmp"}},
		{"a container's small /dev/shm, not executable", []base{{"/dev/shm", true, false, little}, {"/tmp", false, true, much}}, []string{"/tmp", "/dev/shm"}},
		{"executable memory goes first", []base{{"/dev/shm", true, false, much}, {"/tmp", true, true, much}}, []string{"/tmp", "/dev/shm"}},
		{"no room anywhere", []base{{"/dev/shm", true, true, little}, {"/tmp", false, true, little}}, []string{"/dev/shm", "/tmp"}},
		{"nowhere", nil, nil},
	} {
		if diff := cmp.Diff(c.want, choosePlaces(c.all)); diff != "" {
			t.Errorf("%s: -want +got:\n%s", c.name, diff)
		}
	}
}
