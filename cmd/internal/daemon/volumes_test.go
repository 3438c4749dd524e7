package daemon

import (
	"slices"
	"testing"
	"time"

	"github.com/tidemark-backup/tidemark/compactor/retention"
	"github.com/tidemark-backup/tidemark/volumes"
	"github.com/tidemark-backup/tidemark/volumes/policy"
)

// TestExpiredVolumeBackups has backups of two claims, one every six hours for three days, of which a day each and the last two days are kept.
func TestExpiredVolumeBackups(t *testing.T) {
	now := time.Date(2026, 11, 27, 12, 30, 0, 0, time.UTC)
	var all []*volumes.Backup
	add := func(claim, name string, hours int, phase volumes.Phase, origin string) {
		at := now.Add(-time.Duration(hours) * time.Hour)
		all = append(all, &volumes.Backup{Metadata: volumes.Meta{Name: name, Namespace: "shop", Created: at}, Spec: volumes.Spec{Claim: claim, Origin: origin}, Status: volumes.Status{Phase: phase}})
	}
	add("b", "b-old-but-last", 100, volumes.Done, "schedule/p")
	add("a", "a-72h", 72, volumes.Done, "schedule/p")
	add("a", "a-66h", 66, volumes.Done, "schedule/p")
	add("a", "a-65h-failed", 65, volumes.Failed, "schedule/p")
	add("a", "a-64h-by-hand", 64, volumes.Done, "manual")
	add("a", "a-63h-of-another", 63, volumes.Done, "schedule/q")
	add("a", "a-10h", 10, volumes.Done, "schedule/p")
	add("a", "a-1h", 1, volumes.Done, "schedule/p")
	add("a", "a-now", 0, volumes.Running, "schedule/p")
	p := VolumePolicy{Policy: policy.Policy{Name: "p"}, Retention: retention.Policy{Window: 24 * time.Hour, Daily: 3}}
	got := expired(all, p, now)
	slices.Sort(got)
	if want := []string{"a-72h"}; !slices.Equal(got, want) {
		t.Errorf("with a window of a day and 3 daily: %v, want %v", got, want)
	}
	p.Retention = retention.Policy{Window: 12 * time.Hour}
	got = expired(all, p, now)
	slices.Sort(got)
	if want := []string{"a-65h-failed", "a-66h", "a-72h"}; !slices.Equal(got, want) {
		t.Errorf("with a window of 12 hours: %v, want %v", got, want)
	}
}
