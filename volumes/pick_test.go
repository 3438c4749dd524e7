package volumes

import (
	"testing"
	"time"

	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/volumes/csi"
)

func TestPick(t *testing.T) {
	noon := time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)
	backup := func(name, claim string, minutes int, change ...func(*Backup)) *Backup {
		at := noon.Add(time.Duration(minutes) * time.Minute)
		b := &Backup{Metadata: Meta{Name: name, Namespace: "shop", Created: at}, Spec: Spec{Claim: claim, Run: "run-" + name}, Status: Status{Phase: Done, Taken: at, Snapshot: &csi.Handle{ID: name}}}
		for _, f := range change {
			f(b)
		}
		return b
	}
	failed := func(b *Backup) { b.Status.Phase = Failed }
	empty := func(b *Backup) { b.Status.Snapshot = nil }
	skewed := func(b *Backup) { // the storage's clock is two hours ahead
		b.Status.Before, b.Status.After = journal.Cut{Time: b.Status.Taken}, journal.Cut{Time: b.Status.Taken.Add(time.Second)}
		b.Status.Taken = b.Status.Taken.Add(2 * time.Hour)
	}
	live := func(b *Backup) { // it takes two hours to read
		b.Status.Consistency, b.Status.Before = Live, journal.Cut{Time: b.Status.Taken}
		b.Status.After = journal.Cut{Time: b.Status.Taken.Add(2 * time.Hour)}
	}
	foreign := func(b *Backup) { b.Status.Consistency, b.Status.Finished = Live, b.Status.Taken.Add(time.Hour) }
	all := []*Backup{
		backup("d1", "d", -180, live), backup("d2", "d", -30, live), backup("e1", "e", -30, foreign),
		backup("a1", "a", -60), backup("a2", "a", -10), backup("a3", "a", -5, failed), backup("a4", "a", -4, empty), backup("a5", "a", 3),
		backup("b1", "b", 7), backup("c1", "c", -1, skewed),
		{Spec: Spec{Path: "/srv"}, Status: Status{Phase: Done, Taken: noon}},
	}
	for what, tc := range map[string]struct {
		q    PickRequest
		want map[string]string
	}{
		"at or before": {PickRequest{At: noon}, map[string]string{"shop/a": "a2", "shop/c": "c1", "shop/d": "d1"}},
		"nearest":      {PickRequest{At: noon, Nearest: true}, map[string]string{"shop/a": "a5", "shop/b": "b1", "shop/c": "c1", "shop/d": "d1", "shop/e": "e1"}},
		"by name":      {PickRequest{At: noon, Name: "a1"}, map[string]string{"shop/a": "a1"}},
		"by run":       {PickRequest{At: noon, Name: "run-b1"}, map[string]string{"shop/b": "b1"}},
		"exactly then": {PickRequest{At: noon.Add(-10 * time.Minute)}, map[string]string{"shop/a": "a2", "shop/d": "d1"}},
		"while read":   {PickRequest{At: noon.Add(-61 * time.Minute)}, map[string]string{}},
	} {
		got := Pick(all, tc.q)
		if len(got) != len(tc.want) {
			t.Errorf("%s: %d backups", what, len(got))
		}
		for k, want := range tc.want {
			if got[k] == nil || got[k].Metadata.Name != want {
				t.Errorf("%s: %s has %+v, want %s", what, k, got[k], want)
			}
		}
	}
}
