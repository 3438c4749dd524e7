package mover

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"sigs.k8s.io/yaml"

	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/volumes/kube"
	"github.com/tidemark-backup/tidemark/volumes/repository"
)

// Settings say how the Pods of movers are made.
type Settings struct {
	// Image has the program tidemark in its PATH.
	Image string
	// Pod is merged into the Pods as a strategic merge patch: resources, affinity, tolerations, security contexts, anything. The container's
	// name is "mover". A Pod that has to be on the node of a workload stays there, and tolerates it. JSON.
	Pod []byte
	// Owner tells whose movers they are: those of the same owner are swept when it starts.
	Owner string
	// StartTimeout is how long a Pod may take until its container runs. Default: DefaultStartTime.
	StartTimeout time.Duration
	// Silence is how long a mover may be silent until it counts as lost. Default: 3 minutes.
	Silence time.Duration
	// Checkpoint is how often a backup is made whole as far as it is, see repository.BackupOptions.
	Checkpoint time.Duration
}

// DefaultStartTime is how long a mover's Pod may take until it begins: a node may have to be made for it.
const DefaultStartTime = 10 * time.Minute

// ParsePod reads a patch of Pods, as YAML, and tries it.
func ParsePod(text []byte) ([]byte, error) {
	b, err := yaml.YAMLToJSON(text)
	if err != nil {
		return nil, fmt.Errorf("the mover's Pod: %w", err)
	}
	s := Settings{Pod: b}
	_, err = s.pod(&Place{}, "try", Backup)
	return b, err
}

// Runner runs jobs in Pods.
type Runner struct {
	Client   *kube.Client
	Broker   *Broker
	Settings Settings
	Logger   *zap.Logger
}

// Place is where a job is done.
type Place struct {
	Namespace, Claim string
	Block            bool   // volumeMode: Block
	Node             string // it must be there; empty: anywhere
}

// tries is how often a Pod that ends before its job is done is made again. What a mover has sent is not sent again.
const tries = 3

// Run does a job in a Pod, and returns when it is done. name is that of the objects that are made, which are gone afterwards.
func (r *Runner) Run(ctx context.Context, name string, job Job, at Place, store archive.Store, tags func() (map[string]string, error), progress func(repository.Progress)) (*Outcome, error) {
	job.Checkpoint = r.Settings.Checkpoint
	t, err := r.Broker.add(ctx, job, store, tags, progress)
	if err != nil {
		return nil, err
	}
	defer r.Broker.remove(t)
	var last error
	for try := range tries {
		o, err := r.try(ctx, fmt.Sprintf("%s-%d", name, try), name, t, &at)
		switch {
		case o != nil && o.Error != "" && o.Restored.Lost > 0:
			return o, fmt.Errorf("%w%s", repository.ErrPartly, strings.TrimPrefix(o.Error, repository.ErrPartly.Error()))
		case o != nil && o.Error != "":
			return o, fmt.Errorf("%w: %s", ErrMover, o.Error)
		case err == nil:
			return o, nil
		case ctx.Err() != nil:
			return nil, t.explain(context.Cause(ctx))
		case errors.Is(err, errHopeless):
			return nil, err
		}
		last = err
		r.Logger.Warn("a mover ended before its job was done", zap.String("job", name), zap.Int("try", try+1), zap.Error(err))
	}
	return nil, last
}

// errHopeless is for what another Pod would not mend.
var errHopeless = errors.New("it cannot run")

