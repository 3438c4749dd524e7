package replay

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// Volume is a backup of the content of a claim's volume.
type Volume struct {
	Backup string    `json:"backup"` // its name
	Taken  time.Time `json:"taken"`
	// Off is how long before the moment of the restore it was taken; negative: after.
	Off time.Duration `json:"off"`
	// Snapshot is what the storage of the recorded cluster has; nil: nothing.
	Snapshot *VolumeSnapshot `json:"snapshot,omitempty"`
	// Files says that there are files which ApplyOptions.Fill can write.
	Files bool `json:"files,omitempty"`
	// Existing says that the claim is there, has Pods perhaps, and gets all its files replaced.
	Existing bool `json:"existing,omitempty"`
	// Size is what its volume had, in bytes.
	Size int64 `json:"size,omitempty"`
}

// VolumeSnapshot is a snapshot that a CSI driver knows by its handle.
type VolumeSnapshot struct {
	Driver string `json:"driver"`
	Handle string `json:"handle"`
	Size   int64  `json:"size,omitempty"` // bytes a volume needs at least
	Class  string `json:"class,omitempty"`
	// Secret, "namespace/name", is the one that the driver wants to delete it, or to tell of one of a group.
	Secret string `json:"secret,omitempty"`
	Mode   string `json:"volumeMode,omitempty"`
	// Group is the handle of the group that it belongs to, GroupClass its VolumeGroupSnapshotClass, Members are those of all that do.
	Group      string   `json:"group,omitempty"`
	GroupClass string   `json:"groupClass,omitempty"`
	Members    []string `json:"members,omitempty"`
}

var (
	claims           = schema.GroupResource{Resource: "persistentvolumeclaims"}
	snapshots        = schema.GroupResource{Group: "snapshot.storage.k8s.io", Resource: "volumesnapshots"}
	groupContents    = schema.GroupResource{Group: "groupsnapshot.storage.k8s.io", Resource: "volumegroupsnapshotcontents"}
	snapshotContents = schema.GroupResource{Group: "snapshot.storage.k8s.io", Resource: "volumesnapshotcontents"}
)

// ErrNoFill is why content is not written where nothing was given that could do it.
var ErrNoFill = errors.New("the content of volumes cannot be written from here: it needs the daemon, or --archive with --identity")

// fillClaims gives claims that the plan makes, and with VolumesInPlace those that are there, their content.
func (p *planner) fillClaims(ctx context.Context) error {
	made := p.madeVolumes()
	for _, it := range p.plan.Items { // more are added to the list, none of them a claim to be made
		if it.Resource != claims {
			continue
		}
		v, ok := p.req.Volumes[cmp.Or(it.From, it.Namespace)+"/"+it.Name]
		switch {
		case !ok:
		case it.makes():
			if err := p.fillNew(ctx, it, v, made[it.key()]); err != nil {
				return err
			}
		case p.req.VolumesInPlace && p.live.objects[it.key()] != nil && !p.live.objects[it.key()].deleting:
			p.fillLive(it, v)
		}
	}
	return p.warnRetained(ctx)
}

// fillNew lets a claim that is made have its content: of a snapshot where the storage that has it makes the volume, and otherwise files.
func (p *planner) fillNew(ctx context.Context, it *Item, v Volume, made *Item) error {
	claim := it.create.object()
	provisioner, err := p.provisioner(ctx, claim.str("spec", "storageClassName"))
	if err != nil {
		return err
	}
	why := ""
	if v.Snapshot != nil {
		why = p.snapshotUnfit(v.Snapshot, provisioner)
	}
	bySnapshot := v.Snapshot != nil && why == ""
	if !bySnapshot && !v.Files {
		p.warn("%s: its backup %s cannot be used: %s", it, v.Backup, why)
		return nil
	}
	if pv := claim.str("spec", "volumeName"); pv != "" {
		if why, err := p.keepsVolume(ctx, it, claim, pv, provisioner); err != nil || why != "" {
			if why != "" {
				p.warn("%s: its backup %s is not used: %s", it, v.Backup, why)
			}
			return err
		}
	}
	p.leaveVolume(it, claim, made)
	if bySnapshot {
		p.fromSnapshot(it, claim, v)
		return nil
	}
	v.Snapshot = nil
	grow(claim, v.Size)
	it.create = pack(claim.json())
	it.Volume = &v
	p.add(&Item{
		Resource: it.Resource, Namespace: it.Namespace, Name: it.Name, From: it.From, Action: ActionFill, served: it.served, Volume: &v,
		Reason: "files of " + v.told(),
	})
	return nil
}

