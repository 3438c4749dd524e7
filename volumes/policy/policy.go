// Package policy says what is to be done with each volume: from a configuration's policies, from Velero's volume policies, and
// from Velero's annotations on Pods. It only computes.
package policy

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"
)

// Action is what is done with a volume.
type Action string

// The actions.
const (
	// Auto is a snapshot where the driver can take one, and its files otherwise.
	Auto Action = "auto"
	// Skip leaves it out.
	Skip Action = "skip"
	// Snapshot has the storage system take a snapshot, and keep it.
	Snapshot Action = "snapshot"
	// Kopia reads the files of the volume as it is used.
	Kopia Action = "kopia"
	// Move reads the files of a snapshot, which is deleted afterwards unless it is to be kept.
	Move Action = "snapshot-then-kopia"
)

// ParseAction reads an action; nothing is Auto, and Velero's fs-backup is Kopia.
func ParseAction(text string) (Action, error) {
	switch a := Action(text); a {
	case "":
		return Auto, nil
	case "fs-backup":
		return Kopia, nil
	case Auto, Skip, Snapshot, Kopia, Move:
		return a, nil
	}
	return "", fmt.Errorf("%q is no action for volumes: want auto, skip, snapshot, kopia or snapshot-then-kopia", text)
}

// Group says which claims are taken at one instant.
type Group string

const (
	// GroupLabel takes those together that have the same value of a label; it is the default.
	GroupLabel Group = "label"
	// GroupPod also takes those together that one Pod uses.
	GroupPod Group = "pod"
)

// ParseGroup reads a group; nothing is none.
func ParseGroup(text string) (Group, error) {
	switch g := Group(text); g {
	case "", GroupLabel, GroupPod:
		return g, nil
	}
	return "", fmt.Errorf("%q does not say which claims belong together: want label or pod", text)
}

// Volume is what is known of a volume when its action is chosen.
type Volume struct {
	Claim *corev1.PersistentVolumeClaim
	// PV is its PersistentVolume; nil while it has none.
	PV *corev1.PersistentVolume
	// Pods are those that use it.
	Pods []*corev1.Pod
}

// Capacity is how large it is, in bytes.
func (v *Volume) Capacity() resource.Quantity {
	if v.PV != nil {
		return v.PV.Spec.Capacity[corev1.ResourceStorage]
	}
	return v.Claim.Spec.Resources.Requests[corev1.ResourceStorage]
}

// Driver is the CSI driver of the volume; empty for other kinds.
func (v *Volume) Driver() string {
	if v.PV == nil || v.PV.Spec.CSI == nil {
		return ""
	}
	return v.PV.Spec.CSI.Driver
}

// Class is its StorageClass.
func (v *Volume) Class() string {
	if v.Claim.Spec.StorageClassName == nil {
		return ""
	}
	return *v.Claim.Spec.StorageClassName
}

// Policy is one policy of a configuration: what is done with the volumes that it is for.
type Policy struct {
	Name string
	// Namespaces, Selector (of claims) and StorageClasses say which volumes; empty: all.
	Namespaces     []string
	Selector       labels.Selector
	StorageClasses []string
	Action         Action
	// KeepSnapshots keeps the snapshot of Move as well.
	KeepSnapshots bool
	// SnapshotClass is the VolumeSnapshotClass to use. Default: see csi.Class.
	SnapshotClass string
	Group         Group
}

// Covers reports whether a policy is for a volume.
func (p *Policy) Covers(v *Volume) bool {
	return (len(p.Namespaces) == 0 || slices.Contains(p.Namespaces, v.Claim.Namespace)) &&
		(len(p.StorageClasses) == 0 || slices.Contains(p.StorageClasses, v.Class())) &&
		(p.Selector == nil || p.Selector.Matches(labels.Set(v.Claim.Labels)))
}

// Choice is what is done with a volume, and who says so.
type Choice struct {
	Action        Action
	KeepSnapshots bool
	SnapshotClass string
	Group         Group
	Reason        string
}