func (r *Runner) try(ctx context.Context, pod, label string, t *Ticket, at *Place) (o *Outcome, err error) {
	p, err := r.Settings.pod(at, pod, t.job.Kind)
	if err != nil {
		return nil, err
	}
	if p.Spec.Containers[0].Image == "" {
		return nil, fmt.Errorf("%w: %w: it has no image: set volumes.image in the daemon's configuration, or $TIDEMARK_IMAGE, to one with this program", ErrMover, errHopeless)
	}
	p.Labels[kube.Label] = label
	secret := &corev1.Secret{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"},
		ObjectMeta: metav1.ObjectMeta{Name: pod, Namespace: at.Namespace, Labels: p.Labels},
		Data:       map[string][]byte{urlFile: []byte(r.Broker.url), tokenFile: []byte(t.token), caFile: r.Broker.ca},
	}
	defer func() {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTime)
		defer cancel()
		// Cancelled, it is given the time to send what it has read; otherwise there is nothing it could still do.
		removeErr := r.remove(last, at.Namespace, pod, ctx.Err() == nil)
		if err == nil && removeErr != nil { // the job is done all the same
			r.Logger.Warn("what a mover was made of cannot be removed; the next start removes it", zap.String("namespace", at.Namespace), zap.String("pod", pod), zap.Error(removeErr))
			return
		}
		err = errors.Join(err, removeErr)
	}()
	if err := create(ctx, r.Client, kube.Secrets, at.Namespace, secret); err != nil {
		return nil, err
	}
	if err := create(ctx, r.Client, kube.Pods, at.Namespace, p); err != nil {
		return nil, err
	}
	t.offer()
	watched, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	go func() { stop(r.watch(watched, at, pod, t)) }()
	return t.wait(watched)
}

const (
	// createTime is how long the API server may be away when a mover is to be made, until that counts as a try.
	createTime = time.Minute
	// cleanTime is how long taking things away may take.
	cleanTime = 60 * time.Second
)

// create makes an object of a mover, also when the API server is away for a moment.
func create[T any](ctx context.Context, c *kube.Client, r schema.GroupVersionResource, namespace string, o *T) error {
	limited, cancel := context.WithTimeout(ctx, createTime)
	defer cancel()
	var last error
	err := kube.Until(limited, func(ctx context.Context) (bool, error) {
		_, err := kube.Create(ctx, c, r, namespace, o)
		switch {
		case err == nil:
			return true, nil
		case kube.Lasting(err) != nil, apierrors.IsNotFound(err): // the namespace is
			return false, fmt.Errorf("%w: %w", errHopeless, err)
		case ctx.Err() == nil:
			last = err
		}
		return false, nil
	})
	if err != nil && ctx.Err() == nil && limited.Err() != nil {
		return fmt.Errorf("%w: it was tried for %s: %w", ErrMover, createTime, last)
	}
	return err
}

func (r *Runner) remove(ctx context.Context, namespace, pod string, now bool) error {
	var last error
	err := kube.Until(ctx, func(ctx context.Context) (bool, error) {
		last = errors.Join(r.Client.Delete(ctx, kube.Pods, namespace, pod, now), r.Client.Delete(ctx, kube.Secrets, namespace, pod, false))
		return last == nil, kube.Lasting(last)
	})
	if err = cmp.Or(last, err); err != nil {
		return err
	}
	return r.Client.Gone(ctx, kube.Pods, namespace, pod)
}

// patience is how long a Pod may take to begin until it is told what it waits for.
const patience = 5 * time.Second

// watch returns why the Pod will not do its job any more.
func (r *Runner) watch(ctx context.Context, at *Place, pod string, t *Ticket) error {
	namespace := at.Namespace
	startLimit, silence := cmp.Or(r.Settings.StartTimeout, DefaultStartTime), cmp.Or(r.Settings.Silence, 3*time.Minute)
	began := time.Now()
	return kube.Until(ctx, func(ctx context.Context) (bool, error) {
		u, err := r.Client.In(kube.Pods, namespace).Get(ctx, pod, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return false, fmt.Errorf("%w: Pod %s/%s was deleted", ErrMover, namespace, pod)
		}
		if err != nil {
			return false, kube.Lasting(err) // the API server may be away for a while
		}
		p, err := kube.As[corev1.Pod](u)
		if err != nil {
			return false, err
		}
		state, hopeless := stateOf(p)
		heard := t.heard()
		begun := heard.After(began) // before that, it is the one before
		if begun {
			t.waitsFor("")
		}
		if !begun && time.Since(began) > min(patience, startLimit/4) {
			t.waitsFor(fmt.Sprintf("Pod %s/%s: %s", namespace, pod, state))
			if err := r.claimed(ctx, at); err != nil {
				return false, err
			}
		}
		switch {
		case p.Status.Phase == corev1.PodFailed, p.Status.Phase == corev1.PodSucceeded && time.Since(heard) > 10*time.Second:
			return false, fmt.Errorf("%w: Pod %s/%s: %s", ErrMover, namespace, pod, state)
		case hopeless:
			return false, fmt.Errorf("%w: %w: Pod %s/%s: %s", ErrMover, errHopeless, namespace, pod, state)
		case !begun && time.Since(began) > startLimit:
			return false, fmt.Errorf("%w: %w: Pod %s/%s did not begin within %s (volumes.startTimeout): %s", ErrMover, errHopeless, namespace, pod, startLimit, state)
		case begun && time.Since(heard) > silence:
			return false, fmt.Errorf("%w: nothing was heard from Pod %s/%s for %s: %s", ErrMover, namespace, pod, silence, state)
		}
		return false, nil
	})
}

