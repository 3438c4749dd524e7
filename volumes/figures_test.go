package volumes

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/volumes/csi"
	"github.com/tidemark-backup/tidemark/volumes/policy"
)

// figured is a Keeper with two policies, whose figures a test looks at.
type figured struct {
	*world
	k *Keeper
}

func newFigured(t *testing.T) *figured {
	f := &figured{newWorld(t), nil}
	f.again()
	return f
}

// again is the same history in another process.
func (f *figured) again() {
	f.k = New(f.o)
	f.k.SetPolicies(Policies{Policies: []policy.Policy{{Name: "nightly"}, {Name: "hourly"}}})
}

// begin records a backup that begins, hour hours after the first.
func (f *figured) begin(origin, run, claim string, hour int) *Backup {
	f.Helper()
	at := time.Date(2026, 11, 1, hour, 0, 0, 0, time.UTC)
	b := newBackup("shop", Spec{Claim: claim, Run: run, Origin: origin, Source: &Source{Driver: "d"}}, at)
	ok(f.T, f.k.record(f.Context(), b, journal.Added))
	return b
}

// end records its end, minutes after it began.
func (f *figured) end(b *Backup, minutes int, phase Phase) {
	f.Helper()
	b.Status.Phase, b.Status.Finished, b.Status.Taken = phase, b.Metadata.Created.Add(time.Duration(minutes)*time.Minute), b.Metadata.Created.Add(time.Second)
	if phase == Done {
		b.Status.Snapshot, b.Status.Content = &csi.Handle{ID: "s"}, &Content{Sent: 100}
	}
	ok(f.T, f.k.record(f.Context(), b, journal.Modified))
}

func (f *figured) run(run string, hour, minutes int, claims map[string]Phase) {
	f.Helper()
	for claim, phase := range claims {
		f.end(f.begin("schedule/nightly", run, claim, hour), minutes, phase)
	}
}

// of are the figures of a policy.
func (f *figured) of(policy string) *Figures {
	f.Helper()
	all, err := f.k.Figures(f.Context())
	ok(f.T, err)
	for i := range all {
		if all[i].Policy == policy {
			return &all[i]
		}
	}
	return nil
}

func hour(h, minutes, seconds int) time.Time {
	return time.Date(2026, 11, 1, h, minutes, seconds, 0, time.UTC)
}

// TestFiguresOfAPolicy has one of two claims fail from the second run on, while another backup runs: the age is that of the claim that fails, whose newest whole
// backup is the oldest, and a backup by hand does not hide that.
func TestFiguresOfAPolicy(t *testing.T) {
	f := newFigured(t)
	f.run("r1", 0, 10, map[string]Phase{"a": Done, "b": Done})
	f.run("r2", 24, 30, map[string]Phase{"a": Done, "b": Failed})
	f.end(f.begin("manual", "m", "b", 25), 1, Done)
	f.begin("schedule/nightly", "r3", "a", 48)
	want := &Figures{
		Policy: "nightly", Driver: "d", Running: 1, Done: 3, Failed: 1, Sent: 300, LastDone: hour(24, 30, 0), LastFailed: hour(24, 30, 0), LastDuration: 30 * time.Minute,
		Claims: 2, Failing: 1, Newest: hour(0, 0, 1),
	}
	if d := cmp.Diff(want, f.of("nightly")); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(&Figures{Driver: "d", Done: 1, Sent: 100, LastDone: hour(25, 1, 0), LastDuration: time.Minute}, f.of("")); d != "" {
		t.Errorf("by hand: %s", d)
	}
	f.again() // another process counts anew; all else is in the records
	want.Done, want.Failed, want.Sent = 0, 0, 0
	if d := cmp.Diff(want, f.of("nightly")); d != "" {
		t.Errorf("in another process: %s", d)
	}
}

// TestFiguresCountAnEndOnce changes the record of a backup that has ended, and deletes it.
func TestFiguresCountAnEndOnce(t *testing.T) {
	f := newFigured(t)
	b := f.begin("schedule/nightly", "r1", "a", 0)
	f.end(b, 1, Done)
	f.end(b, 1, Done)
	ok(t, f.k.record(t.Context(), b, journal.Deleted))
	if d := cmp.Diff(&Figures{Policy: "nightly", Driver: "d", Done: 1, Sent: 100}, f.of("nightly")); d != "" {
		t.Error(d)
	}
}

