package kube

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/stead-dev/stead/internal/fault"
)

// defaultContainer is the annotation by which a pod's author names the container that matters.
const defaultContainer = "kubectl.kubernetes.io/default-container"

// sidecars are names of containers that service meshes, log shippers and cloud SQL proxies inject.
var sidecars = []string{
	"istio-proxy", "linkerd-proxy", "envoy", "envoy-sidecar", "consul-dataplane", "kuma-sidecar", "daprd",
	"vault-agent", "cloud-sql-proxy", "cloudsql-proxy", "oauth2-proxy", "fluent-bit", "fluentd", "filebeat",
	"datadog-agent", "otc-container", "aws-sigv4-proxy", "config-reloader", "queue-proxy", "tailscale",
}

// ChooseContainer says which container of the pod is meant, and why. It is a pure function of the
// pod: the same pod gives the same answer.
func ChooseContainer(p *Pod, asked string) (name, why string, err error) {
	names := containerNames(p.Spec.Containers)
	if asked != "" {
		native := containerNames(p.sidecars())
		if slices.Contains(names, asked) || slices.Contains(native, asked) {
			return asked, "as asked", nil
		}
		hint := "its containers: " + strings.Join(names, ", ")
		if native != nil {
			hint += "; its sidecars: " + strings.Join(native, ", ")
		}
		return "", "", fault.With(fmt.Errorf("pod %s has no container %s", p.Meta.Name, asked), hint)
	}
	if n := p.Meta.Annotations[defaultContainer]; n != "" && slices.Contains(names, n) {
		return n, "by the annotation " + defaultContainer, nil
	}
	if len(names) == 0 {
		return "", "", fmt.Errorf("pod %s has no containers", p.Meta.Name)
	}
	if len(names) == 1 {
		return names[0], "the only one", nil
	}
	for _, n := range names {
		if !slices.Contains(sidecars, n) {
			return n, "the first that is no known sidecar", nil
		}
	}
	return names[0], "the first", nil
}

func containerNames(cs []Container) (names []string) {
	for _, c := range cs {
		names = append(names, c.Name)
	}
	return names
}

// httpProbes gives the paths that the kubelet asks a pod for by plain HTTP, by port.
func httpProbes(p *Pod) map[uint16][]string {
	out := make(map[uint16][]string)
	containers := slices.Concat(p.Spec.Containers, p.sidecars())
	for i := range containers {
		c := &containers[i]
		for _, probe := range []*Probe{c.StartupProbe, c.ReadinessProbe, c.LivenessProbe} {
			if probe == nil || probe.HTTPGet == nil || probe.HTTPGet.Host != "" || probe.HTTPGet.Scheme != "" && probe.HTTPGet.Scheme != "HTTP" {
				continue
			}
			n := probe.HTTPGet.number(c)
			path := "/" + strings.TrimPrefix(probe.HTTPGet.Path, "/")
			if n != 0 && !slices.Contains(out[n], path) {
				out[n] = append(out[n], path)
			}
		}
	}
	return out
}

// number is the port of a probe, 0 where the container has none of that name.
func (g *HTTPGet) number(c *Container) uint16 {
	switch v := g.Port.(type) {
	case float64:
		return uint16(v)
	case string:
		for _, p := range c.Ports {
			if p.Name == v {
				return uint16(p.ContainerPort)
			}
		}
	}
	return 0
}

// onLostNode says whether the cluster hears nothing of the pod's node: it calls the pod not ready then,
// and leaves what the kubelet said of its containers.
func onLostNode(p *Pod) bool {
	return has(p.Status.Conditions, "ContainersReady") != nil && has(p.Status.Conditions, "Ready") == nil && len(p.Spec.ReadinessGates) == 0
}

// usable says whether a session may stand in the container's stead, with the reason and what helps
// if not.
func usable(p *Pod, container string) error {
	name := p.Meta.Namespace + "/" + p.Meta.Name
	see := "kubectl -n " + p.Meta.Namespace + " describe pod " + p.Meta.Name
	logs := fmt.Sprintf("kubectl -n %s logs %s -c %s --previous", p.Meta.Namespace, p.Meta.Name, container)
	if p.Meta.DeletionTimestamp != nil {
		return fault.With(fmt.Errorf("pod %s is being deleted", name), "wait until its successor is there: kubectl -n "+p.Meta.Namespace+" get pods")
	}
	s := p.status(container)
	switch {
	case p.windows():
		return fault.With(fmt.Errorf("pod %s is for Windows: an agent stands beside Linux containers alone", name), "choose a target on a Linux node: kubectl get pods -o wide")
	case p.Status.Reason == "NodeLost" || p.Status.Phase == "Unknown":
		return fault.With(fmt.Errorf("pod %s: its node %s is lost", name, p.Spec.NodeName), "kubectl describe node "+p.Spec.NodeName)
	case s != nil && s.State.Running != nil:
		return nil
	case s != nil && (s.State.Waiting != nil && s.State.Waiting.Reason == "CrashLoopBackOff" ||
		s.State.Terminated != nil && s.RestartCount > 0 && p.Spec.RestartPolicy == "Always"):
		cause := ""
		if t := cmp.Or(s.State.Terminated, s.LastState.Terminated); t != nil {
			cause = fmt.Sprintf(", last with exit code %d", t.ExitCode)
		}
		return fault.With(fmt.Errorf("container %s of pod %s keeps crashing (%d restarts%s)", container, name, s.RestartCount, cause), logs)
	case s != nil && s.State.Waiting != nil:
		return fault.With(fmt.Errorf("container %s of pod %s is not running: %s", container, name, reasonText(s.State.Waiting)), see)
	case s != nil && s.State.Terminated != nil:
		return fault.With(fmt.Errorf("container %s of pod %s has ended: %s, exit code %d", container, name, s.State.Terminated.Reason, s.State.Terminated.ExitCode),
			strings.TrimSuffix(logs, " --previous"))
	case p.Spec.NodeName == "":
		why := "not yet scheduled"
		for _, c := range p.Status.Conditions {
			if c.Type == "PodScheduled" && c.Status == "False" && c.Message != "" {
				why = c.Message
			}
		}
		return fault.With(fmt.Errorf("pod %s has no node: %s", name, why), see)
	}
	return fault.With(fmt.Errorf("pod %s is not running: %s %s", name, strings.ToLower(p.Status.Phase), p.Status.Message), see)
}

func reasonText(r *ContainerReason) string {
	if r.Message == "" {
		return r.Reason
	}
	return r.Reason + ": " + r.Message
}
