package kube

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/stead-dev/stead/internal/knock"
)

// What marks everything of ours in a cluster, and says what it is for.
const (
	managedBy      = "app.kubernetes.io/managed-by"
	ours           = "stead"
	labelAgent     = "stead.dev/agent"      // the agent's name, on its Job and pod
	labelTargetUID = "stead.dev/pod-uid"    // of the target
	noteTarget     = "stead.dev/target"     // NAMESPACE/POD/CONTAINER
	noteContainer  = "stead.dev/container"  // the runtime's id of it
	noteProtocol   = "stead.dev/protocol"   // what the agent speaks
	noteSecret     = "STEAD_AGENT_SECRET"   // variable of the agent
	noteSpeaks     = "STEAD_AGENT_PROTOCOL" // variable of an agent without annotations
	agentContainer = "agent"
	agentPort      = 7117 // on the loopback of the agent's own pod
	oursSelector   = managedBy + "=" + ours
)

// Capability is one that an agent has, and what it could not do without it.
type Capability struct{ Name, Why string }

// Capabilities are all that an agent has: what a runtime gives by default is dropped. The agent's own
// tests run it with exactly these, so one that is taken away here fails there.
var Capabilities = []Capability{
	{"SYS_ADMIN", "enter the target's network and host name, load the program that steals"},
	{"SYS_PTRACE", "open another user's /proc/PID/root, /proc/PID/ns and environment"},
	{"NET_ADMIN", "bring the target's connections to the agent"},
	{"NET_RAW", "listen to the target's packets, for a mirror"},
	{"DAC_READ_SEARCH", "read the files that a target which is root may read (a root without it may not); it writes none"},
	{"SETUID", "look files up as the target's user, so that nothing is read that the app may not read"},
	{"SETGID", "the same with its groups"},
	{"NET_BIND_SERVICE", "take a source port below 1024 in the pod, where the program has bound one"},
}

// capabilityNames are the names alone, in that order.
func capabilityNames() (names []string) {
	for _, c := range Capabilities {
		names = append(names, c.Name)
	}
	return names
}

// defaultSeccomp is the profile of an agent: the runtime's own, which knows the capabilities above and
// lets them be used. Without a word of it Kubernetes gives none.
const defaultSeccomp = "RuntimeDefault"

// mark is what an agent stands beside.
type mark struct {
	namespace, pod, uid string
	container, id       string // of the container, without the runtime's name before it
	node                string
}

func markOf(p *Pod, container string) mark {
	m := mark{namespace: p.Meta.Namespace, pod: p.Meta.Name, uid: p.Meta.UID, container: container, node: p.Spec.NodeName}
	if s := p.status(container); s != nil {
		_, m.id, _ = strings.Cut(s.ContainerID, "://")
	}
	return m
}

// String is the mark as an annotation tells it.
func (m mark) String() string { return m.namespace + "/" + m.pod + "/" + m.container }

// agentName is the same for everybody who wants an agent beside the same container, so that there
// is one; nth is for the next after those that have ended and are not yet removed.
func (m mark) agentName(o *Options, nth int) string {
	h := sha256.Sum256([]byte(m.id + "/" + strconv.Itoa(knock.Protocol)))
	base := m.pod
	if len(base) > 40 {
		base = strings.TrimRight(base[:40], "-.")
	}
	name := "stead-" + strings.ReplaceAll(base, ".", "-") + "-" + hex.EncodeToString(h[:4])
	if nth > 0 {
		name += "-" + strconv.Itoa(nth)
	}
	return name
}

// targetless is the mark of a pod of ours that is its own target, for names and outgoing connections
// of a namespace. There is one for all sessions of the namespace.
func targetless(namespace string) mark {
	return mark{namespace: namespace, pod: noTarget, container: agentContainer, id: noTarget}
}

const noTarget = "targetless"

// newSecret is what an agent and its sessions know.
func newSecret() string {
	b := make([]byte, 20)
	rand.Read(b)
	return hex.EncodeToString(b)
}

func seconds(d time.Duration) *int64 { return ptr(int64(max(d, time.Second) / time.Second)) }

// lease is how long an agent may live that no session has renewed.
const lease = 40 * time.Second

// leaseFor is how far a session moves the lease on: the agent waits for one that is cut off, and for
// the next.
func leaseFor(o *Options) time.Duration { return max(lease, o.Resume+5*time.Second) + o.Linger }

