// Package kube is the Kubernetes side of stead: it reads the user's kubeconfig as kubectl does,
// finds the container that a target names, stands an agent beside it, and gives the session a way
// to dial that agent. It is the only package that speaks Kubernetes.
//
// It talks to the API server with plain JSON over the HTTP client that client-go's rest package
// makes (so TLS, proxies, exec credentials and impersonation are kubectl's own), into the small
// structs of objects.go: no typed clientset, whose package initialisation every start of stead,
// the launcher's too, would pay. What has a selector or a scale can be a target, known here or not.
//
// What it puts into a cluster: one Job for each target container (agent.go), owned by the target
// pod, which ends by itself when no session is left; or, where that is wished, an ephemeral container
// in the target's pod (ephemeral.go). Everything of ours carries the label
// app.kubernetes.io/managed-by=stead. The agent's secret is in its pod's specification: who may
// read pods and forward ports in that namespace may use an agent there, nobody else.
//
// To change it one must know: the kubelet tells up to a second late that a container runs, so an
// agent is knocked at from the moment its pod has a name (start.go); and a Job that never gets a
// pod tells why in events alone.
package kube

import (
	"context"
	"time"

	"github.com/stead-dev/stead/internal/tunnel"
)

// Options say how an agent is started and found. The zero value has the defaults.
type Options struct {
	Image          string            // of the agent; required to start one
	Mode           Mode              // ModeJob or ModeEphemeral
	Namespace      string            // of the agent's Job; "" for the target's
	Labels         map[string]string // further labels of the Job and its pod; they win over noMeshLabels
	Annotations    map[string]string // the same, and noMeshNotes
	Tolerations    []Toleration      // nil: everything is tolerated, for the agent must run where the target does
	NodeSelector   map[string]string
	Resources      Resources
	PriorityClass  string
	ServiceAccount string
	PullPolicy     string // "" for IfNotPresent
	PullSecrets    []string
	SeccompProfile string        // RuntimeDefault or Unconfined; default RuntimeDefault
	LogLevel       string        // of the agent: error, info, debug; "" for its own default, info
	TTL            time.Duration // how long the cluster keeps an agent's Job that has ended; default 2 s
	Linger         time.Duration // how long an agent waits for a next session; default 5 s
	Resume         time.Duration // how long a session may be away; default 40 s
	StartupTimeout time.Duration // default 60 s
	Replica        string        // a pod's name, to stand for that alone; OneReplica; "" for all
	Notice         func(string)  // told what a user may want to know, may be nil
}

// OneReplica as Options.Replica means one pod, whichever.
const OneReplica = "one"

// Mode is the way an agent is put beside its target.
type Mode string

// The modes.
const (
	ModeJob       Mode = "job"       // a Job of its own on the target's node
	ModeEphemeral Mode = "ephemeral" // an ephemeral container in the target's pod
)

const (
	defaultTTL     = 2 * time.Second
	defaultLinger  = 5 * time.Second
	defaultResume  = 40 * time.Second
	defaultStartup = 60 * time.Second
)

func (o Options) withDefaults() Options {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&o.TTL, defaultTTL)
	def(&o.Linger, defaultLinger)
	def(&o.Resume, defaultResume)
	def(&o.StartupTimeout, defaultStartup)
	if o.Mode == "" {
		o.Mode = ModeJob
	}
	if o.PullPolicy == "" {
		o.PullPolicy = "IfNotPresent"
	}
	if o.SeccompProfile == "" {
		o.SeccompProfile = defaultSeccomp
	}
	if o.Notice == nil {
		o.Notice = func(string) {}
	}
	return o
}

// Target is a container in whose stead a program may run, with an agent beside it. Close ends what
// waits in this process; the agent ends by itself.
type Target struct {
	Dial      tunnel.Dialer
	Pod       string
	Container string
	Probes    map[uint16][]string // paths that the kubelet asks it for, by port
	Node      string              // whose network the pod has, "" for one of its own
	Close     func()

	// Follow follows the target's pods until ctx ends; nil where there is that one alone. It takes a seat
	// beside each of them (all), or beside one in the place of one that ends; first is the seat beside
	// this one. It calls ready once, when those that were there have joined or cannot. It returns
	// earlier when no pod will come any more, with the reason.
	Follow func(ctx context.Context, all bool, first Seat, join Join, ready func()) error
}

// Join takes a seat beside a further pod.
type Join = func(ctx context.Context, name string, dial tunnel.Dialer) (Seat, error)

// Seat is a session's place beside a pod.
type Seat interface {
	Done() <-chan struct{} // the agent is lost for good
	TargetGone() bool      // then: because the container has ended
	Ending()               // the pod is about to end: another is to be preferred
	Leave()
}