// claimed is the error for a claim that is gone, or going, before a Pod has it: none will be scheduled for it.
func (r *Runner) claimed(ctx context.Context, at *Place) error {
	u, err := r.Client.In(kube.Claims, at.Namespace).Get(ctx, at.Claim, metav1.GetOptions{})
	if apierrors.IsNotFound(err) || err == nil && u.GetDeletionTimestamp() != nil {
		return fmt.Errorf("%w: %w: claim %s/%s was deleted", ErrMover, errHopeless, at.Namespace, at.Claim)
	}
	return nil
}

// stateOf says how a Pod is, for people, and whether waiting is of no use.
func stateOf(p *corev1.Pod) (text string, hopeless bool) {
	for _, s := range p.Status.ContainerStatuses {
		if w := s.State.Waiting; w != nil && w.Reason != "" {
			text = strings.TrimSpace(w.Reason + " " + w.Message)
			switch w.Reason {
			case "ErrImageNeverPull", "InvalidImageName", "CreateContainerConfigError", "CreateContainerError", "RunContainerError":
				return text, true
			}
			return text, false
		}
		if e := s.State.Terminated; e != nil {
			return strings.TrimSpace(fmt.Sprintf("%s (exit status %d) %s", e.Reason, e.ExitCode, e.Message)), false
		}
	}
	for _, c := range p.Status.Conditions {
		if c.Status == corev1.ConditionFalse && c.Message != "" {
			return c.Message, false
		}
	}
	return strings.TrimSpace(string(p.Status.Phase) + " " + p.Status.Reason), false
}

// pod makes the Pod of a job.
func (s *Settings) pod(at *Place, name string, kind Kind) (*corev1.Pod, error) {
	root, no, yes := int64(0), false, true
	c := corev1.Container{
		Name: "mover", Image: s.Image, Command: []string{"tidemark", "mover", string(kind)},
		Env: []corev1.EnvVar{{Name: "TMPDIR", Value: cachePath}, {Name: "HOME", Value: cachePath}, {Name: "GOMEMLIMIT", Value: "300MiB"}},
		Resources: corev1.ResourceRequirements{
			Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("128Mi")},
			Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("512Mi")},
		},
		VolumeMounts:             []corev1.VolumeMount{{Name: "job", MountPath: secretPath, ReadOnly: true}, {Name: "cache", MountPath: cachePath}},
		TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
		SecurityContext: &corev1.SecurityContext{
			AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes,
			Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: capabilities(kind)},
		},
	}
	if at.Block {
		c.VolumeDevices = []corev1.VolumeDevice{{Name: "volume", DevicePath: devicePath}}
	} else {
		c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: "volume", MountPath: volumePath, ReadOnly: kind == Backup})
	}
	cacheLimit, grace := resource.MustParse("4Gi"), int64(30)
	p := &corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: at.Namespace, Labels: map[string]string{
			"app.kubernetes.io/managed-by": "tidemark", "app.kubernetes.io/component": "mover", "velero.io/exclude-from-backup": "true", ownerLabel: s.Owner,
		}},
		Spec: corev1.PodSpec{
			RestartPolicy: corev1.RestartPolicyNever, AutomountServiceAccountToken: &no, EnableServiceLinks: &no, TerminationGracePeriodSeconds: &grace,
			SecurityContext: &corev1.PodSecurityContext{RunAsUser: &root, SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}},
			Containers:      []corev1.Container{c},
			Volumes: []corev1.Volume{
				{Name: "job", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: name}}},
				{Name: "cache", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: &cacheLimit}}},
				{Name: "volume", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: at.Claim}}},
			},
		},
	}
	p, err := s.patched(p)
	if err == nil && at.Node != "" {
		pin(&p.Spec, at.Node)
	}
	return p, err
}

