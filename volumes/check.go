package volumes

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tidemark-backup/tidemark/volumes/csi"
	"github.com/tidemark-backup/tidemark/volumes/kube"
	"github.com/tidemark-backup/tidemark/volumes/mover"
	"github.com/tidemark-backup/tidemark/volumes/repository"
)

// CheckRequest asks what works with storage classes.
type CheckRequest struct {
	Classes   []string `json:"classes,omitempty"` // empty: all
	Namespace string   `json:"namespace"`         // where the claims and Pods of the check are made
	// Limit is how long one step may take. Default: DefaultCheckTime.
	Limit time.Duration `json:"limit,omitempty"`
}

// Checked is what works with one storage class.
type Checked struct {
	Class  string      `json:"class"`
	Driver string      `json:"driver"`
	Steps  []CheckStep `json:"steps"`
}

// CheckStep is one thing that was tried.
type CheckStep struct {
	What     string `json:"what"`
	Duration string `json:"duration"`
	// Error says why it does not work; empty: it does. LeftOut says why it was not tried.
	Error   string `json:"error,omitempty"`
	LeftOut string `json:"leftOut,omitempty"`
}

// Works reports whether nothing failed.
func (c *Checked) Works() bool {
	return !slices.ContainsFunc(c.Steps, func(s CheckStep) bool { return s.Error != "" })
}

// DefaultCheckTime is how long one step of a check may take.
const DefaultCheckTime = 3 * time.Minute

// Check tries, for storage classes, all that backups and restores do: a small claim is made and filled by a mover, a snapshot of it taken, a claim made of the
// snapshot, and that is read by a mover. All of it is removed again, and none of it recorded.
func (k *Keeper) Check(ctx context.Context, q CheckRequest, progress func(repository.Progress)) ([]Checked, error) {
	if k.o.Cluster == nil {
		return nil, errNoCluster
	}
	if err := k.awaitSettled(ctx); err != nil {
		return nil, err
	}
	all, err := kube.List[storagev1.StorageClass](ctx, k.o.Cluster.Client, kube.StorageClasses, "", "")
	if err != nil {
		return nil, err
	}
	for _, name := range q.Classes {
		if !slices.ContainsFunc(all, func(c *storagev1.StorageClass) bool { return c.Name == name }) {
			return nil, fmt.Errorf("%w: there is no StorageClass %q", ErrRequest, name)
		}
	}
	r, err := k.o.Open(ctx, true)
	if err != nil {
		return nil, err
	}
	defer k.close(ctx, r)
	out := []Checked{}
	for _, class := range all {
		if len(q.Classes) > 0 && !slices.Contains(q.Classes, class.Name) {
			continue
		}
		c := &check{k: k, r: r, class: class, namespace: q.Namespace, limit: cmp.Or(q.Limit, DefaultCheckTime), name: backupName("check", k.o.Clock()), progress: progress}
		out = append(out, Checked{Class: class.Name, Driver: class.Provisioner, Steps: c.run(ctx)})
		if ctx.Err() != nil {
			return out, context.Cause(ctx)
		}
	}
	return out, nil
}

// The first claim of a check is its record: it is made before all else, tells of the snapshot, and goes last. By it, the next daemon finds what one that
// died left of a check.
const (
	checkLabel       = "tidemark.dev/check"    // its value is whose check it is
	handleAnnotation = "tidemark.dev/snapshot" // the snapshot's handle as JSON
)

// check is the check of one class.
type check struct {
	k               *Keeper
	r               *repository.Repository
	class           *storagev1.StorageClass
	namespace, name string
	limit           time.Duration // for a step
	progress        func(repository.Progress)
	steps           []CheckStep
	claim           *corev1.PersistentVolumeClaim
	handle          *csi.Handle
	text            string   // what is written
	ids             []string // in the repository
}

// try does a step, unless one before it failed; false when it failed or was left out.
func (c *check) try(ctx context.Context, what string, do func(context.Context) error) bool {
	if c.progress != nil {
		c.progress(repository.Progress{Step: c.class.Name + ": " + what})
	}
	began := time.Now()
	limited, cancel := context.WithTimeoutCause(ctx, c.limit, fmt.Errorf("it took longer than %s", c.limit))
	defer cancel()
	s := CheckStep{What: what}
	err := do(limited)
	s.Duration = time.Since(began).Round(10 * time.Millisecond).String()
	var left *leftOut
	switch {
	case errors.As(err, &left):
		s.LeftOut = left.why
	case err != nil:
		s.Error = err.Error()
	}
	c.steps = append(c.steps, s)
	return err == nil
}

const (
	fillStep = "make a volume and fill it from the repository"
	// byHand is the provisioner of classes whose volumes nobody makes.
	byHand = "kubernetes.io/no-provisioner"
)

// leftOut is why a step does not apply.
type leftOut struct{ why string }

// Error implements error.
func (l *leftOut) Error() string { return l.why }

