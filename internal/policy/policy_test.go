package policy

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestADestinationIsThePodsUnlessARuleOrAListenerOfTheProgramSaysLaptop(t *testing.T) {
	n := &Network{
		Laptop:      []AddressRule{{netip.MustParsePrefix("192.168.0.0/16"), 0}, {netip.MustParsePrefix("127.0.0.1/32"), 5432}},
		Nameservers: []netip.Addr{netip.MustParseAddr("10.96.0.10")},
	}
	own := func(p uint16) bool { return p == 8080 }
	for _, c := range []struct {
		to    string
		where Where
		at    string
	}{
		{"10.0.0.1:80", Pod, "10.0.0.1:80"},
		{"[::ffff:10.0.0.1]:80", Pod, "10.0.0.1:80"},
		{"[2001:db8::1]:80", Pod, "[2001:db8::1]:80"},
		{"192.168.3.4:80", Laptop, ""},
		{"[::ffff:192.168.3.4]:80", Laptop, ""},
		{"127.0.0.1:5432", Laptop, ""},
		{"127.0.0.1:5433", Pod, "127.0.0.1:5433"},
		{"127.0.0.1:8080", Laptop, ""},
		{"[::1]:8080", Laptop, ""},
		{"[::1]:9000", Pod, "[::1]:9000"},
		{"0.0.0.0:8080", Laptop, ""},
		{"127.0.0.53:53", Pod, "10.96.0.10:53"},
		{"[::1]:53", Pod, "10.96.0.10:53"},
		{"8.8.8.8:53", Pod, "8.8.8.8:53"},
		{"224.0.0.251:5353", Laptop, ""},
		{"255.255.255.255:67", Laptop, ""},
	} {
		d := n.Destination(netip.MustParseAddrPort(c.to), own)
		if d.Where != c.where || c.at != "" && d.To.String() != c.at || d.Why == "" {
			t.Errorf("%s: %v at %v (%s), want %v at %s", c.to, d.Where, d.To, d.Why, c.where, c.at)
		}
	}
	n.Nameservers = []netip.Addr{netip.MustParseAddr("127.0.0.11")}
	if d := n.Destination(netip.MustParseAddrPort("127.0.0.11:53"), own); d.To.String() != "127.0.0.11:53" {
		t.Errorf("a pod whose nameserver is on its own loopback: asked at %v", d.To)
	}
}

