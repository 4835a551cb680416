package leak

import (
	"os"
	"strings"
	"testing"
)

func TestAGoroutineAndADescriptorThatAreLeftAreSeen(t *testing.T) {
	before, all := fds(), len(goroutines())
	end := make(chan struct{})
	go func() { <-end }()
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(goroutines()); n != all+1 {
		t.Errorf("%d goroutines, want %d", n, all+1)
	}
	if got := opened(before, nil); len(before) > 0 && (len(got) != 1 || !strings.HasSuffix(got[0], os.DevNull)) {
		t.Errorf("descriptors: %q", got)
	}
	f.Close()
	close(end)
	if got := opened(before, nil); len(got) != 0 {
		t.Errorf("after the end: %q", got)
	}
}
