package forward

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/stead-dev/stead/internal/tell"
)

func TestForwardsAreRead(t *testing.T) {
	at := netip.MustParseAddrPort
	for s, want := range map[string]Local{
		"5432:db:5432":                  {at("127.0.0.1:5432"), "db", 5432},
		"0:db:1":                        {at("127.0.0.1:0"), "db", 1},
		"[::1]:8080:orders.shop:80":     {at("[::1]:8080"), "orders.shop", 80},
		"0.0.0.0:8080:[fd00:244::11]:1": {at("0.0.0.0:8080"), "fd00:244::11", 1},
	} {
		if got, err := ParseLocal(s); got != want || err != nil {
			t.Errorf("-L %s: %+v, %v", s, got, err)
		}
	}
	for s, want := range map[string]Remote{
		"8080:3000":       {8080, "127.0.0.1:3000"},
		"8080:[::1]:3000": {8080, "[::1]:3000"},
		"8080:here:3000":  {8080, "here:3000"},
	} {
		if got, err := ParseRemote(s); got != want || err != nil {
			t.Errorf("-R %s: %+v, %v", s, got, err)
		}
	}
}

func TestWhatIsNoForwardIsRefusedWithTheReason(t *testing.T) {
	for s, why := range map[string]string{
		"": "want", "1": "want", "1:2": "want", "1:2:3:4:5": "want",
		"x:db:1": `"x" is no port`, "1:db:0": `"0" is no port`, "1:db:65536": `"65536" is no port`,
		"here:1:db:2": `"here" is no address`, "1::2": "no host", "[::1:1:db:2": "want", "]:1:db:2": "want",
	} {
		if _, err := ParseLocal(s); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("-L %s: %v, want %q", s, err, why)
		}
	}
	for s, why := range map[string]string{
		"": "want", "1": "want", "1:2:3:4": "want", "x:1": `"x" is no port`, "0:1": `"0" is no port`, "1:h:0": `"0" is no port`, "1::2": "no host",
	} {
		if _, err := ParseRemote(s); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("-R %s: %v, want %q", s, err, why)
		}
	}
}

// A port that somebody else has is asked for every two seconds.
func TestATroubleThatStaysIsToldOnce(t *testing.T) {
	var log strings.Builder
	says := tell.New(&log)
	r := newRun(t.Context(), Options{Says: says})
	for range 3 {
		r.trouble(errors.New("bob is stealing it already"))
		r.trouble(errors.New("eve is stealing it already"))
	}
	says.Close()
	if want := "stead: bob is stealing it already\nstead: eve is stealing it already\n"; log.String() != want {
		t.Errorf("told %q", log.String())
	}
}

func FuzzForwards(f *testing.F) {
	for _, s := range []string{"5432:db:5432", "[::1]:8080:orders.shop:80", "8080:[::1]:3000", "[1:2:3", "]]::"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if l, err := ParseLocal(s); err == nil && (!l.Listen.IsValid() || l.Host == "" || l.Port == 0) {
			t.Errorf("-L %q: %+v", s, l)
		}
		if r, err := ParseRemote(s); err == nil && (r.To == "" || r.Port == 0) {
			t.Errorf("-R %q: %+v", s, r)
		}
	})
}

// FuzzNames reads whatever text as the target's hosts file and resolv.conf, and makes names with it.
func FuzzNames(f *testing.F) {
	f.Add("10.0.0.1 db db.shop # a comment\n::1 localhost\n", "db")
	f.Add("search shop.svc svc.\noptions ndots:5 rotate\ndomain local\n", "db.shop")
	f.Fuzz(func(t *testing.T, text, host string) {
		n := &names{ndots: 1}
		n.readHosts(text)
		n.readResolv(text)
		for _, c := range n.candidates(host) {
			if !strings.HasPrefix(c, host) || !strings.HasSuffix(c, ".") {
				t.Errorf("%q is tried for %q", c, host)
			}
		}
	})
}