// What asks service meshes to leave the agent's pod alone: their sidecar would hold its start up, and
// would not end with it. Some look at a label, some at an annotation; Istio and Kuma at either.
var (
	noMeshLabels = map[string]string{"sidecar.istio.io/inject": "false", "kuma.io/sidecar-injection": "disabled"}
	noMeshNotes  = map[string]string{
		"sidecar.istio.io/inject": "false", "kuma.io/sidecar-injection": "disabled", "linkerd.io/inject": "disabled",
		"consul.hashicorp.com/connect-inject": "false", "openservicemesh.io/sidecar-injection": "disabled",
	}
)

// merged lays maps one over the other: the last that has a key counts.
func merged(all ...map[string]string) map[string]string {
	out := make(map[string]string)
	for _, m := range all {
		maps.Copy(out, m)
	}
	return out
}

// newJob is the Job that is an agent beside m. Its activeDeadlineSeconds is the lease: a session
// moves it on (Client.renew), and without one the cluster ends the agent, or what never became one.
func newJob(m mark, o *Options, name, secret string) *Job {
	labels := merged(noMeshLabels, o.Labels, map[string]string{managedBy: ours, "app.kubernetes.io/name": "stead-agent", labelAgent: name})
	if m.uid != "" {
		labels[labelTargetUID] = m.uid
	}
	notes := merged(noMeshNotes, o.Annotations, map[string]string{noteTarget: m.String(), noteContainer: m.id, noteProtocol: strconv.Itoa(knock.Protocol)})
	ns := o.Namespace
	if ns == "" {
		ns = m.namespace
	}
	j := &Job{
		APIVersion: "batch/v1", Kind: "Job",
		Meta: Meta{Name: name, Namespace: ns, Labels: labels, Annotations: notes},
		Spec: JobSpec{
			BackoffLimit:            ptr(0),
			ActiveDeadlineSeconds:   seconds(lease),
			TTLSecondsAfterFinished: ptr(int(*seconds(o.TTL))),
			Template: PodPart{
				Meta: Meta{Labels: labels, Annotations: notes},
				Spec: PodSpec{
					NodeName:                      m.node,
					NodeSelector:                  o.NodeSelector,
					HostPID:                       true,
					RestartPolicy:                 "Never",
					ServiceAccountName:            o.ServiceAccount,
					AutomountServiceAccountToken:  ptr(false),
					EnableServiceLinks:            ptr(false),
					TerminationGracePeriodSeconds: ptr(int64(1)),
					PriorityClassName:             o.PriorityClass,
					Tolerations:                   o.Tolerations,
					Containers:                    []Container{agentIn(m, o, agentContainer, agentPort, secret)},
				},
			},
		},
	}
	if j.Spec.Template.Spec.Tolerations == nil {
		j.Spec.Template.Spec.Tolerations = []Toleration{{Operator: "Exists"}}
	}
	if m.id == noTarget {
		// It looks into nobody, so that any namespace may have it.
		p := &j.Spec.Template.Spec
		p.HostPID, p.Tolerations = false, o.Tolerations
		p.Containers[0].SecurityContext = &SecurityContext{
			RunAsUser: ptr(int64(65532)), RunAsGroup: ptr(int64(65532)), RunAsNonRoot: ptr(true),
			AllowPrivilegeEscalation: ptr(false), ReadOnlyRootFilesystem: ptr(true),
			Capabilities: &CapabilitySet{Drop: []string{"ALL"}}, SeccompProfile: &SeccompProfile{Type: o.SeccompProfile},
		}
	}
	for _, s := range o.PullSecrets {
		j.Spec.Template.Spec.ImagePullSecrets = append(j.Spec.Template.Spec.ImagePullSecrets, LocalReference{s})
	}
	if ns == m.namespace && m.uid != "" { // an owner of another namespace would be no owner
		j.Meta.OwnerReferences = []OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: m.pod, UID: m.uid}}
	}
	return j
}

