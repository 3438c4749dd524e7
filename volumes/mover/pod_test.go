package mover

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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
			if s, err := newRemote(string(secret.Data[urlFile]), string(secret.Data[tokenFile]), secret.Data[caFile]); err == nil && tell(ctx, s, "/done", Outcome{Restored: repository.Progress{Files: 7}}) == nil {
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