// Choose says what is done with a volume. The first that has an opinion decides: the label velero.io/exclude-from-backup, Velero's annotations on the
// Pods that use it, Velero's volume policies, the policies in their order. Nobody: Auto.
func Choose(v *Volume, policies []Policy, velero []*Velero) Choice {
	if v.Claim.Labels["velero.io/exclude-from-backup"] == "true" {
		return Choice{Action: Skip, Reason: "label velero.io/exclude-from-backup"}
	}
	c, found := annotated(v)
	for _, file := range velero {
		if found {
			break
		}
		c, found = file.choose(v)
	}
	for i := range policies {
		p := &policies[i]
		if !p.Covers(v) {
			continue
		}
		if !found {
			c, found = Choice{Action: p.Action, Reason: "policy " + p.Name}, true
		}
		c.KeepSnapshots, c.SnapshotClass, c.Group = p.KeepSnapshots, p.SnapshotClass, p.Group
		break
	}
	if !found {
		c.Action, c.Reason = Auto, "no policy is for it"
	}
	return c
}

// annotated is what the annotations of Pods say, by which Velero's users choose volumes for file system backups.
func annotated(v *Volume) (Choice, bool) {
	const in, out = "backup.velero.io/backup-volumes", "backup.velero.io/backup-volumes-excludes"
	for _, p := range v.Pods {
		for _, pv := range p.Spec.Volumes {
			if pv.PersistentVolumeClaim == nil || pv.PersistentVolumeClaim.ClaimName != v.Claim.Name {
				continue
			}
			if lists(p.Annotations[out], pv.Name) {
				return Choice{Action: Skip, Reason: fmt.Sprintf("annotation %s of Pod %s", out, p.Name)}, true
			}
			if lists(p.Annotations[in], pv.Name) {
				return Choice{Action: Kopia, Reason: fmt.Sprintf("annotation %s of Pod %s", in, p.Name)}, true
			}
		}
	}
	return Choice{}, false
}

func lists(list, name string) bool {
	for part := range strings.SplitSeq(list, ",") {
		if strings.TrimSpace(part) == name {
			return true
		}
	}
	return false
}

// Velero is a file of Velero's volume policies.
type Velero struct {
	Version  string         `json:"version"`
	Policies []veleroPolicy `json:"volumePolicies"`
	// Not ours: it chooses objects.
	IncludeExclude map[string]any `json:"includeExcludePolicy,omitempty"`
}

type veleroPolicy struct {
	Conditions veleroConditions `json:"conditions"`
	Action     struct {
		Type       string         `json:"type"`
		Parameters map[string]any `json:"parameters,omitempty"`
	} `json:"action"`
	low, high *resource.Quantity
	action    Action
}

type veleroConditions struct {
	Capacity     string   `json:"capacity,omitempty"`
	StorageClass []string `json:"storageClass,omitempty"`
	CSI          *struct {
		Driver           string            `json:"driver"`
		VolumeAttributes map[string]string `json:"volumeAttributes,omitempty"`
	} `json:"csi,omitempty"`
	NFS *struct {
		Server string `json:"server,omitempty"`
		Path   string `json:"path,omitempty"`
	} `json:"nfs,omitempty"`
	VolumeTypes []string          `json:"volumeTypes,omitempty"`
	Labels      map[string]string `json:"pvcLabels,omitempty"`
	Phase       []string          `json:"pvcPhase,omitempty"`
	Mode        string            `json:"pvcVolumeMode,omitempty"`
	AccessModes []string          `json:"pvcAccessModes,omitempty"`
}

// ParseVelero reads a file of volume policies, or a ConfigMap that holds one, as Velero's users have it.
func ParseVelero(text []byte) (*Velero, error) {
	var configMap corev1.ConfigMap
	if err := yaml.Unmarshal(text, &configMap); err == nil && configMap.Kind == "ConfigMap" {
		if len(configMap.Data) != 1 {
			return nil, fmt.Errorf("volume policies: the ConfigMap has %d keys, want one", len(configMap.Data))
		}
		for _, data := range configMap.Data {
			text = []byte(data)
		}
	}
	v := &Velero{}
	if err := yaml.UnmarshalStrict(text, v); err != nil {
		return nil, fmt.Errorf("volume policies: %w", err)
	}
	if v.Version != "v1" {
		return nil, fmt.Errorf("volume policies: version %q is not v1", v.Version)
	}
	for i := range v.Policies {
		p := &v.Policies[i]
		if p.Action.Type == "" || p.Action.Type == "custom" {
			return nil, fmt.Errorf("volume policies: policy %d: action %q is not understood: want skip, snapshot or fs-backup", i+1, p.Action.Type)
		}
		var err error
		if p.action, err = ParseAction(p.Action.Type); err != nil {
			return nil, fmt.Errorf("volume policies: policy %d: %w", i+1, err)
		}
		if p.low, p.high, err = span(p.Conditions.Capacity); err != nil {
			return nil, fmt.Errorf("volume policies: policy %d: %w", i+1, err)
		}
	}
	return v, nil
}

