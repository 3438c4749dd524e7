package volumes

import (
	"time"
)

// PickRequest says which backup of each claim belongs to a moment.
type PickRequest struct {
	At time.Time
	// Nearest takes the nearest one, also one that was taken after the moment. Otherwise it is the newest one at or before it.
	Nearest bool
	// Name is the name of a backup, or of a run: that, and nothing else.
	Name string
}

// Pick gives the backup of each claim that belongs to a moment, by "namespace/name". Only those count whose content is whole.
func Pick(all []*Backup, q PickRequest) map[string]*Backup {
	picked := map[string]*Backup{}
	for _, b := range all {
		if b.Spec.Claim == "" || b.Status.Phase != Done || b.Status.Snapshot == nil && b.Status.Content == nil {
			continue
		}
		off := q.At.Sub(b.Read())
		if q.Name != "" && b.Metadata.Name != q.Name && b.Spec.Run != q.Name || q.Name == "" && !q.Nearest && off < 0 {
			continue
		}
		was := picked[b.Volume()]
		if was == nil || off.Abs() < q.At.Sub(was.Read()).Abs() || off.Abs() == q.At.Sub(was.Read()).Abs() && b.better(was) {
			picked[b.Volume()] = b
		}
	}
	return picked
}

// Moment is the instant of the content, by the clock of history: that of the storage may differ.
func (b *Backup) Moment() time.Time {
	at := b.Status.Taken
	if before := b.Status.Before.Time; !before.IsZero() && at.Before(before) {
		at = before
	}
	if after := b.Status.After.Time; !after.IsZero() && at.After(after) {
		at = after
	}
	return at
}

// Read is the instant by which all of the content was read. Files that are read while they are used are of any time up to it.
func (b *Backup) Read() time.Time {
	if b.Status.Consistency != Live {
		return b.Moment()
	}
	if after := b.Status.After.Time; !after.IsZero() {
		return after
	}
	if !b.Status.Finished.IsZero() {
		return b.Status.Finished
	}
	return b.Moment()
}

// better says which of two of one moment to take: what holds more.
func (b *Backup) better(than *Backup) bool {
	order := map[Consistency]int{Live: 0, Crash: 1, CrashGroup: 2, Application: 3}
	return order[b.Status.Consistency] > order[than.Status.Consistency]
}