// told names a backup and how far it is from the moment, for people.
func (v *Volume) told() string {
	switch off := v.Off.Round(time.Second); {
	case off < 0:
		return fmt.Sprintf("%s, taken %s after the moment", v.Backup, -off)
	case off == 0:
		return v.Backup + ", taken at the moment"
	default:
		return fmt.Sprintf("%s, taken %s before the moment", v.Backup, off)
	}
}

// snapshotUnfit says why a volume cannot be made of a snapshot in the target.
func (p *planner) snapshotUnfit(s *VolumeSnapshot, provisioner string) string {
	switch {
	case !p.sameCluster:
		return "the snapshot is in the storage of the recorded cluster, and this is another one"
	case provisioner != s.Driver:
		return fmt.Sprintf("the snapshot is one of driver %s, and the claim's storage class has %q", s.Driver, provisioner)
	case s.Group != "" && len(p.target.versions(groupContents)) == 0:
		return "the snapshot belongs to a group, and the cluster does not serve " + groupContents.String()
	case len(p.target.versions(snapshots)) == 0 || len(p.target.versions(snapshotContents)) == 0:
		return "the cluster does not serve " + snapshots.String()
	}
	return ""
}

// provisioner is that of a storage class, of the plan or of the target; empty when it cannot be told.
func (p *planner) provisioner(ctx context.Context, class string) (string, error) {
	if class == "" {
		return "", nil
	}
	for _, it := range p.plan.Items {
		if it.Resource == storageClasses && it.Name == class && it.makes() {
			return it.create.object().str("provisioner"), nil
		}
	}
	r, ok := p.target.version(storageClasses, "v1")
	if !ok {
		return "", nil
	}
	u, err := p.target.get(ctx, r, "", class)
	if err != nil || u == nil {
		return "", nil // without it, nothing is known; a claim that wants it will wait
	}
	return object(u.Object).str("provisioner"), nil
}

// grow makes a claim ask for at least as much as its content needs.
func grow(claim object, bytes int64) {
	asked, err := resource.ParseQuantity(claim.str("spec", "resources", "requests", "storage"))
	if err == nil && asked.Value() < bytes {
		claim.put(resource.NewQuantity(bytes, resource.BinarySI).String(), "spec", "resources", "requests", "storage")
	}
}

