package replay_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/compactor"
	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/replay"
)

// A journal keeps hours, its archive days: questions are answered as if the journal had it all.
func TestOlderMomentsComeFromTheArchive(t *testing.T) {
	ctx := context.Background()
	now := time.Date(2026, 5, 4, 0, 0, 0, 0, time.UTC)
	clock := func() time.Time { now = now.Add(time.Millisecond); return now }
	j, err := journal.Open("/data", journal.Options{
		FS: vfs.NewMem(), Key: []byte("0123456789abcdef0123456789abcdef"), Free: func() (uint64, error) { return 1 << 40, nil }, Clock: clock, Window: 8 * time.Hour,
	})
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ok(err)
	defer j.Close()
	ok(j.Bind(ctx, "c"))
	identity, err := age.GenerateX25519Identity()
	ok(err)
	store := archive.NewMemStore()
	s, err := compactor.NewShipper(compactor.Options{
		Journal: j, Open: func(context.Context) (archive.Store, error) { return store, nil }, Clock: clock,
		Archive: archive.Options{Recipients: []age.Recipient{identity.Recipient()}, Identities: []age.Identity{identity}},
	})
	ok(err)
	cm := schema.GroupResource{Resource: "configmaps"}
	list := func(rv uint64, cause string) {
		c, err := j.Compare(ctx, journal.Recording{ResourceInfo: journal.ResourceInfo{Version: "v1", Resource: "configmaps", Kind: "ConfigMap", Namespaced: true}}, rv, cause)
		ok(err)
		_, err = c.Commit(ctx, rv)
		ok(err)
	}
	list(10, "")
	ok(j.SetBegan(ctx))
	whole := replay.NewLocal(j)
	var cuts []journal.Cut
	var before []map[string]string
	fold := func(src replay.Source, cut journal.Cut) map[string]string {
		t.Helper()
		out := map[string]string{}
		for e, err := range src.Fold(ctx, cut, replay.Scope{}) {
			ok(err)
			out[e.Name] = string(e.Object)
		}
		return out
	}
	for i := range 40 {
		now = now.Add(30 * time.Minute)
		op := journal.Modified
		if i < 4 {
			op = journal.Added
		}
		e := journal.Event{
			Resource: cm, Namespace: "a", Name: fmt.Sprint("o", i%4), Op: op, Revision: journal.Revision{RV: uint64(20 + i)}, Object: fmt.Appendf(nil, `{"v":%d}`, i),
		}
		ok(j.Append(ctx, e))
		ok(j.Flush(ctx))
		if i == 5 {
			list(26, "410: a gap")
		}
		cut := j.Newest()
		cuts, before = append(cuts, cut), append(before, fold(whole, cut))
		ok(s.Round(ctx))
		j.KeepAfter(time.Time{}) // only its age is counted
		_, err = j.Trim(ctx)
		ok(err)
	}
	j.KeepAfter(s.Keep())
	var log []string
	changes := func(src replay.Source, q replay.ChangeQuery) (all []string) {
		for c, err := range src.Changes(ctx, q) {
			ok(err)
			all = append(all, fmt.Sprint(c.Observed, c.Op, c.ID(), c.Revision, c.Fields, string(c.Object)))
		}
		return all
	}
	log = changes(whole, replay.ChangeQuery{})
	part := changes(whole, replay.ChangeQuery{From: cuts[3].Time, To: cuts[30].Time})
	for range 3 {
		now = now.Add(time.Hour)
		_, err := j.Trim(ctx)
		ok(err)
	}
	if !j.Horizon().Time.After(cuts[20].Time) {
		t.Fatalf("the journal was not trimmed up to %s but to %s: the test proves nothing", cuts[20], j.Horizon())
	}
	tiered := replay.NewTiered(whole, func(context.Context) (*replay.Archived, error) {
		return replay.NewArchived(s.Archive().History()), nil
	})
	for i, cut := range cuts {
		if d := cmp.Diff(before[i], fold(tiered, cut)); d != "" {
			t.Errorf("fold at %s (-before +now):\n%s", cut, d)
		}
		got, err := tiered.Resolve(ctx, replay.At{Revision: cut.Revision})
		if err != nil || got.Revision != cut.Revision {
			t.Errorf("%s became %s, %v", cut, got, err)
		}
	}
	if d := cmp.Diff(log, changes(tiered, replay.ChangeQuery{})); d != "" {
		t.Errorf("changes (-before +now):\n%s", d)
	}
	if d := cmp.Diff(part, changes(tiered, replay.ChangeQuery{From: cuts[3].Time, To: cuts[30].Time})); d != "" {
		t.Errorf("some changes (-before +now):\n%s", d)
	}
	for _, err := range whole.Fold(ctx, cuts[3], replay.Scope{}) {
		if !errors.Is(err, journal.ErrTrimmed) {
			t.Errorf("the journal alone answers for what was trimmed: %v", err)
		}
	}
	var streamed []string
	old := j.Horizon()
	for c, err := range tiered.Changes(ctx, replay.ChangeQuery{}) {
		ok(err)
		for range 8 { // whoever reads is slow
			if len(streamed) == 0 {
				now = now.Add(time.Hour)
				_, err := j.Trim(ctx)
				ok(err)
			}
		}
		streamed = append(streamed, fmt.Sprint(c.Observed, c.Op, c.ID(), c.Revision, c.Fields, string(c.Object)))
	}
	if !j.Horizon().Time.After(old.Time) {
		t.Fatal("nothing was trimmed meanwhile: the test proves nothing")
	}
	if d := cmp.Diff(log, streamed); d != "" {
		t.Errorf("changes, while the journal is trimmed (-before +now):\n%s", d)
	}
	c, err := tiered.Ledgers(ctx)
	ok(err)
	if !c.From.Time.Equal(j.Began().Time) {
		t.Errorf("the range begins at %s", c.From)
	}
	if near, err := whole.Ledgers(ctx); err != nil || len(near.Resources[0].Gaps) != 0 || len(c.Resources[0].Gaps) != 1 {
		t.Errorf("gaps: %v near, %v with the archive, %v", near.Resources[0].Gaps, c.Resources[0].Gaps, err)
	}
	var outside *replay.RangeError
	if _, err := tiered.Resolve(ctx, replay.At{Time: now.AddDate(-1, 0, 0)}); !errors.As(err, &outside) || !outside.From.Time.Equal(c.From.Time) {
		t.Errorf("a year ago: %v", err)
	}
}