// agentIn is the agent's container.
func agentIn(m mark, o *Options, name string, port int, secret string) Container {
	target := []string{"--container-id", m.id}
	if m.id == noTarget {
		target = []string{"--self"}
	}
	c := Container{
		Name: name, Image: o.Image, ImagePullPolicy: o.PullPolicy,
		Args: append(target,
			"--listen", "127.0.0.1:"+strconv.Itoa(port),
			"--linger", o.Linger.String(), "--resume", o.Resume.String(),
		),
		Env: []EnvVar{{Name: noteSecret, Value: secret}},
		SecurityContext: &SecurityContext{
			RunAsUser: ptr(int64(0)), RunAsGroup: ptr(int64(0)), RunAsNonRoot: ptr(false),
			Privileged: ptr(false), ReadOnlyRootFilesystem: ptr(true),
			Capabilities:   &CapabilitySet{Drop: []string{"ALL"}, Add: capabilityNames()},
			SeccompProfile: &SeccompProfile{Type: o.SeccompProfile},
		},
		TerminationMessagePolicy: "FallbackToLogsOnError", // its last words, for whoever waits
	}
	if o.LogLevel != "" { // else it is not said, so that an agent that does not know of it can be used
		c.Args = append(c.Args, "--log-level", o.LogLevel)
	}
	if len(o.Resources.Requests)+len(o.Resources.Limits) > 0 {
		c.Resources = &o.Resources
	}
	return c
}

// Agent is an agent that is in the cluster.
type Agent struct {
	Namespace string // of its pod
	Pod       string
	Job       string // "" for an ephemeral container
	Container string // its container
	Target    string // NAMESPACE/POD/CONTAINER
	TargetUID string
	TargetID  string // the runtime's id of the target's container
	Protocol  string
	Image     string
	Node      string
	Started   time.Time
	State     string // as kubectl shows it: Running, ContainerCreating, ErrImagePull...

	port   int
	secret string
	over   bool // it has ended, or is about to
}

// agentOf reads the agent that a pod of ours is, nil for none.
func agentOf(p *Pod) *Agent {
	if p.Meta.Labels[managedBy] != ours || p.Meta.Labels[labelAgent] == "" {
		return nil
	}
	for i := range p.Spec.Containers {
		if p.Spec.Containers[i].Name != agentContainer {
			continue
		}
		a := &Agent{
			Namespace: p.Meta.Namespace, Pod: p.Meta.Name, Job: p.Meta.Labels[labelAgent], Container: agentContainer, Node: p.Spec.NodeName,
			Target: p.Meta.Annotations[noteTarget], TargetUID: p.Meta.Labels[labelTargetUID],
			TargetID: p.Meta.Annotations[noteContainer], Protocol: p.Meta.Annotations[noteProtocol],
			over: p.Meta.DeletionTimestamp != nil || p.Status.Phase == "Failed" || p.Status.Phase == "Succeeded",
		}
		if p.Meta.CreationTimestamp != nil {
			a.Started = *p.Meta.CreationTimestamp
		}
		a.read(&p.Spec.Containers[i], p.Status.ContainerStatuses)
		if a.over && p.Meta.DeletionTimestamp != nil {
			a.State = "Terminating"
		}
		return a
	}
	return nil
}

// agentsIn gives the agents that a pod is or has.
func agentsIn(p *Pod) (out []Agent) {
	if a := agentOf(p); a != nil {
		out = append(out, *a)
	}
	return append(out, ephemeralIn(p)...)
}

// read takes what the agent's container says.
func (a *Agent) read(c *Container, statuses []ContainerStatus) {
	a.Image = c.Image
	for i, arg := range c.Args {
		if arg == "--listen" && i+1 < len(c.Args) {
			_, port, _ := strings.Cut(c.Args[i+1], ":")
			a.port, _ = strconv.Atoi(port)
		}
	}
	for _, e := range c.Env {
		if e.Name == noteSecret {
			a.secret = e.Value
		}
	}
	a.State = "Pending"
	for _, s := range statuses {
		if s.Name != c.Name {
			continue
		}
		switch {
		case s.State.Running != nil:
			a.State = "Running"
			if a.Started.IsZero() {
				a.Started = s.State.Running.StartedAt
			}
		case s.State.Waiting != nil && s.State.Waiting.Reason != "":
			a.State = s.State.Waiting.Reason
		case s.State.Terminated != nil:
			a.State, a.over = "Ended", true
			if s.State.Terminated.ExitCode != 0 {
				a.State = fmt.Sprintf("Failed (exit code %d)", s.State.Terminated.ExitCode)
			}
		}
	}
}

// Over says whether the agent has ended, or is about to.
func (a *Agent) Over() bool { return a.over }

// fits says whether the agent serves sessions of ours beside m.
func (a *Agent) fits(m mark) bool {
	return !a.over && a.secret != "" && a.port > 0 && a.TargetUID == m.uid && a.TargetID == m.id && a.Protocol == strconv.Itoa(knock.Protocol)
}
