// registry is a registry for the end-to-end tests, run in a node's network.
//
//	registry serve ADDR [LOGIN]  serve, until its standard input ends; only for USER:PASSWORD
//	registry narrow FROM TO ARCH copy an image with one architecture alone
package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

func main() {
	err := fmt.Errorf("usage: registry serve ADDR [LOGIN] | narrow FROM TO ARCH")
	switch {
	case len(os.Args) == 3 && os.Args[1] == "serve":
		err = serve(os.Args[2], "")
	case len(os.Args) == 4 && os.Args[1] == "serve":
		err = serve(os.Args[2], os.Args[3])
	case len(os.Args) == 5 && os.Args[1] == "narrow":
		err = narrow(os.Args[2], os.Args[3], os.Args[4])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "registry:", err)
		os.Exit(1)
	}
}

func serve(addr, login string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	fmt.Println("serving")
	images := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		if login != "" && user+":"+password != login {
			w.Header().Set("WWW-Authenticate", `Basic realm="shop"`)
			http.Error(w, `{"errors": [{"code": "UNAUTHORIZED", "message": "log in first"}]}`, http.StatusUnauthorized)
			return
		}
		images.ServeHTTP(w, r)
	}))
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

func narrow(from, to, arch string) error {
	src, err := name.ParseReference(from)
	if err != nil {
		return err
	}
	dst, err := name.ParseReference(to)
	if err != nil {
		return err
	}
	index, err := remote.Index(src)
	if err != nil {
		return err
	}
	return remote.WriteIndex(dst, mutate.RemoveManifests(index, func(d v1.Descriptor) bool {
		return d.Platform == nil || d.Platform.Architecture != arch
	}))
}
