package image

import (
	"context"
	"errors"
	"io"
	"log"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/stead-dev/stead/internal/fault"
)

func TestARegistryIsAskedForWhatAnImageIsMade(t *testing.T) {
	s := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer s.Close()
	at := strings.TrimPrefix(s.URL, "http://")
	ctx := context.Background()
	i, err := index("v", func(string) ([]byte, error) { return []byte("agent"), nil })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Push(ctx, i, at+"/tools/stead-agent:1"); err != nil {
		t.Fatal(err)
	}
	got, err := Platforms(ctx, at+"/tools/stead-agent:1")
	if diff := cmp.Diff([]string{"linux/amd64", "linux/arm64"}, got); diff != "" || err != nil {
		t.Error(err, diff)
	}
	m, err := i.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if got, err = Platforms(ctx, at+"/tools/stead-agent@"+m.Manifests[1].Digest.String()); err != nil || len(got) != 1 || got[0] != "linux/arm64" {
		t.Errorf("one of them: %v, %v", got, err)
	}
	for _, c := range []struct {
		ref  string
		want error // nil: neither
	}{{at + "/tools/stead-agent:2", ErrNone}, {at + "/other:1", ErrNone}, {"UPPER case", ErrName}, {"127.0.0.1:1/none:1", nil}} {
		_, err := Platforms(ctx, c.ref)
		if err == nil || c.want != nil && (!errors.Is(err, c.want) || fault.Hint(err) == "") || c.want == nil && (errors.Is(err, ErrNone) || errors.Is(err, ErrName)) {
			t.Errorf("%s: %v", c.ref, err)
		}
	}
}

func TestNamesOfTheSameImageAreTheSame(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"busybox:1", "docker.io/library/busybox:1", true},
		{"busybox", "docker.io/library/busybox:latest", true},
		{"team/agent:1", "docker.io/team/agent:1", true},
		{"registry.local/a:1", "registry.local/a:1", true},
		{"registry.local/a:1", "registry.local/a:2", false},
		{"registry.local/a", "other.local/a", false},
		{"UPPER case", "busybox", false},
	} {
		if got := Same(c.a, c.b); got != c.want {
			t.Errorf("%s, %s: %v", c.a, c.b, got)
		}
	}
}