// fromSnapshot has a claim made of a snapshot: its handle is imported before, and the objects of that go when the claim is bound.
func (p *planner) fromSnapshot(it *Item, claim object, v Volume) {
	name := fmt.Sprintf("tidemark-%s-%08x", it.Name[:min(len(it.Name), 40)], rand.Uint32())
	content := object{
		"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotContent",
		"metadata": map[string]any{"name": name, "annotations": map[string]any{"snapshot.storage.kubernetes.io/allow-volume-mode-change": "true"}},
		"spec": map[string]any{
			"deletionPolicy": "Retain", "driver": v.Snapshot.Driver, "source": map[string]any{"snapshotHandle": v.Snapshot.Handle},
			"volumeSnapshotRef": map[string]any{"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot", "namespace": it.Namespace, "name": name},
		},
	}
	snapshot := object{
		"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot", "metadata": map[string]any{"name": name, "namespace": it.Namespace},
		"spec": map[string]any{"source": map[string]any{"volumeSnapshotContentName": name}},
	}
	if v.Snapshot.Class != "" {
		content.put(v.Snapshot.Class, "spec", "volumeSnapshotClassName")
		snapshot.put(v.Snapshot.Class, "spec", "volumeSnapshotClassName")
	}
	if namespace, secret, ok := strings.Cut(v.Snapshot.Secret, "/"); ok {
		content.put(secret, "metadata", "annotations", "snapshot.storage.kubernetes.io/deletion-secret-name")
		content.put(namespace, "metadata", "annotations", "snapshot.storage.kubernetes.io/deletion-secret-namespace")
	}
	if v.Snapshot.Mode != "" {
		content.put(v.Snapshot.Mode, "spec", "sourceVolumeMode")
	}
	type made struct {
		gr        schema.GroupResource
		namespace string
		body      object
	}
	all := []made{{snapshotContents, "", content}, {snapshots, it.Namespace, snapshot}}
	if v.Snapshot.Group != "" { // the snapshot controller looks for it
		members := make([]any, len(v.Snapshot.Members))
		for i, m := range v.Snapshot.Members {
			members[i] = m
		}
		served, _ := p.target.version(groupContents, "v1")
		group := object{
			"apiVersion": served.GroupVersion().String(), "kind": "VolumeGroupSnapshotContent", "metadata": map[string]any{"name": name},
			"spec": map[string]any{
				"deletionPolicy": "Retain", "driver": v.Snapshot.Driver, "volumeGroupSnapshotRef": map[string]any{"namespace": it.Namespace, "name": name},
				"source": map[string]any{"groupSnapshotHandles": map[string]any{"volumeGroupSnapshotHandle": v.Snapshot.Group, "volumeSnapshotHandles": members}},
			},
		}
		if v.Snapshot.GroupClass != "" {
			group.put(v.Snapshot.GroupClass, "spec", "volumeGroupSnapshotClassName")
		}
		all = append(all, made{groupContents, "", group})
	}
	for _, made := range all {
		served, _ := p.target.version(made.gr, "v1")
		p.add(&Item{
			Resource: made.gr, Namespace: made.namespace, Name: name, Action: ActionCreate, Reason: "for the content of " + it.String(), served: served,
			create: pack(made.body.json()),
		})
	}
	claim.drop("spec", "dataSourceRef")
	claim.put(map[string]any{"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": name}, "spec", "dataSource")
	grow(claim, max(v.Snapshot.Size, v.Size))
	it.create = pack(claim.json())
	it.Volume = &v
	it.Reason = "with the content of " + v.told()
	p.add(&Item{
		Resource: it.Resource, Namespace: it.Namespace, Name: it.Name, Action: ActionRelease, served: it.served, Volume: &v, Snapshot: name,
		Reason: "takes the objects of its snapshot away once it has its volume",
	})
}

// fillLive has the files of a claim that is there replaced.
func (p *planner) fillLive(it *Item, v Volume) {
	if !v.Files {
		p.warn("%s: is there, and its backup %s is a snapshot, which only a new claim can be made of: restore it beside this one with --namespace-mappings %s:NEW, or delete its workload and then the claim, with all that it holds, and run the restore again",
			it, v.Backup, cmp.Or(it.From, it.Namespace))
		return
	}
	v.Existing, v.Snapshot = true, nil
	p.warn("%s: all its files are replaced by those of %s, under whatever uses it: scale its workload down first unless that is meant; an undo does not bring them back", it, v.told())
	p.add(&Item{
		Resource: it.Resource, Namespace: it.Namespace, Name: it.Name, From: it.From, Action: ActionFill, served: it.served, Volume: &v,
		Reason: "replaces its files by those of " + v.told(),
	})
}

// warnOwnership tells of Pods whose kubelet will change what was restored.
func (p *planner) warnOwnership() {
	filled := false
	for _, it := range p.plan.Items {
		filled = filled || it.Volume != nil
	}
	if !filled {
		return
	}
	for _, it := range p.plan.Items {
		if !it.makes() || !workloads[it.Resource.String()] {
			continue
		}
		spec := podSpec(it.create.object())
		if spec.at("securityContext", "fsGroup") == nil || spec.str("securityContext", "fsGroupChangePolicy") == "OnRootMismatch" || !p.usesFilled(it, spec) {
			continue
		}
		p.warn("%s: its fsGroup has the kubelet change group and mode of all files that come back, which databases such as PostgreSQL refuse: set fsGroupChangePolicy: OnRootMismatch, by --transform for one", it)
	}
}

