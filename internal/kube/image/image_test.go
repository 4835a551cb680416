package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"log"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/stead-dev/stead/internal/fault"
)

func stub(arch string) ([]byte, error) { return []byte("the agent for " + arch), nil }

// checkImage looks whether img is the agent for arch on nothing.
func checkImage(t *testing.T, img v1.Image, arch string) {
	t.Helper()
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if c.Architecture != arch || c.OS != "linux" || len(c.Config.Entrypoint) != 1 || c.Config.Entrypoint[0] != Entrypoint {
		t.Errorf("configuration %+v", c)
	}
	r := tar.NewReader(mutate.Extract(img))
	h, err := r.Next()
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(r)
	if "/"+h.Name != Entrypoint || h.Mode != 0o755 || string(b) != "the agent for "+arch {
		t.Errorf("file %s mode %o: %q", h.Name, h.Mode, b)
	}
	if h, err := r.Next(); err != io.EOF {
		t.Errorf("a second file: %v %v", h, err)
	}
}

func TestAPushedImageComesBackForBothArchitectures(t *testing.T) {
	s := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer s.Close()
	i, err := index("1", stub)
	if err != nil {
		t.Fatal(err)
	}
	ref := strings.TrimPrefix(s.URL, "http://") + "/tools/stead-agent:1"
	pushed, err := Push(t.Context(), i, ref)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(pushed, "/tools/stead-agent@sha256:") {
		t.Errorf("pushed as %s", pushed)
	}
	n, err := name.ParseReference(pushed)
	if err != nil {
		t.Fatal(err)
	}
	for _, arch := range Architectures {
		img, err := remote.Image(n, remote.WithPlatform(v1.Platform{OS: "linux", Architecture: arch}))
		if err != nil {
			t.Fatal(err)
		}
		checkImage(t, img, arch)
	}
}

func TestAWrittenImageIsAnOCILayoutWithAllItsBlobs(t *testing.T) {
	i, err := index("1", stub)
	if err != nil {
		t.Fatal(err)
	}
	var file, again bytes.Buffer
	if err := Write(&file, i, "registry.local/stead-agent:1"); err != nil {
		t.Fatal(err)
	}
	if i, err = index("1", stub); err != nil {
		t.Fatal(err)
	}
	if err := Write(&again, i, "registry.local/stead-agent:1"); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(file.Bytes(), again.Bytes()) {
		t.Error("the same agents gave two different images")
	}
	blobs := make(map[string][]byte)
	for r := tar.NewReader(&file); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		blobs[h.Name], _ = io.ReadAll(r)
	}
	var top, inner v1.IndexManifest
	if err := json.Unmarshal(blobs["index.json"], &top); err != nil || len(top.Manifests) != 1 {
		t.Fatalf("index.json %s: %v", blobs["index.json"], err)
	}
	if n := top.Manifests[0].Annotations["io.containerd.image.name"]; n != "registry.local/stead-agent:1" {
		t.Errorf("its name is %q", n)
	}
	blob := func(h v1.Hash) []byte {
		b, ok := blobs["blobs/"+h.Algorithm+"/"+h.Hex]
		if got, _, _ := v1.SHA256(bytes.NewReader(b)); !ok || got != h {
			t.Errorf("blob %v: there %v, its digest %v", h, ok, got)
		}
		return b
	}
	if err := json.Unmarshal(blob(top.Manifests[0].Digest), &inner); err != nil || len(inner.Manifests) != len(Architectures) {
		t.Fatalf("index has %d images: %v", len(inner.Manifests), err)
	}
	for _, d := range inner.Manifests {
		var m v1.Manifest
		if err := json.Unmarshal(blob(d.Digest), &m); err != nil || len(m.Layers) != 1 {
			t.Fatalf("image has %d layers: %v", len(m.Layers), err)
		}
		blob(m.Config.Digest)
		blob(m.Layers[0].Digest)
	}
}

func TestAFailedPushSaysWhatHelps(t *testing.T) {
	i, err := index("1", stub)
	if err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{"not a name", "127.0.0.1:1/x:1"} {
		if _, err := Push(t.Context(), i, ref); err == nil || fault.Hint(err) == "" {
			t.Errorf("push to %q: %v, hint %q", ref, err, fault.Hint(err))
		}
	}
}
