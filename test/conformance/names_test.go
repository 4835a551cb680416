package conformance

import (
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stead-dev/stead/test/internal/bed"
)

// On a laptop whose own name services would all answer wrongly, none of them is asked, by whichever door:
// nscd, systemd-resolved, D-Bus, Avahi, a resolver on the loopback.
func TestNamesAreThePodsAndNoServiceOfTheLaptopsIsAsked(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Fatal("this test makes a laptop of namespaces: run it as root")
	}
	laptop := begin(t, exec.Command("unshare", "--net", "--mount", "--kill-child", "--fork", programs+"/names"))
	if l := laptop.line(); l != "up" {
		laptop.end()
		t.Fatalf("the laptop says %q %s", l, laptop.errs.String())
	}
	var mu sync.Mutex
	var asked []string
	go func() { // ends with the laptop
		for laptop.out.Scan() {
			mu.Lock()
			asked = append(asked, laptop.out.Text())
			mu.Unlock()
		}
	}()
	since := func() []string {
		mu.Lock()
		defer mu.Unlock()
		a := asked
		asked = nil
		return a
	}
	inside := []string{"nsenter", "-t", child(t, laptop.cmd.Process.Pid), "-n", "-m", "env", "-C", bed.Root()}
	b := bed.UpOn(t, stead, "conformance-names", inside...)

	// The laptop without stead: its services are asked, and answer wrongly.
	out, err := exec.Command(inside[0], append(inside[1:], "python3", programs+"/names.py", "doors")...).CombinedOutput()
	if err != nil || strings.Count(string(out), "192.0.2.66") < 4 {
		t.Fatalf("the laptop's services do not answer: %v\n%s", err, out)
	}
	said := strings.Join(since(), "\n")
	for _, s := range []string{"nscd", "resolved", "D-Bus", "Avahi"} {
		if !strings.Contains(said, "asked "+s) {
			t.Fatalf("without stead %s was not asked, only:\n%s", s, said)
		}
	}

	native := b.Native("python3", programs+"/names.py", "doors")
	full := []string{}
	for _, n := range []string{"db", "dozens", "hundreds", "no-such-name"} {
		full = append(full, n+".shop.svc.cluster.local")
	}
	for _, door := range append(doors, "none") {
		t.Run("by "+door, func(t *testing.T) {
			flags := []string{"--no-incoming", "--files", door}
			want, got := native, b.Exec(flags, "python3", programs+"/names.py", "doors")
			if door == "none" { // nsswitch.conf and the search list are the laptop's
				want.Stdout, got.Stdout = less.ReplaceAllString(want.Stdout, ""), less.ReplaceAllString(got.Stdout, "")
			}
			if diff := cmp.Diff(want, got); diff != "" || !strings.Contains(got.Stdout, "10.244.0.12") {
				t.Errorf("- pod + stead:\n%s", diff)
			}
			asNatively(t, b, b.Native("python3", programs+"/names.py", "dns", "10.96.0.10"), flags[1:], "python3", programs+"/names.py", "dns", "10.96.0.10")
			// A resolver that was set up for the laptop gets the pod's answers.
			pods := b.Native("python3", programs+"/names.py", "dns", "10.96.0.10").Stdout
			for _, server := range []string{"127.0.0.53", "127.0.0.1", "::1"} {
				if diff := cmp.Diff(pods, b.Exec(flags, "python3", programs+"/names.py", "dns", server).Stdout); diff != "" {
					t.Errorf("at %s: - pod + stead:\n%s", server, diff)
				}
			}
			for _, p := range [][]string{{programs + "/goprobe", "names"}, {"env", "GODEBUG=netdns=cgo", programs + "/cgoprobe", "names"}, {"node", "-e", nodeNames}} {
				asNatively(t, b, b.Native(append(p, full...)...), flags[1:], append(p, full...)...)
			}
			if a := since(); len(a) > 0 {
				t.Errorf("services of the laptop's were asked: %q", a)
			}
		})
	}
}

// less are the lines of names.py about what --files none leaves to the laptop.
var less = regexp.MustCompile(`(?m)^(hosts:|getaddrinfo db |getent db ).*\n`)

// nodeNames asks the C library and c-ares.
const nodeNames = `const dns = require('dns').promises
;(async () => {
  for (const n of process.argv.slice(1)) {
    console.log(n, await dns.lookup(n, {all: true}).then(a => [a.length, a[0]], e => e.code))
    console.log(n, await dns.resolve4(n).then(a => [a.length, a.sort()[0]], e => e.code))
  }
})()`

// Go has two resolvers: its own, and the C library by cgo, which it takes where GODEBUG or the machine's
// files want it. GODEBUG tells which of them was asked.
func TestBothResolversOfGoFindThePodsNames(t *testing.T) {
	t.Parallel()
	b := bed.Up(t, stead, "conformance-resolvers")
	for _, c := range []struct{ program, godebug, says string }{
		{"goprobe", "netdns=2", "hostLookupOrder(db) = files,dns"},
		{"cgoprobe", "netdns=2", "hostLookupOrder(db) = files,dns"}, // plain files need no C library
		{"cgoprobe", "netdns=cgo+2", "hostLookupOrder(db) = cgo"},
	} {
		t.Run(c.program+" "+c.godebug, func(t *testing.T) {
			argv := []string{"env", "GODEBUG=" + c.godebug, programs + "/" + c.program, "names", "db", "db.shop.svc.cluster.local", "dozens", "hundreds"}
			native := b.Native(argv...)
			if !strings.Contains(native.Stderr, c.says) {
				t.Fatalf("natively another was asked: %s", native.Stderr)
			}
			for _, door := range doors {
				asNatively(t, b, native, []string{"--files", door}, argv...)
			}
		})
	}
}

// child is the process below unshare(1).
func child(t *testing.T, pid int) string {
	t.Helper()
	out, err := exec.Command("pgrep", "-P", strconv.Itoa(pid)).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}