func TestEnvironmentOfThePodOverTheLaptops(t *testing.T) {
	got := Environment(
		[]string{"PATH=/laptop", "HOME=/home/me", "GREETING=laptop", "EDITOR=vi"},
		[]string{"PATH=/pod", "HOME=/pod", "GREETING=pod", "POD_NAME=x", "POD_NAME=again", "GOPATH=/go", "LD_PRELOAD=x", "broken", "=odd", "NPM_CONFIG_X=1"},
		nil,
	)
	want := []string{"PATH=/laptop", "HOME=/home/me", "GREETING=pod", "EDITOR=vi", "POD_NAME=x"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// Each name of the list, and what stands for a trailing *: none comes from the pod, and the laptop's own
// stays.
func TestWhatBelongsToTheLaptopIsNeverImported(t *testing.T) {
	var pod, laptop []string
	for _, p := range neverImport {
		key := strings.ReplaceAll(p, "*", "X")
		pod, laptop = append(pod, key+"=pod"), append(laptop, key+"=laptop")
		if Imported(key) {
			t.Errorf("%s is imported", key)
		}
	}
	if got := Environment(nil, append(pod, "APP=pod"), nil); !slices.Equal(got, []string{"APP=pod"}) {
		t.Errorf("from the pod come %q", got)
	}
	if diff := cmp.Diff(laptop, Environment(laptop, pod, nil)); diff != "" {
		t.Error(diff)
	}
	// By name, should the list lose a row.
	for _, key := range strings.Fields("PATH HOME PWD OLDPWD PYTHONPATH PYTHONHOME GOPATH GOROOT GOFLAGS JAVA_HOME CLASSPATH JAVA_TOOL_OPTIONS NODE_PATH NODE_OPTIONS " +
		"LD_PRELOAD LD_LIBRARY_PATH USER LOGNAME SHELL SHLVL TERM TMPDIR SSH_AUTH_SOCK XDG_RUNTIME_DIR BASH_ENV ENV _ GEM_HOME PERL5LIB RUBYLIB CARGO_HOME DOTNET_ROOT " +
		"VIRTUAL_ENV CONDA_PREFIX MAVEN_OPTS GRADLE_HOME NVM_DIR npm_config_prefix STEAD_PLAYGROUND GODEBUG GOMAXPROCS") {
		if Imported(key) {
			t.Errorf("%s is imported", key)
		}
	}
	for _, key := range strings.Fields("DATABASE_URL GREETING POD_NAME PATHS MY_PATH HOMEPAGE PWD_FILE JAVA_OPTS KUBERNETES_SERVICE_HOST HOSTNAME LANG TZ PORT") {
		if !Imported(key) {
			t.Errorf("%s is not imported", key)
		}
	}
}

func TestTheLaptopsCertificatesAreNamedWhereTheyAreSeen(t *testing.T) {
	paths := NewPaths(PathInput{Home: "/home/me", WorkDir: "/home/me", Glob: func(string) []string { return nil }})
	laptop := []string{"SSL_CERT_FILE=/etc/ssl/corporate.pem", "NODE_EXTRA_CA_CERTS=/home/me/ca.pem", "CURL_CA_BUNDLE=/opt/ca.pem", "EDITOR=/opt/vi"}
	pod := []string{"CURL_CA_BUNDLE=/var/run/ca.pem"}
	want := []string{"NODE_EXTRA_CA_CERTS=/home/me/ca.pem", "CURL_CA_BUNDLE=/var/run/ca.pem", "EDITOR=/opt/vi"}
	if diff := cmp.Diff(want, Environment(laptop, pod, paths)); diff != "" {
		t.Error(diff)
	}
	want = append([]string{laptop[0]}, want...)
	if diff := cmp.Diff(want, Environment(laptop, pod, nil)); diff != "" {
		t.Errorf("without the pod's files: %s", diff)
	}
}

func TestPathsFollowTheLongestRule(t *testing.T) {
	p := NewPaths(PathInput{
		WorkDir: "/work/app", Home: "/home/me", ProgramDirs: []string{"/opt/tool/bin"},
		Env:    []string{"PATH=/usr/bin:/opt/jdk/bin:/bin", "GOCACHE=/var/cache/go"},
		Laptop: []string{"/etc/special"}, Pod: []string{"/home/me/.aws", "/usr/share/app"},
		Glob: func(pattern string) []string {
			return map[string][]string{"/etc/java*": {"/etc/java-17-openjdk"}}[pattern]
		},
	})
	for path, want := range map[string]Where{
		"/": Pod, "/etc/resolv.conf": Pod, "/etc/hosts": Pod, "/etc/ssl/certs/ca.pem": Pod, "/var/data": Pod, "/run/secrets/x": Pod,
		"/etc/orders/config.yaml": Pod, "/home/other": Pod, "/usrlocal": Pod, "/opt/app": Pod,
		"/usr": Laptop, "/usr/lib/x": Laptop, "/usr/share/app": Pod, "/usr/share/app/x": Pod, "/lib64/ld.so": Laptop,
		"/etc/maven/m2.conf": Laptop, "/etc/pki/java/cacerts": Laptop, "/etc/pki/tls/certs/x": Pod, "/etc/pam.d/su": Laptop, "/etc/pip.conf": Laptop,
		"/etc/ld.so.cache": Laptop, "/etc/java-17-openjdk/x": Laptop, "/etc/localtime": Laptop, "/etc/special/x": Laptop,
		"/home/me/x": Laptop, "/home/me/.aws/credentials": Pod, "/work/app": Laptop, "/work/other": Pod, "/tmp/x": Laptop,
		"/opt/tool/bin/tool": Laptop, "/opt/jdk/lib/x": Laptop, "/var/cache/go/x": Laptop, "/proc/self": Laptop, "/dev/null": Laptop,
	} {
		if got, why := p.Decide(path); got != want || why == "" {
			t.Errorf("%s: %v (%s), want %v", path, got, why, want)
		}
	}
	seen := map[string]bool{}
	for _, b := range p.Binds() {
		for q := range seen {
			if below(q, b.Path) {
				t.Errorf("%s is bound before its parent %s", q, b.Path)
			}
		}
		seen[b.Path] = true
	}
	if seen["/usr/bin"] || !seen["/usr/share/app"] {
		t.Errorf("binds %v: want no border where nothing changes, and one at /usr/share/app", seen)
	}
}
