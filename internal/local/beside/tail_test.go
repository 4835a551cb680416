//go:build linux

package beside

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stead-dev/stead/internal/fault"
)

func TestWhatAChildSaidLastIsItsError(t *testing.T) {
	long := strings.Repeat("stead-agent: something of no interest\n", 1000)
	for _, x := range []struct{ name, said, err, hint string }{
		{"nothing", "", "", ""},
		{"no error", "hello\n", "", ""},
		{"an error", "error: open /x: no such file\n", "open /x: no such file", ""},
		{"an error and a hint", "error: no\nhint: ls -l\n", "no", "ls -l"},
		{"the last of two", "error: one\nhint: first\nerror: two\nhint: second\n", "two", "second"},
		{"after much else", long + "error: no\nhint: ls\n", "no", "ls"},
		{"without an end of line", "error: no\nhint: ls", "no", "ls"},
	} {
		var whole, pieces tail
		fmt.Fprint(&whole, x.said)
		for i := range x.said {
			fmt.Fprint(&pieces, x.said[i:i+1])
		}
		for _, c := range []*tail{&whole, &pieces} {
			err := c.first()
			if x.err == "" {
				if err != nil {
					t.Errorf("%s: %v", x.name, err)
				}
				continue
			}
			if err == nil || err.Error() != x.err || fault.Hint(err) != x.hint {
				t.Errorf("%s: %v, hint %q", x.name, err, fault.Hint(err))
			}
			if len(c.b) > tailSize {
				t.Errorf("%s: %d bytes are kept", x.name, len(c.b))
			}
		}
	}
}
