package daemon

import (
	"strings"
	"testing"
	"time"

	"github.com/tidemark-backup/tidemark/cmd/internal/api"
	"github.com/tidemark-backup/tidemark/compactor/schedule"
	"github.com/tidemark-backup/tidemark/volumes"
	"github.com/tidemark-backup/tidemark/volumes/policy"
)

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

// TestVolumeBackupsNoteTheArchivesAge has retention count how old they are, and not the clock say it.
func TestVolumeBackupsNoteTheArchivesAge(t *testing.T) {
	c, _ := start(t, Options{Kubeconfig: kubeconfig(t, fakeCluster(t, "cluster")), DataDir: t.TempDir(), Archives: []Archive{{URL: "dir://" + t.TempDir()}}})
	status(t, c, func(s *api.Status) bool { return len(s.Archives) == 1 && s.Archives[0].URL != "" })
	b, err := c.Back(t.Context(), volumes.BackRequest{Path: t.TempDir()}, nil)
	if err != nil || b.Status.Phase != volumes.Done || b.Status.Age <= 0 {
		t.Errorf("%+v, %v", b, err)
	}
}