// span reads "10Gi,100Gi"; either side may be left out.
func span(text string) (low, high *resource.Quantity, err error) {
	if text == "" {
		return nil, nil, nil
	}
	from, to, ok := strings.Cut(text, ",")
	if !ok {
		return nil, nil, fmt.Errorf("capacity %q: want two sizes with a comma between", text)
	}
	for part, into := range map[string]**resource.Quantity{from: &low, to: &high} {
		if part = strings.TrimSpace(part); part == "" || part == "0" && into == &high {
			continue
		}
		q, err := resource.ParseQuantity(part)
		if err != nil {
			return nil, nil, fmt.Errorf("capacity %q: %w", text, err)
		}
		*into = &q
	}
	return low, high, nil
}

func (f *Velero) choose(v *Volume) (Choice, bool) {
	for i := range f.Policies {
		if p := &f.Policies[i]; p.fits(v) {
			return Choice{Action: p.action, Reason: fmt.Sprintf("volume policy %d", i+1)}, true
		}
	}
	return Choice{}, false
}

// fits reports whether all conditions of a policy hold.
func (p *veleroPolicy) fits(v *Volume) bool {
	c := &p.Conditions
	size := v.Capacity()
	if p.low != nil && size.Cmp(*p.low) < 0 || p.high != nil && size.Cmp(*p.high) > 0 {
		return false
	}
	if len(c.StorageClass) > 0 && !slices.Contains(c.StorageClass, v.Class()) {
		return false
	}
	if c.CSI != nil {
		if v.Driver() != c.CSI.Driver {
			return false
		}
		for k, want := range c.CSI.VolumeAttributes {
			if v.PV.Spec.CSI.VolumeAttributes[k] != want {
				return false
			}
		}
	}
	if c.NFS != nil {
		if v.PV == nil || v.PV.Spec.NFS == nil || c.NFS.Server != "" && c.NFS.Server != v.PV.Spec.NFS.Server || c.NFS.Path != "" && c.NFS.Path != v.PV.Spec.NFS.Path {
			return false
		}
	}
	if len(c.VolumeTypes) > 0 && !slices.Contains(c.VolumeTypes, kind(v)) {
		return false
	}
	for k, want := range c.Labels {
		if have, ok := v.Claim.Labels[k]; !ok || have != want {
			return false
		}
	}
	if len(c.Phase) > 0 && !slices.Contains(c.Phase, string(v.Claim.Status.Phase)) {
		return false
	}
	if c.Mode != "" && (v.Claim.Spec.VolumeMode == nil || string(*v.Claim.Spec.VolumeMode) != c.Mode) {
		return false
	}
	for _, m := range c.AccessModes {
		if !slices.Contains(v.Claim.Spec.AccessModes, corev1.PersistentVolumeAccessMode(m)) {
			return false
		}
	}
	return true
}

// kind names the kind of volume as Velero does.
func kind(v *Volume) string {
	if v.PV == nil {
		return ""
	}
	switch s := v.PV.Spec.PersistentVolumeSource; {
	case s.CSI != nil:
		return "csi"
	case s.NFS != nil:
		return "nfs"
	case s.HostPath != nil:
		return "hostPath"
	case s.Local != nil:
		return "local"
	case s.ISCSI != nil:
		return "iscsi"
	case s.FC != nil:
		return "fc"
	case s.CephFS != nil:
		return "cephfs"
	case s.RBD != nil:
		return "rbd"
	}
	return ""
}