// workloads are the resources whose objects have a Pod, or make some.
var workloads = map[string]bool{
	"pods": true, "replicationcontrollers": true, "replicasets.apps": true, "statefulsets.apps": true, "deployments.apps": true, "daemonsets.apps": true, "jobs.batch": true, "cronjobs.batch": true,
}

// podSpec is the spec of the Pods of a workload.
func podSpec(o object) object {
	for _, path := range [][]string{{"spec", "template", "spec"}, {"spec", "jobTemplate", "spec", "template", "spec"}} {
		if s := o.sub(path...); s != nil {
			return s
		}
	}
	return o.sub("spec")
}

func (p *planner) usesFilled(it *Item, spec object) bool {
	for _, c := range p.plan.Items {
		if c.Volume != nil && c.Resource == claims && c.Namespace == it.Namespace && usesClaim(it.Name, it.create.object(), spec, c.Name) {
			return true
		}
	}
	return false
}

// usesClaim reports whether the Pods of a workload mount a claim.
func usesClaim(name string, o, spec object, claim string) bool {
	for _, v := range spec.objects("volumes") {
		if v.str("persistentVolumeClaim", "claimName") == claim || v.sub("ephemeral") != nil && claim == name+"-"+v.str("name") {
			return true
		}
	}
	for _, t := range o.objects("spec", "volumeClaimTemplates") {
		if strings.HasPrefix(claim, t.str("metadata", "name")+"-"+name+"-") {
			return true
		}
	}
	return false
}

// Filling is what ApplyOptions.Fill is to do.
type Filling struct {
	Namespace, Claim string
	Volume           Volume
}

// writeClaim makes a claim that gets content. When that fails, however it does, the claim is missing, or is there without its content.
func (a *applier) writeClaim(ctx context.Context, it *Item) (waited time.Duration, err error) {
	if it.Volume.Snapshot == nil {
		waited, err = a.writeItem(ctx, it)
	} else {
		start := time.Now()
		err = a.writeOfSnapshot(ctx, it)
		waited = time.Since(start)
	}
	// What is left alone is somebody else's, with content that is theirs.
	if err != nil && !errors.As(err, new(*otherwise)) && !errors.As(err, new(*leftAlone)) {
		a.lose(it, err)
	}
	return waited, err
}

// fill writes the content of a claim.
func (a *applier) fill(ctx context.Context, it *Item) error {
	if !it.Volume.Existing {
		if err := a.fillable(ctx, it); err != nil {
			return err
		}
	}
	err := ErrNoFill
	if a.o.Fill != nil {
		err = a.o.Fill(ctx, Filling{it.Namespace, it.Name, *it.Volume}, func(what string) { a.waiting(it.String() + ": " + what) })
	}
	if err != nil && !it.Volume.Existing {
		a.lose(it, err)
	}
	return err
}

// fillable says why a claim must not be filled: everything that is in it would go, so it has to be one that this restore made.
func (a *applier) fillable(ctx context.Context, it *Item) error {
	uid, made := a.madeOf(it)
	if uid == "" {
		return errors.New("was not made, so that it is not filled") // a failure, so that it is tried again with the claim
	}
	u, err := a.target.get(ctx, it.served, it.Namespace, it.Name)
	if err == nil && u == nil {
		err = errors.New("was deleted since the restore made it: run the restore again, with a new plan")
	}
	if err != nil {
		a.lose(it, err)
		return err
	}
	if made == "" || string(u.GetUID()) != uid {
		return &leftAlone{"was made by somebody else meanwhile: it is used with what it holds, and not filled; 'tidemark volumes restore' writes a backup into a claim that is there"}
	}
	return nil
}

// hollow says why a workload must not be made: it would begin on a claim that has not got its content, and take that for a new one.
func (a *applier) hollow(it *Item) error {
	if !workloads[it.Resource.String()] || it.create == nil {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.empty) == 0 {
		return nil
	}
	o := it.create.object()
	for k := range a.empty {
		if k.namespace == it.Namespace && usesClaim(it.Name, o, podSpec(o), k.name) {
			return fmt.Errorf("its claim %s did not get its content, and it would begin with an empty one: see why, and resume the restore", k.name)
		}
	}
	return nil
}

