package image

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/stead-dev/stead/internal/fault"
)

// ErrNone says that a registry was asked and has no such image.
var ErrNone = errors.New("the registry has no such image")

// ErrName says that a name cannot be one of an image.
var ErrName = errors.New("it cannot be one")

// Platforms asks the registry of ref for what it is made, as OS/ARCHITECTURE, logged in as docker is.
// ErrNone and ErrName mean that there is no such image; other errors, that it cannot be known from here.
func Platforms(ctx context.Context, ref string) ([]string, error) {
	n, err := name.ParseReference(ref)
	if err != nil {
		return nil, badName(ref, err)
	}
	d, err := remote.Get(n, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain))
	if err != nil {
		err = fmt.Errorf("look at %s: %w", n.Name(), err)
		var t *transport.Error
		if !errors.As(err, &t) {
			if op := (*net.OpError)(nil); errors.As(err, &op) { // once, not for https and again for http
				err = fmt.Errorf("look at %s: %w", n.Name(), op)
			}
			return nil, err
		}
		switch t.StatusCode {
		case http.StatusNotFound:
			return nil, fault.With(fmt.Errorf("%w: %w", ErrNone, err), "stead agent image --push "+ref)
		case http.StatusUnauthorized, http.StatusForbidden:
			return nil, fault.With(err, "docker login "+n.Context().RegistryStr())
		}
		return nil, err
	}
	var out []string
	add := func(p *v1.Platform) {
		if s := p.OS + "/" + p.Architecture; p.OS != "" && p.OS != "unknown" && !slices.Contains(out, s) { // unknown: an attestation
			out = append(out, s)
		}
	}
	if !d.MediaType.IsIndex() {
		img, err := d.Image()
		if err == nil {
			var c *v1.ConfigFile
			if c, err = img.ConfigFile(); err == nil {
				add(c.Platform())
			}
		}
		if err != nil {
			return nil, fmt.Errorf("look at %s: %w", n.Name(), err)
		}
		return out, nil
	}
	index, err := d.ImageIndex()
	if err != nil {
		return nil, fmt.Errorf("look at %s: %w", n.Name(), err)
	}
	m, err := index.IndexManifest()
	if err != nil {
		return nil, fmt.Errorf("look at %s: %w", n.Name(), err)
	}
	for _, i := range m.Manifests {
		if i.Platform != nil {
			add(i.Platform)
		}
	}
	return out, nil
}

// Same says whether two names are of one image, one of them perhaps without the registry or the tag that
// are meant where none is named.
func Same(a, b string) bool {
	if a == b {
		return true
	}
	x, err := name.ParseReference(a)
	if err != nil {
		return false
	}
	y, err := name.ParseReference(b)
	return err == nil && x.Name() == y.Name()
}
