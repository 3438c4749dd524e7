package mover

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/tidemark-backup/tidemark/volumes/kube"
	"github.com/tidemark-backup/tidemark/volumes/repository"
)

// troubled is a Runner whose API server can be made to fail.
type troubled struct {
	*brokered
	*Runner
	api  *fake.FakeDynamicClient
	logs *observer.ObservedLogs
}

func newTroubled(t *testing.T) *troubled {
	api := fake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{kube.Pods: "PodList", kube.Secrets: "SecretList"})
	b := newBrokered(t)
	core, logs := observer.New(zap.WarnLevel)
	return &troubled{b, &Runner{Client: &kube.Client{Dynamic: api}, Broker: b.Broker, Settings: Settings{Image: "tidemark:1", Owner: "test"}, Logger: zap.New(core)}, api, logs}
}

// fail has a request fail, some times.
func (r *troubled) fail(verb, resource string, times int, err error) {
	r.api.PrependReactor(verb, resource, func(clienttesting.Action) (bool, runtime.Object, error) {
		times--
		return times >= 0, nil, err
	})
}

// run runs a job, whose mover is done at once.
func (r *troubled) run(ctx context.Context) (*Outcome, error) {
	return r.runTo(ctx, Outcome{Restored: repository.Progress{Files: 7}})
}

// runTo runs a job, whose mover tells an outcome at once.
func (r *troubled) runTo(ctx context.Context, o Outcome) (*Outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	go func() {
		for ctx.Err() == nil {
			time.Sleep(20 * time.Millisecond)
			pods, err := kube.List[corev1.Pod](ctx, r.Client, kube.Pods, "shop", "")
			if err != nil || len(pods) == 0 {
				continue
			}
			secret, err := kube.Get[corev1.Secret](ctx, r.Client, kube.Secrets, "shop", pods[0].Name)
			if err != nil || secret == nil {
				continue
			}
			if s, err := newRemote(string(secret.Data[urlFile]), string(secret.Data[tokenFile]), secret.Data[caFile]); err == nil && tell(ctx, s, "/done", o) == nil {
				return
			}
		}
	}()
	return r.Run(ctx, "job", Job{Kind: Restore, Cluster: "c1"}, Place{Namespace: "shop", Claim: "data"}, r.store, nil, nil)
}

// TestAJobOutlivesAnAPIServerThatIsAway has the API server be away while a mover is made and while it is removed.
func TestAJobOutlivesAnAPIServerThatIsAway(t *testing.T) {
	r := newTroubled(t)
	r.fail("create", "secrets", 2, apierrors.NewServiceUnavailable("it restarts"))
	r.fail("create", "pods", 2, errors.New("connection refused"))
	r.fail("delete", "pods", 2, errors.New("connection refused"))
	o, err := r.run(t.Context())
	if err != nil || o.Restored.Files != 7 {
		t.Fatalf("%+v, %v", o, err)
	}
	for _, kind := range []schema.GroupVersionResource{kube.Pods, kube.Secrets} {
		if l, err := r.api.Resource(kind).List(t.Context(), metav1.ListOptions{}); err != nil || len(l.Items) > 0 {
			t.Errorf("%d %s are left, %v", len(l.Items), kind.Resource, err)
		}
	}
	if n := r.logs.Len(); n > 0 {
		t.Errorf("it took %d more tries", n)
	}
	if len(r.brokered.jobs) > 0 {
		t.Error("the job is still served")
	}
}

// What a restore could not bring back comes with what it did, and is no failure of the mover.
func TestAJobThatIsPartlyDone(t *testing.T) {
	o, err := newTroubled(t).runTo(t.Context(), Outcome{Restored: repository.Progress{Files: 7, Lost: 1}, Error: repository.ErrPartly.Error() + ": one is damaged"})
	if !errors.Is(err, repository.ErrPartly) || errors.Is(err, ErrMover) || err.Error() != repository.ErrPartly.Error()+": one is damaged" || o == nil || o.Restored.Files != 7 {
		t.Errorf("%+v, %v", o, err)
	}
}

// TestAJobThatIsDoneIsDone has a Pod that cannot be removed after its job is done.
func TestAJobThatIsDoneIsDone(t *testing.T) {
	r := newTroubled(t)
	r.fail("delete", "pods", 1000, apierrors.NewForbidden(schema.GroupResource{Resource: "pods"}, "job-0", errors.New("no right")))
	if o, err := r.run(t.Context()); err != nil || o.Restored.Files != 7 {
		t.Fatalf("%+v, %v", o, err)
	}
	if r.logs.Len() != 1 {
		t.Errorf("it is not told: %+v", r.logs.All())
	}
}

// TestAPodThatCannotBegin has a Pod that no node takes: it is told while it is waited for, and it is why the job ends, when its time is over or the caller's is. For
// a claim that is gone it is not waited.
func TestAPodThatCannotBegin(t *testing.T) {
	const why = "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector."
	for want, limit := range map[string]time.Duration{
		"did not begin within 2s (volumes.startTimeout): " + why: time.Minute, "it took too long: Pod shop/job-0: " + why: time.Second, "it cannot run: claim shop/data was deleted": time.Minute,
	} {
		r := newTroubled(t)
		r.Settings.StartTimeout = 2 * time.Second
		if !strings.Contains(want, "deleted") {
			if _, err := kube.Create(t.Context(), r.Client, kube.Claims, "shop", &corev1.PersistentVolumeClaim{
				TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolumeClaim"}, ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "data"},
			}); err != nil {
				t.Fatal(err)
			}
		}
		r.api.PrependReactor("create", "pods", func(a clienttesting.Action) (bool, runtime.Object, error) {
			u := a.(clienttesting.CreateAction).GetObject().(*unstructured.Unstructured)
			u.Object["status"] = map[string]any{"phase": "Pending", "conditions": []any{map[string]any{"type": "PodScheduled", "status": "False", "message": why}}}
			return false, nil, nil
		})
		ctx, cancel := context.WithTimeoutCause(t.Context(), limit, errors.New("it took too long"))
		var told []string
		_, err := r.Run(ctx, "job", Job{Kind: Restore, Cluster: "c1"}, Place{Namespace: "shop", Claim: "data"}, r.store, nil, func(p repository.Progress) { told = append(told, p.Waiting) })
		cancel()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
		if !slices.Equal(told, []string{"Pod shop/job-0: " + why}) {
			t.Errorf("it is told: %q", told)
		}
	}
}

// TestAJobThatIsRefusedIsNotTriedAgain has the API server say that it may not be.
func TestAJobThatIsRefusedIsNotTriedAgain(t *testing.T) {
	r := newTroubled(t)
	r.fail("create", "pods", 1000, apierrors.NewForbidden(schema.GroupResource{Resource: "pods"}, "job-0", errors.New("quota exceeded")))
	if _, err := r.run(t.Context()); !errors.Is(err, errHopeless) {
		t.Errorf("%v", err)
	}
	creates := slices.DeleteFunc(r.api.Actions(), func(a clienttesting.Action) bool { return a.GetVerb() != "create" || a.GetResource() != kube.Pods })
	if len(creates) != 1 {
		t.Errorf("it was tried %d times", len(creates))
	}
}
