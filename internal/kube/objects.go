package kube

import (
	"encoding/json"
	"slices"
	"time"
)

// The parts of Kubernetes' objects that stead reads or writes, with Kubernetes' own names.

// Meta is ObjectMeta.
type Meta struct {
	Name              string            `json:"name,omitempty"`
	Namespace         string            `json:"namespace,omitempty"`
	UID               string            `json:"uid,omitempty"`
	Labels            map[string]string `json:"labels,omitempty"`
	Annotations       map[string]string `json:"annotations,omitempty"`
	OwnerReferences   []OwnerReference  `json:"ownerReferences,omitempty"`
	CreationTimestamp *time.Time        `json:"creationTimestamp,omitempty"`
	DeletionTimestamp *time.Time        `json:"deletionTimestamp,omitempty"`
}

// OwnerReference makes the garbage collector remove an object with its owner.
type OwnerReference struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Name       string `json:"name"`
	UID        string `json:"uid"`
	Controller *bool  `json:"controller,omitempty"`
}

// Pod is a pod.
type Pod struct {
	APIVersion string    `json:"apiVersion,omitempty"`
	Kind       string    `json:"kind,omitempty"`
	Meta       Meta      `json:"metadata"`
	Spec       PodSpec   `json:"spec"`
	Status     PodStatus `json:"status,omitzero"`
}

// PodSpec is what stead knows of a pod's specification.
type PodSpec struct {
	NodeName                      string            `json:"nodeName,omitempty"`
	HostPID                       bool              `json:"hostPID,omitempty"`
	HostNetwork                   bool              `json:"hostNetwork,omitempty"`
	OS                            *PodOS            `json:"os,omitempty"`
	RestartPolicy                 string            `json:"restartPolicy,omitempty"`
	ServiceAccountName            string            `json:"serviceAccountName,omitempty"`
	AutomountServiceAccountToken  *bool             `json:"automountServiceAccountToken,omitempty"`
	EnableServiceLinks            *bool             `json:"enableServiceLinks,omitempty"`
	TerminationGracePeriodSeconds *int64            `json:"terminationGracePeriodSeconds,omitempty"`
	PriorityClassName             string            `json:"priorityClassName,omitempty"`
	Tolerations                   []Toleration      `json:"tolerations,omitempty"`
	ImagePullSecrets              []LocalReference  `json:"imagePullSecrets,omitempty"`
	InitContainers                []Container       `json:"initContainers,omitempty"`
	Containers                    []Container       `json:"containers"`
	EphemeralContainers           []Container       `json:"ephemeralContainers,omitempty"`
	NodeSelector                  map[string]string `json:"nodeSelector,omitempty"`
	ReadinessGates                []ReadinessGate   `json:"readinessGates,omitempty"`
}

// PodOS names the system that a pod's containers are for.
type PodOS struct {
	Name string `json:"name"`
}

// ReadinessGate is a condition that somebody else sets.
type ReadinessGate struct {
	ConditionType string `json:"conditionType"`
}

// LocalReference names an object of the same namespace.
type LocalReference struct {
	Name string `json:"name"`
}

// Toleration is a toleration.
type Toleration struct {
	Key      string `json:"key,omitempty"`
	Operator string `json:"operator,omitempty"`
	Value    string `json:"value,omitempty"`
	Effect   string `json:"effect,omitempty"`
}

// Container is a container, also an ephemeral one.
type Container struct {
	Name                     string           `json:"name"`
	Image                    string           `json:"image,omitempty"`
	ImagePullPolicy          string           `json:"imagePullPolicy,omitempty"`
	Command                  []string         `json:"command,omitempty"`
	Args                     []string         `json:"args,omitempty"`
	Env                      []EnvVar         `json:"env,omitempty"`
	Ports                    []ContainerPort  `json:"ports,omitempty"`
	Resources                *Resources       `json:"resources,omitempty"`
	SecurityContext          *SecurityContext `json:"securityContext,omitempty"`
	RestartPolicy            string           `json:"restartPolicy,omitempty"`
	TargetContainerName      string           `json:"targetContainerName,omitempty"`
	TerminationMessagePolicy string           `json:"terminationMessagePolicy,omitempty"`
	LivenessProbe            *Probe           `json:"livenessProbe,omitempty"`
	ReadinessProbe           *Probe           `json:"readinessProbe,omitempty"`
	StartupProbe             *Probe           `json:"startupProbe,omitempty"`
}

