package conformance

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stead-dev/stead/test/internal/bed"
)

// programsOfThePod is what programs/exec.py executes, made in the pod's /var/data/x.
const programsOfThePod = `set -e
mkdir -p /var/data/x; cd /var/data/x; mkdir dir
cp "$0" told; cp /bin/cat dynamic; chmod 755 told dynamic
make() { printf "$2" > $1; chmod 755 $1; }
make script '#!/bin/sh\necho "$0" "[$1]" "$2" $#; cat /proc/$$/comm; exit 3\n'
make arg '#!/bin/sh -e  \nexit 5\n'
make inner '#!/var/data/x/told  one arg \n'
make nested '#!/var/data/x/inner two\n'
make deep '#!/var/data/x/deep\n'
make text 'echo a text "$0" "$1"; exit 4\n'
make badinterp '#!/none/sh\n'
make empty ''
make blank '#!  \necho blank\n'
make zeroes '\000\000\000\000'
make relative '#!./told\n'
make env '#!/usr/bin/env sh\necho env "$0" "$1"\n'
make tab '#!\t/bin/sh\t-e\necho tab "$0"\n'
make crlf '#!/bin/sh\r\necho crlf\n'
make long "#!/bin/$(printf '%%0300d' 0)\n"
make count '#!/bin/sh\nfor a; do echo $a; done\n'
echo plain > plain; chmod 644 plain
ln -s script linked; ln -s /usr/bin/true laptoplink; ln -s nowhere dangling
`

// A program of the pod's is executed as in the mount namespace, whoever does it and how.
func TestProgramsOfThePodAreExecutedByEveryDoor(t *testing.T) {
	look := func(t *testing.T, b *bed.Bed, dir string) {
		if r := b.Native("/bin/sh", "-c", programsOfThePod, dir+"/told"); r.Code != 0 {
			t.Fatalf("make programs in the pod: %s", r.Stderr)
		}
		said := make([]string, len(doors))
		for i, door := range doors {
			laptop := filepath.Join("/var/tmp", bed.Own("stead-exec")+"-"+door)
			if err := os.MkdirAll(laptop, 0o777); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(laptop) })
			r := b.Exec([]string{"--files", door, "--no-incoming"}, "/usr/bin/env", "python3", dir+"/exec.py", laptop, dir+"/goprobe")
			if r.Code != 0 || strings.Count(r.Stdout, "\n") < 100 {
				t.Fatalf("by %s: exit code %d, stderr %s\n%s", door, r.Code, r.Stderr, r.Stdout)
			}
			said[i] = strings.ReplaceAll(r.Stdout+r.Stderr, laptop, "LAPTOP")
		}
		for i, door := range doors[1:] {
			if diff := cmp.Diff(said[0], said[i+1]); diff != "" {
				t.Errorf("- mount + %s:\n%s", door, diff)
			}
		}
	}
	t.Run("root", func(t *testing.T) { look(t, bed.Up(t, stead, "conformance-exec"), programs) })
	t.Run("an ordinary user", func(t *testing.T) {
		dir := ordinary(t)
		look(t, bed.UpAs(t, filepath.Join(dir, "stead"), "conformance-exec-user", nobody), dir)
	})
}