func (c *check) run(ctx context.Context) []CheckStep {
	if c.class.Provisioner == byHand {
		return []CheckStep{{What: fillStep, LeftOut: "volumes of this class are made by hand, and backed up as files"}}
	}
	c.tryAll(ctx)
	c.limit = dropTime // whatever the others may take
	c.try(context.WithoutCancel(ctx), "clean up", c.clean)
	return c.steps
}

func (c *check) tryAll(ctx context.Context) {
	c.text = rand.Text()
	if c.try(ctx, fillStep, func(ctx context.Context) error { return c.explain(ctx, c.fill(ctx)) }) && c.try(ctx, "take a snapshot", c.snapshot) {
		c.try(ctx, "make a volume of the snapshot and read it into the repository", c.readBack)
		return
	}
	if last := c.steps[len(c.steps)-1]; last.LeftOut != "" {
		c.try(ctx, "read the volume into the repository", c.readLive)
	}
}

// selectedNode is what the scheduler notes on a claim whose volume is to be made for a node.
const selectedNode = "volume.kubernetes.io/selected-node"

// explain adds to the error of a claim that was to be filled that it has no volume, if that is so.
func (c *check) explain(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTime)
	defer cancel()
	claim, readErr := kube.Get[corev1.PersistentVolumeClaim](last, c.k.o.Cluster.Client, kube.Claims, c.namespace, c.name)
	if readErr != nil || claim == nil || claim.Spec.VolumeName != "" {
		return err
	}
	if m := c.class.VolumeBindingMode; m != nil && *m == storagev1.VolumeBindingWaitForFirstConsumer && claim.Annotations[selectedNode] == "" {
		return err // no node was found for the Pod, and nobody asked for a volume
	}
	why := "does its driver run?"
	if said := c.k.o.Cluster.Client.Complaint(last, c.namespace, "PersistentVolumeClaim", c.name); said != "" {
		why = said
	}
	return fmt.Errorf("%w; the provisioner %s has made no volume: %s", err, c.class.Provisioner, why)
}

// fill makes a claim and writes a file into it, which tries the mover and the way to the repository as well.
func (c *check) fill(ctx context.Context) error {
	mode := corev1.PersistentVolumeFilesystem
	c.claim = &corev1.PersistentVolumeClaim{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolumeClaim"},
		ObjectMeta: metav1.ObjectMeta{Name: c.name, Namespace: c.namespace, Labels: map[string]string{kube.Label: c.name, checkLabel: c.k.o.Cluster.Mover.Owner()}},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, StorageClassName: &c.class.Name, VolumeMode: &mode,
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
		},
	}
	if _, err := kube.Create(ctx, c.k.o.Cluster.Client, kube.Claims, c.namespace, c.claim); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "tidemark-check-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.WriteFile(filepath.Join(dir, "probe"), []byte(c.text), 0o600); err != nil {
		return err
	}
	b, err := c.r.Back(ctx, repository.Source{Name: writtenBy(c.name)}, dir, repository.BackupOptions{Description: "tidemark check"})
	if err != nil {
		return err
	}
	c.ids = append(c.ids, b.ID)
	_, err = c.move(ctx, c.name, mover.Job{Kind: mover.Restore, ID: b.ID})
	return err
}

func (c *check) move(ctx context.Context, claim string, job mover.Job) (*mover.Outcome, error) {
	job.Cluster, job.Password = c.r.Cluster(), c.r.Password()
	return c.k.o.Cluster.Mover.Run(ctx, c.name, job, mover.Place{Namespace: c.namespace, Claim: claim}, c.r.Store(), nil, c.progress)
}

func (c *check) snapshot(ctx context.Context) error {
	class, err := csi.Class(ctx, c.k.o.Cluster.Client, c.class.Provisioner, c.claim, "")
	if errors.Is(err, csi.ErrNoClass) {
		return &leftOut{err.Error()}
	}
	if err != nil {
		return err
	}
	t, err := csi.Take(ctx, c.k.o.Cluster.Client, c.namespace, c.name, c.name, class)
	if err != nil {
		return err
	}
	if err := t.Ready(ctx, c.k.o.Cluster.Client); err != nil {
		return errors.Join(err, t.Drop(context.WithoutCancel(ctx), c.k.o.Cluster.Client))
	}
	handle, err := json.Marshal(t.Handle)
	if err != nil {
		return err
	}
	c.handle = &t.Handle
	err = c.k.o.Cluster.Client.Patch(ctx, kube.Claims, c.namespace, c.name, map[string]any{"metadata": map[string]any{"annotations": map[string]any{handleAnnotation: string(handle)}}})
	if err != nil {
		return err
	}
	return t.Keep(ctx, c.k.o.Cluster.Client)
}

// copyName is the claim that is made of the snapshot.
func (c *check) copyName() string { return copyOf(c.name) }

func copyOf(check string) string { return check + "-c" }