// Probe is how the kubelet asks a container how it does.
type Probe struct {
	HTTPGet *HTTPGet `json:"httpGet,omitempty"`
}

// HTTPGet is a request of a probe.
type HTTPGet struct {
	Path   string `json:"path,omitempty"`
	Port   any    `json:"port"` // a number, or the name of one of the container's ports
	Host   string `json:"host,omitempty"`
	Scheme string `json:"scheme,omitempty"`
}

// EnvVar is a variable with a literal value.
type EnvVar struct {
	Name  string `json:"name"`
	Value string `json:"value,omitempty"`
}

// ContainerPort is a declared port.
type ContainerPort struct {
	Name          string `json:"name,omitempty"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol,omitempty"`
}

// Resources are requests and limits, in Kubernetes' notation.
type Resources struct {
	Requests map[string]string `json:"requests,omitempty"`
	Limits   map[string]string `json:"limits,omitempty"`
}

// SecurityContext is a container's.
type SecurityContext struct {
	Privileged               *bool           `json:"privileged,omitempty"`
	AllowPrivilegeEscalation *bool           `json:"allowPrivilegeEscalation,omitempty"`
	ReadOnlyRootFilesystem   *bool           `json:"readOnlyRootFilesystem,omitempty"`
	RunAsUser                *int64          `json:"runAsUser,omitempty"`
	RunAsGroup               *int64          `json:"runAsGroup,omitempty"`
	RunAsNonRoot             *bool           `json:"runAsNonRoot,omitempty"`
	Capabilities             *CapabilitySet  `json:"capabilities,omitempty"`
	SeccompProfile           *SeccompProfile `json:"seccompProfile,omitempty"`
}

// CapabilitySet is added to and dropped from the runtime's own choice.
type CapabilitySet struct {
	Add  []string `json:"add,omitempty"`
	Drop []string `json:"drop,omitempty"`
}

// SeccompProfile names a profile.
type SeccompProfile struct {
	Type string `json:"type"`
}

// PodStatus is what the cluster says about a pod.
type PodStatus struct {
	Phase                      string            `json:"phase,omitempty"`
	Reason                     string            `json:"reason,omitempty"`
	Message                    string            `json:"message,omitempty"`
	PodIP                      string            `json:"podIP,omitempty"`
	Conditions                 []Condition       `json:"conditions,omitempty"`
	ContainerStatuses          []ContainerStatus `json:"containerStatuses,omitempty"`
	InitContainerStatuses      []ContainerStatus `json:"initContainerStatuses,omitempty"`
	EphemeralContainerStatuses []ContainerStatus `json:"ephemeralContainerStatuses,omitempty"`
}

// Condition is a condition of a pod, a node or a job.
type Condition struct {
	Type    string `json:"type"`
	Status  string `json:"status"`
	Reason  string `json:"reason,omitempty"`
	Message string `json:"message,omitempty"`
}

// ContainerStatus is what the kubelet says about a container.
type ContainerStatus struct {
	Name         string         `json:"name"`
	Ready        bool           `json:"ready"`
	RestartCount int            `json:"restartCount"`
	ContainerID  string         `json:"containerID,omitempty"`
	Image        string         `json:"image,omitempty"`
	State        ContainerState `json:"state"`
	LastState    ContainerState `json:"lastState"`
}

// ContainerState has one of its members set.
type ContainerState struct {
	Waiting    *ContainerReason `json:"waiting,omitempty"`
	Running    *Running         `json:"running,omitempty"`
	Terminated *ContainerReason `json:"terminated,omitempty"`
}

// Running says since when a container runs.
type Running struct {
	StartedAt time.Time `json:"startedAt,omitzero"`
}

// ContainerReason says why a container waits, or how it ended.
type ContainerReason struct {
	Reason   string `json:"reason,omitempty"`
	Message  string `json:"message,omitempty"`
	ExitCode int    `json:"exitCode,omitempty"`
	Signal   int    `json:"signal,omitempty"`
}

