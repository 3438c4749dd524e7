package daemon

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tidemark-backup/tidemark/compactor/retention"
	"github.com/tidemark-backup/tidemark/compactor/schedule"
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
	add("a", "a-65h-deleting", 65, volumes.Deleting, "schedule/p") // FinishDeletes does
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

// TestAgeLimit says how old the newest backup may be: until the second run after it was to be made, and longer when runs take long.
func TestAgeLimit(t *testing.T) {
	friday := time.Date(2026, 11, 27, 2, 0, 5, 0, time.UTC)
	for name, c := range map[string]struct {
		spec schedule.Spec
		took time.Duration
		want time.Duration
	}{
		"nightly":       {schedule.Spec{Cron: "0 2 * * *"}, 0, 48*time.Hour - 5*time.Second},
		"a weekend":     {schedule.Spec{Cron: "0 2 * * 1-5"}, 0, 96*time.Hour - 5*time.Second},
		"runs are long": {schedule.Spec{Cron: "* * * * *"}, 10 * time.Minute, 22*time.Minute - 5*time.Second},
		"suspended":     {schedule.Spec{Cron: "0 2 * * *", Suspend: true}, 0, 0},
		"no schedule":   {schedule.Spec{}, time.Hour, 0},
	} {
		c.spec.Name = "p"
		if got := ageLimit(c.spec, volumes.Figures{Newest: friday, LastDuration: c.took}); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
	if got := ageLimit(schedule.Spec{Name: "p", Cron: "0 2 * * *"}, volumes.Figures{}); got != 0 {
		t.Errorf("with no claims: %v", got)
	}
}

// TestVolumeStatusWithoutKeeper has a policy with a schedule, and no archive that the daemon can read.
func TestVolumeStatusWithoutKeeper(t *testing.T) {
	d := &daemon{o: Options{Volumes: Volumes{VolumesReload: VolumesReload{Policies: []VolumePolicy{
		{Policy: policy.Policy{Name: "p"}, Spec: schedule.Spec{Name: "p", Cron: "0 2 * * *"}}, {Policy: policy.Policy{Name: "q"}},
	}}}}}
	all, err := d.volumeStatus(t.Context())
	if err != nil || len(all) != 1 || all[0].Policy != "p" || all[0].Limit != 0 {
		t.Errorf("%v, %+v", err, all)
	}
	if w := d.volumeWarnings(); len(w) != 1 || !strings.Contains(w[0], "policy p backs no volumes up") {
		t.Error(w)
	}
}
