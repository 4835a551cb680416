package sip

import "testing"

func TestDarwinTellsWhichFilesAreRestricted(t *testing.T) {
	for path, want := range map[string]bool{"/usr/bin/env": true, "/bin/sh": true, t.TempDir(): false} {
		if got, err := (systemFlags{}).Restricted(path); err != nil || got != want {
			t.Errorf("%s: %v, %v", path, got, err)
		}
	}
	r, err := testPatcher(t, Options{}).Inspect("/usr/bin/env")
	if err != nil || !r.Protected || r.Kind != KindMachO {
		t.Errorf("/usr/bin/env: %+v, %v", r, err)
	}
	if _, err := (systemFlags{}).Restricted("/no/such/file"); err == nil {
		t.Error("a file that is not there has flags")
	}
}