// Selector selects pods by their labels.
type Selector struct {
	MatchLabels      map[string]string `json:"matchLabels,omitempty"`
	MatchExpressions []Requirement     `json:"matchExpressions,omitempty"`
}

// Requirement is one expression of a Selector.
type Requirement struct {
	Key      string   `json:"key"`
	Operator string   `json:"operator"`
	Values   []string `json:"values,omitempty"`
}

// Workload is any object that may own pods.
type Workload struct {
	APIVersion string `json:"apiVersion,omitempty"`
	Kind       string `json:"kind,omitempty"`
	Meta       Meta   `json:"metadata"`
	Spec       struct {
		Selector json.RawMessage `json:"selector,omitempty"` // a Selector, or a service's plain map
		Replicas *int            `json:"replicas,omitempty"`
	} `json:"spec"`
	Status struct {
		ReadyReplicas int    `json:"readyReplicas,omitempty"`
		NumberReady   int    `json:"numberReady,omitempty"`
		Active        any    `json:"active,omitempty"`
		Selector      string `json:"selector,omitempty"` // of a Scale
	} `json:"status"`
}

// Job is the agent's.
type Job struct {
	APIVersion string    `json:"apiVersion,omitempty"`
	Kind       string    `json:"kind,omitempty"`
	Meta       Meta      `json:"metadata"`
	Spec       JobSpec   `json:"spec"`
	Status     JobStatus `json:"status,omitzero"`
}

// JobSpec is a Job's specification.
type JobSpec struct {
	BackoffLimit            *int    `json:"backoffLimit,omitempty"`
	ActiveDeadlineSeconds   *int64  `json:"activeDeadlineSeconds,omitempty"`
	TTLSecondsAfterFinished *int    `json:"ttlSecondsAfterFinished,omitempty"`
	Template                PodPart `json:"template"`
}

// PodPart is a pod template.
type PodPart struct {
	Meta Meta    `json:"metadata"`
	Spec PodSpec `json:"spec"`
}

// JobStatus says whether the Job is over.
type JobStatus struct {
	StartTime  *time.Time  `json:"startTime,omitempty"`
	Conditions []Condition `json:"conditions,omitempty"`
	Active     int         `json:"active,omitempty"`
}

// Event is something that the cluster tells about an object.
type Event struct {
	Meta    Meta   `json:"metadata"`
	Type    string `json:"type"`
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

// List is a list of objects.
type List[T any] struct {
	Items []T `json:"items"`
	Meta  struct {
		Continue        string `json:"continue,omitempty"`
		ResourceVersion string `json:"resourceVersion,omitempty"`
	} `json:"metadata"`
}

func has(cs []Condition, kind string) *Condition {
	for i := range cs {
		if cs[i].Type == kind && cs[i].Status == "True" {
			return &cs[i]
		}
	}
	return nil
}

// over says that the pod has run, or was evicted: it stays in the list, and is of no use.
func (p *Pod) over() bool { return p.Status.Phase == "Succeeded" || p.Status.Phase == "Failed" }

// windows says that the pod's containers are for Windows.
func (p *Pod) windows() bool {
	return p.Spec.OS != nil && p.Spec.OS.Name == "windows" || p.Spec.NodeSelector["kubernetes.io/os"] == "windows"
}

// sidecars are the native ones: init containers that go on.
func (p *Pod) sidecars() (out []Container) {
	for _, c := range p.Spec.InitContainers {
		if c.RestartPolicy == "Always" {
			out = append(out, c)
		}
	}
	return out
}

// status is what the kubelet says of a container, a native sidecar too; nil for nothing.
func (p *Pod) status(container string) *ContainerStatus {
	for _, all := range [][]ContainerStatus{p.Status.ContainerStatuses, p.Status.InitContainerStatuses} {
		for i := range all {
			if all[i].Name == container {
				return &all[i]
			}
		}
	}
	return nil
}

func (p *Pod) ownedBy(uid string) bool {
	return slices.ContainsFunc(p.Meta.OwnerReferences, func(o OwnerReference) bool { return o.UID == uid })
}

func ptr[T any](v T) *T { return &v }