// patched merges the patch into a Pod.
func (s *Settings) patched(p *corev1.Pod) (*corev1.Pod, error) {
	if s.Pod == nil {
		return p, nil
	}
	ours, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	merged, err := strategicpatch.StrategicMergePatch(ours, s.Pod, corev1.Pod{})
	if err != nil {
		return nil, fmt.Errorf("the mover's Pod: %w", err)
	}
	p = &corev1.Pod{}
	if err := yaml.UnmarshalStrict(merged, p); err != nil {
		return nil, fmt.Errorf("the mover's Pod: %w", err)
	}
	return p, nil
}

// pin has a Pod run on a node and nowhere else, whatever a patch says besides: elsewhere a volume that is in use is not mounted. It is done by affinity, so that
// the scheduler still says what is wrong; the workload tolerates the node, and so must this.
func pin(p *corev1.PodSpec, node string) {
	p.Tolerations = append(p.Tolerations, corev1.Toleration{Operator: corev1.TolerationOpExists})
	if p.Affinity == nil {
		p.Affinity = &corev1.Affinity{}
	}
	if p.Affinity.NodeAffinity == nil {
		p.Affinity.NodeAffinity = &corev1.NodeAffinity{}
	}
	required := &p.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution
	if *required == nil || len((*required).NodeSelectorTerms) == 0 {
		*required = &corev1.NodeSelector{NodeSelectorTerms: make([]corev1.NodeSelectorTerm, 1)}
	}
	terms := (*required).NodeSelectorTerms
	for i := range terms { // one of them has to be met
		terms[i].MatchFields = append(terms[i].MatchFields, corev1.NodeSelectorRequirement{Key: "metadata.name", Operator: corev1.NodeSelectorOpIn, Values: []string{node}})
	}
}

// capabilities are what a mover needs to read, or write, everybody's files with all that they have.
func capabilities(kind Kind) []corev1.Capability {
	if kind == Backup {
		return []corev1.Capability{"DAC_READ_SEARCH"}
	}
	return []corev1.Capability{"DAC_OVERRIDE", "DAC_READ_SEARCH", "CHOWN", "FOWNER", "FSETID", "MKNOD", "SETFCAP"}
}

// ownerLabel tells whose movers they are.
const ownerLabel = "tidemark.dev/owner"

// Owner is whose movers they are.
func (r *Runner) Owner() string { return r.Settings.Owner }

// Sweep removes what an owner's movers, for which nobody waits any more, left in the cluster.
func Sweep(ctx context.Context, c *kube.Client, owner string) error {
	labels := "app.kubernetes.io/component=mover," + ownerLabel + "=" + owner
	pods, err := kube.List[corev1.Pod](ctx, c, kube.Pods, "", labels)
	if err != nil {
		return err
	}
	secrets, err := kube.List[corev1.Secret](ctx, c, kube.Secrets, "", labels)
	if err != nil {
		return err
	}
	for _, p := range pods {
		err = errors.Join(err, c.Delete(ctx, kube.Pods, p.Namespace, p.Name, true))
	}
	for _, s := range secrets {
		err = errors.Join(err, c.Delete(ctx, kube.Secrets, s.Namespace, s.Name, false))
	}
	return err
}
