package bench

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/replay"
)

// BenchmarkFold measures the time to get one namespace of 1,000 objects (4.7 KB each) as it was
// at a moment, out of a journal that holds as many objects of other namespaces. "cold" opens
// the journal anew for each fold (opening is not counted; the operating system's cache stays
// warm), "warm" folds again in the same one. One op is one fold.
func BenchmarkFold(b *testing.B) {
	for _, revisions := range []int{1, 10, 100} {
		b.Run(fmt.Sprintf("revisions=%d", revisions), func(b *testing.B) {
			const objects = 1000
			h := newHistory(1).add(objects, []string{"subject"}, madeUpPod, madeUpDeployment).add(objects, spaces(20), madeUpPod, madeUpDeployment)
			dir := b.TempDir()
			first, last := recordAll(b, dir, h, revisions)
			for _, moment := range []string{"newest", "random"} {
				random := rand.New(rand.NewPCG(2, 2))
				at := func() uint64 { return first + random.Uint64N(last-first+1) }
				if moment == "newest" {
					at = func() uint64 { return last }
				}
				b.Run(moment+"/cold", func(b *testing.B) {
					for b.Loop() {
						b.StopTimer()
						j := openJournal(b, dir, journal.Options{})
						b.StartTimer()
						foldNamespace(b, j, "subject", at(), objects)
						b.StopTimer()
						if err := j.Close(); err != nil {
							b.Fatal(err)
						}
						b.StartTimer()
					}
				})
				b.Run(moment+"/warm", func(b *testing.B) {
					j := openJournal(b, dir, journal.Options{})
					foldNamespace(b, j, "subject", last, objects)
					for b.Loop() {
						foldNamespace(b, j, "subject", at(), objects)
					}
					if err := j.Close(); err != nil {
						b.Fatal(err)
					}
				})
			}
		})
	}
}

// recordAll writes a history into a new journal in dir, whose objects each get so many revisions
// in random order, and lets it come to rest. From the revision first on, all objects are there.
func recordAll(b *testing.B, dir string, h *history, revisions int) (first, last uint64) {
	b.Helper()
	j := openJournal(b, dir, journal.Options{})
	ctx := context.Background()
	seen := map[string]bool{}
	for _, o := range h.objects {
		if name := o.kind.info.Resource; !seen[name] {
			seen[name] = true
			c, err := j.Compare(ctx, journal.Recording{ResourceInfo: o.kind.info}, 1, "")
			if err != nil {
				b.Fatal(err)
			}
			for _, other := range h.objects {
				if other.kind == o.kind {
					if err := c.Add(ctx, other.event(journal.Added)); err != nil {
						b.Fatal(err)
					}
				}
			}
			if _, err := c.Commit(ctx, h.rv); err != nil {
				b.Fatal(err)
			}
		}
	}
	if err := j.SetBegan(ctx); err != nil {
		b.Fatal(err)
	}
	first = h.rv
	order := make([]int, 0, len(h.objects)*(revisions-1))
	for range revisions - 1 {
		for i := range h.objects {
			order = append(order, i)
		}
	}
	h.random.Shuffle(len(order), func(i, k int) { order[i], order[k] = order[k], order[i] })
	for _, i := range order {
		appendOne(b, j, h.change(h.objects[i]))
	}
	flush(b, j)
	if err := j.Close(); err != nil {
		b.Fatal(err)
	}
	compact(b, dir)
	return first, h.rv
}

func foldNamespace(b *testing.B, j *journal.Journal, namespace string, rv uint64, want int) {
	cut := journal.Cut{Revision: journal.Revision{Epoch: 1, RV: rv}, Time: j.Newest().Time}
	n := 0
	for _, err := range replay.NewLocal(j).Fold(context.Background(), cut, replay.InNamespace(namespace)) {
		if err != nil {
			b.Fatal(err)
		}
		n++
	}
	if n != want {
		b.Fatalf("%s has %d objects at %s, want %d", namespace, n, cut, want)
	}
}