// TestFiguresCountWhatADeadProcessLeft has the process end while it makes a backup: the next one, which ends the record, counts it as failed.
func TestFiguresCountWhatADeadProcessLeft(t *testing.T) {
	f := newFigured(t)
	f.begin("schedule/nightly", "r1", "a", 0)
	f.again()
	ok(t, f.k.Settle(t.Context()))
	if got := f.of("nightly"); got.Failed != 1 || got.Running != 0 || got.Failing != 1 || !got.Newest.Equal(hour(0, 0, 0)) {
		t.Errorf("%+v", got)
	}
}

// TestFiguresForgetClaims takes a claim out of a policy, and then all of them: what is not to be backed up any more grows old without alarm.
func TestFiguresForgetClaims(t *testing.T) {
	f := newFigured(t)
	claim := func(name string) *task {
		c := &corev1.PersistentVolumeClaim{}
		c.Namespace, c.Name = "shop", name
		return &task{Volume: policy.Volume{Claim: c, PV: &corev1.PersistentVolume{Spec: corev1.PersistentVolumeSpec{PersistentVolumeSource: corev1.PersistentVolumeSource{
			CSI: &corev1.CSIPersistentVolumeSource{Driver: "d"},
		}}}}}
	}
	cover := func(claims ...string) {
		u := &unit{}
		for _, c := range claims {
			u.tasks = append(u.tasks, claim(c))
		}
		f.k.tally.cover("nightly", []*unit{u}, hour(70, 0, 0))
	}
	f.run("r1", 0, 10, map[string]Phase{"a": Failed, "b": Done})
	f.run("r2", 24, 10, map[string]Phase{"b": Done})
	f.run("r3", 48, 10, map[string]Phase{"b": Done})
	if got := f.of("nightly"); got.Claims != 1 || got.Failing != 0 || !got.Newest.Equal(hour(48, 0, 1)) {
		t.Errorf("by the records: %+v", got)
	}
	cover("b", "new")
	if got := f.of("nightly"); got.Claims != 2 || !got.Newest.Equal(hour(48, 0, 1)) {
		t.Errorf("with a claim that was not backed up yet: %+v", got)
	}
	cover("new")
	if got := f.of("nightly"); got.Claims != 1 || !got.Newest.Equal(hour(70, 0, 0)) {
		t.Errorf("with that alone: %+v", got)
	}
	cover()
	if got := f.of("nightly"); got.Claims != 0 || !got.Newest.IsZero() {
		t.Errorf("with no claims: %+v", got)
	}
	f.k.SetPolicies(Policies{})
	cover("b")
	if got := f.of("nightly"); got.Claims != 0 || !got.Newest.IsZero() || got.LastDone.IsZero() {
		t.Errorf("without the policy: %+v", got)
	}
}

// BenchmarkFigures asks for the figures of 30,000 backups of 1,000 claims, as each scrape does.
func BenchmarkFigures(b *testing.B) {
	k := New(Options{})
	k.SetPolicies(Policies{Policies: []policy.Policy{{Name: "nightly"}}})
	ok := k.tally.load(context.Background(), func(context.Context) (all []*Backup, err error) {
		for run := range 30 {
			for claim := range 1000 {
				o := newBackup("shop", Spec{Claim: "c" + string(rune('a'+claim)), Run: string(rune('a' + run)), Origin: Scheduled("nightly"), Source: &Source{Driver: "d"}}, hour(run*24, 0, 0))
				o.Status.Phase, o.Status.Finished = Done, o.Metadata.Created.Add(time.Minute)
				o.Metadata.Name += "-" + string(rune('a'+claim))
				all = append(all, o)
			}
		}
		return all, nil
	})
	if ok != nil || len(k.tally.backups) != 30000 {
		b.Fatal(ok, len(k.tally.backups))
	}
	for b.Loop() {
		if _, err := k.Figures(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