// The names of a check's content in the repository.
func writtenBy(check string) string { return "/" + check }
func readBy(check string) string    { return "/" + check + "-read" }

func (c *check) readBack(ctx context.Context) error {
	cl := c.k.o.Cluster.Client
	if err := csi.Import(ctx, cl, *c.handle, c.namespace, c.copyName()); err != nil {
		return err
	}
	if _, err := kube.Create(ctx, cl, kube.Claims, c.namespace, csi.Claim(&c.claim.Spec, *c.handle, c.namespace, c.copyName(), c.copyName(), false)); err != nil {
		return err
	}
	return c.read(ctx, c.copyName())
}

func (c *check) readLive(ctx context.Context) error { return c.read(ctx, c.name) }

// read backs a claim up and compares what the repository has with what was written.
func (c *check) read(ctx context.Context, claim string) error {
	o, err := c.move(ctx, claim, mover.Job{Kind: mover.Backup, Source: repository.Source{Name: readBy(c.name)}, Description: "tidemark check"})
	if err != nil {
		return err
	}
	c.ids = append(c.ids, o.Result.ID)
	var have bytes.Buffer
	if err := c.r.Read(ctx, o.Result.ID, "probe", &have); err != nil {
		return err
	}
	if have.String() != c.text {
		return errors.New("what was read is not what was written")
	}
	return nil
}

func (c *check) clean(ctx context.Context) error {
	return errors.Join(c.r.Forget(ctx, c.ids...), c.k.removeCheck(ctx, c.namespace, c.name, c.handle))
}

// removeCheck removes what a check made in the cluster and in its storage. Its first claim stays when that cannot all be done, so that it is tried again.
func (k *Keeper) removeCheck(ctx context.Context, namespace, name string, handle *csi.Handle) error {
	cl := k.o.Cluster.Client
	err := errors.Join(csi.DropClaim(ctx, cl, namespace, copyOf(name)), csi.Sweep(ctx, cl, namespace, copyOf(name)), csi.Sweep(ctx, cl, namespace, name))
	if err == nil && handle != nil {
		err = csi.Delete(ctx, cl, *handle, name)
	}
	if err != nil {
		return err
	}
	return csi.DropClaim(ctx, cl, namespace, name)
}

// settleChecks removes what a daemon that died left of checks.
func (k *Keeper) settleChecks(ctx context.Context) error {
	claims, err := kube.List[corev1.PersistentVolumeClaim](ctx, k.o.Cluster.Client, kube.Claims, "", checkLabel+"="+k.o.Cluster.Mover.Owner())
	if err != nil || len(claims) == 0 {
		return err
	}
	for _, claim := range claims {
		if err := k.settleCheck(ctx, claim); err != nil { // a driver that is gone must not stop all backups
			k.o.Logger.Warn("what a check that was cut off left cannot be removed; the next daemon tries it again", zap.String("claim", claim.Namespace+"/"+claim.Name), zap.Error(err))
		}
	}
	return nil
}

func (k *Keeper) settleCheck(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	ctx, cancel := context.WithTimeout(ctx, dropTime)
	defer cancel()
	var handle *csi.Handle
	if text := claim.Annotations[handleAnnotation]; text != "" {
		if err := json.Unmarshal([]byte(text), &handle); err != nil {
			return fmt.Errorf("annotation %s: %w", handleAnnotation, err)
		}
	}
	if err := k.forgetCheck(ctx, claim.Name); err != nil {
		return err
	}
	return k.removeCheck(ctx, claim.Namespace, claim.Name, handle)
}

// forgetCheck removes what a check has in the repository.
func (k *Keeper) forgetCheck(ctx context.Context, name string) error {
	r, err := k.existing(ctx)
	if r == nil {
		return err
	}
	defer k.close(ctx, r)
	stored, err := r.List(ctx)
	if err != nil {
		return err
	}
	var ids []string
	for _, s := range stored {
		if s.Source.Name == writtenBy(name) || s.Source.Name == readBy(name) {
			ids = append(ids, s.ID)
		}
	}
	return r.Forget(ctx, ids...)
}

// Text is a check in some lines, for people.
func (c *Checked) Text() string {
	var b strings.Builder
	verdict := "works"
	switch {
	case !c.Works():
		verdict = "DOES NOT WORK"
	case !slices.ContainsFunc(c.Steps, func(s CheckStep) bool { return s.LeftOut == "" }):
		verdict = "not tried"
	}
	fmt.Fprintf(&b, "%s (%s): %s\n", c.Class, c.Driver, verdict)
	for _, s := range c.Steps {
		how := "ok, " + s.Duration
		switch {
		case s.Error != "":
			how = "FAILED: " + s.Error
		case s.LeftOut != "":
			how = "left out: " + s.LeftOut
		}
		fmt.Fprintf(&b, "  %s: %s\n", s.What, how)
	}
	return b.String()
}
