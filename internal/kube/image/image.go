// Package image makes the agent's container image, without Docker or any other tool: the agents of
// both architectures travel inside the CLI, compressed, and each becomes a layer of one file on
// nothing (FROM scratch). The same agents give the same image, byte for byte.
package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/stead-dev/stead/internal/fault"
)

//go:embed agents
var agents embed.FS

// Architectures are those of the image.
var Architectures = []string{"amd64", "arm64"}

// Entrypoint is the agent's path in the image.
const Entrypoint = "/stead-agent"

// made is when every image says that it was made: the same agents are the same image.
var made = time.Unix(0, 0).UTC()

// agent gives the agent for an architecture.
func agent(arch string) ([]byte, error) {
	b, err := agents.ReadFile("agents/stead-agent-" + arch + ".gz")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.With(fmt.Errorf("this stead was built without its agent for %s", arch), "make build (a plain go build has none)")
	}
	if err != nil {
		return nil, err
	}
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("agent for %s: %w", arch, err)
	}
	return io.ReadAll(z)
}

// Index makes the image: one index with an image for each architecture.
func Index(version string) (v1.ImageIndex, error) { return index(version, agent) }

func index(version string, agent func(arch string) ([]byte, error)) (v1.ImageIndex, error) {
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, arch := range Architectures {
		b, err := agent(arch)
		if err != nil {
			return nil, err
		}
		img, err := single(arch, version, b)
		if err != nil {
			return nil, fmt.Errorf("image for %s: %w", arch, err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add: img, Descriptor: v1.Descriptor{MediaType: types.OCIManifestSchema1, Platform: &v1.Platform{OS: "linux", Architecture: arch}},
		})
	}
	return index, nil
}

func single(arch, version string, agent []byte) (v1.Image, error) {
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	if err := w.WriteHeader(&tar.Header{Name: Entrypoint[1:], Mode: 0o755, Size: int64(len(agent)), ModTime: made, Typeflag: tar.TypeReg}); err != nil {
		return nil, err
	}
	if _, err := w.Write(agent); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer.Bytes())), nil }, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, err
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	if img, err = mutate.ConfigFile(img, &v1.ConfigFile{
		OS: "linux", Architecture: arch, Created: v1.Time{Time: made},
		Config: v1.Config{
			Entrypoint: []string{Entrypoint},
			Labels:     map[string]string{"org.opencontainers.image.title": "stead-agent", "org.opencontainers.image.version": version},
		},
	}); err != nil {
		return nil, err
	}
	return mutate.Append(img, mutate.Addendum{Layer: l, History: v1.History{CreatedBy: "stead agent image", Created: v1.Time{Time: made}}})
}

// Write writes the image as an OCI layout in a tar, as ctr image import, kind load image-archive and
// podman load take it, under the name ref.
func Write(w io.Writer, index v1.ImageIndex, ref string) error {
	n, err := name.ParseReference(ref)
	if err != nil {
		return badName(ref, err)
	}
	t := tar.NewWriter(w)
	put := func(name string, b []byte) error {
		if err := t.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(b)), ModTime: made, Typeflag: tar.TypeReg}); err != nil {
			return err
		}
		_, err := t.Write(b)
		return err
	}
	blob := func(h v1.Hash, b []byte) error { return put("blobs/"+h.Algorithm+"/"+h.Hex, b) }
	if err := put("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
		return err
	}
	d, err := partial.Descriptor(index)
	if err != nil {
		return err
	}
	// containerd takes the first annotation, the others the second.
	d.Annotations = map[string]string{"io.containerd.image.name": n.Name(), "org.opencontainers.image.ref.name": n.Name()}
	top, err := json.Marshal(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{*d}})
	if err != nil {
		return err
	}
	if err := put("index.json", top); err != nil {
		return err
	}
	raw, err := index.RawManifest()
	if err != nil {
		return err
	}
	if err := blob(d.Digest, raw); err != nil {
		return err
	}
	m, err := index.IndexManifest()
	if err != nil {
		return err
	}
	for _, d := range m.Manifests {
		img, err := index.Image(d.Digest)
		if err != nil {
			return err
		}
		if err := writeImage(blob, img); err != nil {
			return err
		}
	}
	return t.Close()
}

func writeImage(blob func(v1.Hash, []byte) error, img v1.Image) error {
	for _, part := range []struct {
		hash func() (v1.Hash, error)
		raw  func() ([]byte, error)
	}{{img.Digest, img.RawManifest}, {img.ConfigName, img.RawConfigFile}} {
		h, err := part.hash()
		if err != nil {
			return err
		}
		b, err := part.raw()
		if err != nil {
			return err
		}
		if err := blob(h, b); err != nil {
			return err
		}
	}
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	for _, l := range layers {
		h, err := l.Digest()
		if err != nil {
			return err
		}
		r, err := l.Compressed()
		if err != nil {
			return err
		}
		b, err := io.ReadAll(r)
		r.Close()
		if err != nil {
			return err
		}
		if err := blob(h, b); err != nil {
			return err
		}
	}
	return nil
}

// Push sends the image to a registry, logged in as docker, podman or ko would be, and returns its
// name with its digest.
func Push(ctx context.Context, index v1.ImageIndex, ref string) (string, error) {
	n, err := name.ParseReference(ref)
	if err != nil {
		return "", badName(ref, err)
	}
	if err := remote.WriteIndex(n, index, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain)); err != nil {
		err = fmt.Errorf("push %s: %w", n.Name(), err)
		var t *transport.Error
		if errors.As(err, &t) && (t.StatusCode == http.StatusUnauthorized || t.StatusCode == http.StatusForbidden) {
			return "", fault.With(err, "log in to the registry first: docker login "+n.Context().RegistryStr())
		}
		return "", fault.With(err, "is the registry right? stead agent image --output FILE writes the image to a file instead")
	}
	h, err := index.Digest()
	if err != nil {
		return "", err
	}
	return n.Context().Digest(h.String()).Name(), nil
}

func badName(ref string, err error) error {
	return fault.With(fmt.Errorf("image name %q: %w: %w", ref, ErrName, err), "REGISTRY/NAME:TAG, say registry.example.com/tools/stead-agent:1")
}
