package kube

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/stead-dev/stead/internal/knock"
)

// An agent as an ephemeral container of the target's pod. It starts quicker than a Job, and works
// where hostPID is refused and the capabilities are not. But the cluster cannot take it away:
// when it has ended its entry stays in the pod's specification for as long as the pod lives, it has
// no lease but its own clock, and its port is one of the pod's own loopback.

const ephemeralName = "stead-agent-"

// ephemeralPorts are those that an agent may listen on in the pod: below those that the kernel gives
// to connections.
const (
	ephemeralPortFirst = 20000
	ephemeralPortCount = 10000
)

const strategicPatch = "application/strategic-merge-patch+json"

// ephemeral is the patch that adds an agent to the target's pod, and the name of its container.
func ephemeral(m mark, o *Options) (name string, patch any) {
	tail := make([]byte, 4)
	rand.Read(tail)
	name = ephemeralName + hex.EncodeToString(tail)
	a := agentIn(m, o, name, ephemeralPortFirst+mathrand.IntN(ephemeralPortCount), newSecret())
	a.TargetContainerName = m.container
	a.Resources = nil // it may have none
	a.Env = append(a.Env, EnvVar{Name: noteSpeaks, Value: strconv.Itoa(knock.Protocol)})
	return name, map[string]any{"spec": map[string]any{"ephemeralContainers": []Container{a}}}
}

// startEphemeral adds the agent to the target's pod.
func (c *Client) startEphemeral(ctx context.Context, m mark, o *Options) (*Agent, net.Conn, error) {
	name, patch := ephemeral(m, o)
	path := lookupKind("pod").path(m.namespace) + "/" + m.pod
	if err := c.request(ctx, http.MethodPatch, path+"/ephemeralcontainers", nil, strategicPatch, patch, nil); err != nil {
		return nil, nil, fmt.Errorf("start an agent in pod %s/%s: %w", m.namespace, m.pod, err)
	}
	return c.await(ctx, m, o, &start{
		namespace: m.namespace, describe: "pod " + m.pod,
		pods: url.Values{"fieldSelector": {"metadata.name=" + m.pod}},
		read: func(p *Pod) (*Agent, error) {
			for _, a := range ephemeralIn(p) {
				if a.Container == name {
					return &a, startFailure(p, name, p.Status.EphemeralContainerStatuses)
				}
			}
			return nil, nil
		},
	})
}

// ephemeralIn gives the agents among a pod's ephemeral containers, those that have ended too.
func ephemeralIn(p *Pod) (out []Agent) {
	for i := range p.Spec.EphemeralContainers {
		c := &p.Spec.EphemeralContainers[i]
		if !strings.HasPrefix(c.Name, ephemeralName) {
			continue
		}
		a := Agent{
			Namespace: p.Meta.Namespace, Pod: p.Meta.Name, Container: c.Name, Node: p.Spec.NodeName,
			Target: p.Meta.Namespace + "/" + p.Meta.Name + "/" + c.TargetContainerName, TargetUID: p.Meta.UID,
			over: p.Meta.DeletionTimestamp != nil,
		}
		for i, arg := range c.Args {
			if arg == "--container-id" && i+1 < len(c.Args) {
				a.TargetID = c.Args[i+1]
			}
		}
		for _, e := range c.Env {
			if e.Name == noteSpeaks {
				a.Protocol = e.Value
			}
		}
		a.read(c, p.Status.EphemeralContainerStatuses)
		out = append(out, a)
	}
	return out
}
