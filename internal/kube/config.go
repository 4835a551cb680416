package kube

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/stead-dev/stead/internal/fault"
)

// Access says which cluster is meant and as whom, with kubectl's flags; the zero value means what
// kubectl without flags means.
type Access struct {
	Kubeconfig string // --kubeconfig
	Context    string // --context
	Namespace  string // -n
	As         string // --as
	AsGroups   []string
}

// Client speaks to one cluster as one user. Its methods may be called from any goroutine.
type Client struct {
	Namespace string // the one in use where a command names none
	Server    string

	config *rest.Config
	http   *http.Client
	base   *url.URL

	upgrades func() (http.RoundTripper, error) // for connections that leave HTTP

	ahead               atomic.Int64 // the cluster's clock, in nanoseconds before ours
	noWebSocket, noSPDY atomic.Bool  // forwards by it cannot be had here
}

// Load reads the kubeconfig (the flag, the variable KUBECONFIG with its list of files, the file in
// the home, or a pod's own service account) and makes a client. It does not yet reach the cluster.
func Load(a Access) (*Client, error) {
	klog.LogToStderr(false) // the library's own words are not for our users
	klog.SetOutput(io.Discard)
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = a.Kubeconfig
	over := &clientcmd.ConfigOverrides{CurrentContext: a.Context}
	over.Context.Namespace = a.Namespace
	over.AuthInfo.Impersonate, over.AuthInfo.ImpersonateGroups = a.As, a.AsGroups
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, over)
	const hint = "kubectl config get-contexts lists what there is; choose with --kubeconfig FILE or --context NAME"
	ns, _, err := loader.Namespace()
	if err != nil && !clientcmd.IsEmptyConfig(err) {
		return nil, fault.With(fmt.Errorf("read kubeconfig: %w", err), hint)
	}
	config, err := loader.ClientConfig()
	if clientcmd.IsEmptyConfig(err) {
		return nil, fault.With(errors.New("no cluster: neither --kubeconfig nor $KUBECONFIG nor ~/.kube/config names one"),
			hint+"; without a cluster: stead playground up --detach, --target playground/orders")
	}
	if err != nil {
		return nil, fault.With(fmt.Errorf("read kubeconfig: %w", err), hint)
	}
	config.UserAgent = "stead"
	h, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fault.With(fmt.Errorf("kubeconfig for %s: %w", config.Host, err), hint)
	}
	base, _, err := rest.DefaultServerUrlFor(config)
	if err != nil {
		return nil, fault.With(fmt.Errorf("kubeconfig: server %q: %w", config.Host, err), hint)
	}
	base.Path = strings.TrimSuffix(base.Path, "/")
	return &Client{
		Namespace: ns, Server: config.Host, config: config, http: h, base: base,
		upgrades: sync.OnceValues(func() (http.RoundTripper, error) { return newUpgrades(config) }),
	}, nil
}
