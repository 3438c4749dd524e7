package bench

import (
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"github.com/tidemark-backup/tidemark/bench/mix"
	"github.com/tidemark-backup/tidemark/deploy/localcluster"
	"github.com/tidemark-backup/tidemark/replay"
)

// createAll creates objects from so many clients at once, as fast as the server takes them.
func createAll(b *testing.B, d dynamic.Interface, clients int, all []*unstructured.Unstructured, resources []schema.GroupVersionResource) {
	b.Helper()
	sendAll(b, clients, all, func(i int) error {
		_, err := d.Resource(resources[i]).Namespace(all[i].GetNamespace()).Create(b.Context(), all[i], metav1.CreateOptions{FieldManager: "kubectl-create"})
		return err
	})
}

// applyAll does the same by server-side apply.
func applyAll(b *testing.B, d dynamic.Interface, clients int, all []*unstructured.Unstructured, resources []schema.GroupVersionResource) {
	b.Helper()
	sendAll(b, clients, all, func(i int) error {
		_, err := d.Resource(resources[i]).Namespace(all[i].GetNamespace()).Apply(b.Context(), all[i].GetName(), all[i], metav1.ApplyOptions{FieldManager: "flux"})
		return err
	})
}

func sendAll(b *testing.B, clients int, all []*unstructured.Unstructured, send func(i int) error) {
	b.Helper()
	var next atomic.Int64
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(all) {
					return
				}
				if err := send(i); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if b.Failed() {
		b.FailNow()
	}
}

// everyRequest counts requests.
type everyRequest struct {
	http.RoundTripper
	n *atomic.Int64
}

func (c everyRequest) RoundTrip(r *http.Request) (*http.Response, error) {
	c.n.Add(1)
	return c.RoundTripper.RoundTrip(r)
}

// BenchmarkRestore measures a restore of a namespace of 1,000 mixed objects on a real control plane with its
// controllers, from the plan and the question for rights to the last object, recorded as the command records
// it: into a new namespace, which is compared with 32 plain clients that create the same objects in another one in
// the same run. "applied" is the same with objects that were made by server-side apply, by the restore and by the
// plain clients. "plan" is planning alone: against nothing, against the same 1,000 objects, and against 1,000
// that all differ. One op is one restore, or one plan.
func BenchmarkRestore(b *testing.B) {
	const objects, clients = 1000, 32
	cluster := startCluster(b, localcluster.Options{})
	plain := fastClient(b, cluster.Config())
	createNamespace(b, plain, "subject")
	all, resources := mix.Objects("subject", objects)
	createAll(b, plain, clients, all, resources)
	createNamespace(b, plain, "gitops")
	applied, _ := mix.Objects("gitops", objects)
	applyAll(b, plain, clients, applied, resources)
	r := record(b, cluster.Config(), b.TempDir())
	cut, err := r.source.Resolve(b.Context(), replay.At{})
	must(b, err)
	var requests atomic.Int64
	config := rest.CopyConfig(cluster.Config())
	config.Wrap(func(rt http.RoundTripper) http.RoundTripper { return everyRequest{rt, &requests} })
	target, err := replay.NewTarget(config)
	must(b, err)
	records := replay.OpenRecords(b.TempDir())
	n := 0
	from := "subject"
	request := func() replay.RestoreRequest {
		n++
		return replay.RestoreRequest{Cut: cut, Scope: replay.InNamespace(from), NamespaceMappings: map[string]string{from: fmt.Sprintf("restored-%d", n)}}
	}
	plan := func(req replay.RestoreRequest) *replay.Plan {
		p, err := replay.NewPlan(b.Context(), r.source, target, req)
		must(b, err)
		return p
	}
	apply := func(b *testing.B, sendAll func(*testing.B, dynamic.Interface, int, []*unstructured.Unstructured, []schema.GroupVersionResource)) {
		var ours, theirs time.Duration
		written, sent := 0, int64(0)
		for b.Loop() {
			name := fmt.Sprintf("plain-%d", n)
			createNamespace(b, plain, name)
			copies, resources := mix.Objects(name, objects)
			start := time.Now()
			sendAll(b, plain, clients, copies, resources)
			theirs += time.Since(start)

			before := requests.Load()
			start = time.Now()
			p := plan(request())
			_, err := p.Rights(b.Context(), target)
			must(b, err)
			rec, err := records.Begin(p)
			must(b, err)
			result, err := p.Apply(b.Context(), target, replay.ApplyOptions{Record: rec})
			must(b, err)
			must(b, rec.Close())
			ours += time.Since(start)
			sent += requests.Load() - before
			written += result.Done
		}
		rate := float64(written) / ours.Seconds()
		b.ReportMetric(rate, "objects/s")
		b.ReportMetric(rate/(float64(objects*b.N)/theirs.Seconds()), "of-plain")
		b.ReportMetric(float64(sent)/float64(written), "requests/object")
	}
	b.Run("apply", func(b *testing.B) { apply(b, createAll) })
	from = "gitops"
	b.Run("applied", func(b *testing.B) { apply(b, applyAll) })
	from = "subject"
	b.Run("plan/nothing", func(b *testing.B) {
		for b.Loop() {
			if p := plan(request()); p.Count(replay.ActionCreate) < objects {
				b.Fatalf("%d to create", p.Count(replay.ActionCreate))
			}
		}
	})
	same := replay.RestoreRequest{Cut: cut, Scope: replay.InNamespace("subject"), Existing: replay.ExistingUpdate, Prune: true}
	b.Run("plan/same", func(b *testing.B) {
		for b.Loop() {
			if p := plan(same); p.Writes() != 0 {
				b.Fatalf("%d to write", p.Writes())
			}
		}
	})
	for i, u := range all {
		patch := []byte(`{"metadata":{"labels":{"app":"changed","new":"label"}}}`)
		_, err := plain.Resource(resources[i]).Namespace("subject").Patch(b.Context(), u.GetName(), "application/merge-patch+json", patch, metav1.PatchOptions{})
		must(b, err)
	}
	b.Run("plan/differs", func(b *testing.B) {
		for b.Loop() {
			if p := plan(same); p.Count(replay.ActionUpdate) < objects {
				b.Fatalf("%d to update", p.Count(replay.ActionUpdate))
			}
		}
	})
}