// release waits until a claim has its volume, and takes away what it was made of.
func (a *applier) release(ctx context.Context, it *Item) error {
	if a.uid(it.key()) == "" {
		if a.isLost(it) {
			if err := a.removeImport(ctx, it); err != nil {
				return err
			}
			return errors.New("was not made: what it was to be made of was taken away again")
		}
		// A failure, so that it is tried again with the claim.
		return fmt.Errorf("was not made: %s stay until the restore is gone on with, or undone", it.snapshotObjects())
	}
	bound, err := a.until(ctx, it.String()+" to get its volume", func(ctx context.Context) (bool, error) {
		u, err := a.target.get(ctx, it.served, it.Namespace, it.Name)
		if err != nil || u == nil {
			return u == nil, err
		}
		return object(u.Object).str("status", "phase") == "Bound", nil
	})
	if err != nil {
		return err
	}
	if !bound {
		return &leftAlone{fmt.Sprintf("has no volume yet after %s, so that %s stay: delete them when it has one", a.o.Wait, it.snapshotObjects())}
	}
	return a.removeImport(ctx, it)
}

// removeImport takes away the objects that a claim was to be made of. When it was not, they are noted as not made, so that going on with the restore makes them anew
// and asks the driver again.
func (a *applier) removeImport(ctx context.Context, it *Item) error {
	if a.isEmpty(it) && !a.unmake(it) {
		return ErrStopped
	}
	for _, gr := range it.imports() {
		served, ok := a.target.version(gr, "v1")
		if !ok {
			continue
		}
		if err := a.remove(ctx, served, it.importedTo(gr), it.Snapshot); err != nil {
			return err
		}
		if mark := beingDeleted[gr]; mark != "" {
			a.letGo(ctx, served, it.Snapshot, mark)
		}
	}
	return nil
}

// beingDeleted are the annotations by which the driver's side knows that it may let go of a content.
var beingDeleted = map[schema.GroupResource]string{
	snapshotContents: "snapshot.storage.kubernetes.io/volumesnapshot-being-deleted",
	groupContents:    "groupsnapshot.storage.kubernetes.io/volumegroupsnapshot-being-deleted",
}

// letGo sees to it that a content that is deleted goes. The snapshot controller marks it when its object goes, but not when that went before the controller
// had protected it: the driver's side then waits for the mark for ever. What the content stands for stays (deletionPolicy Retain).
func (a *applier) letGo(ctx context.Context, served servedResource, name, mark string) {
	patch, _ := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]string{mark: "yes"}}})
	for range 20 {
		u, err := a.target.get(ctx, served, "", name)
		if err != nil || u == nil || u.GetDeletionTimestamp() == nil {
			return
		}
		if u.GetAnnotations()[mark] == "" { // other writers may take it away again
			_, _ = a.target.client(served, "").Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: fieldManager})
		}
		if !sleep(ctx, pollEvery) {
			return
		}
	}
}

// imports are the resources of the objects that a claim of a snapshot is made of, in the order in which they go.
func (it *Item) imports() []schema.GroupResource {
	if it.Volume.Snapshot.Group == "" {
		return []schema.GroupResource{snapshots, snapshotContents}
	}
	return []schema.GroupResource{groupContents, snapshots, snapshotContents}
}

// importedTo is the namespace of such an object.
func (it *Item) importedTo(gr schema.GroupResource) string {
	if gr == snapshots {
		return it.Namespace
	}
	return ""
}

// snapshotObjects names what a claim is made of, for people.
func (it *Item) snapshotObjects() string {
	if it.Volume.Snapshot.Group != "" {
		return fmt.Sprintf("VolumeSnapshot, VolumeSnapshotContent and VolumeGroupSnapshotContent %s", it.Snapshot)
	}
	return fmt.Sprintf("VolumeSnapshot and VolumeSnapshotContent %s", it.Snapshot)
}
