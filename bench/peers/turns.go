package main

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// ourRestores are the restores of our turn. The last one is out of the bucket alone, as all of Velero's are.
var ourRestores = []string{"restore-other", "restore-same", "restore-bucket"}

// bench is what the flags ask for.
type bench struct {
	rate     int
	churn    time.Duration
	turns    []string
	profiles string // directory for profiles of the daemon; empty: none
}

// veleroTurn takes three backups and restores one namespace twice, each restore by a server of its own: a server keeps
// the memory that it once had.
func (b *bench) veleroTurn(ctx context.Context, l *lab, tool string, flags []string) (all []sample, err error) {
	v, err := l.newVelero(ctx, tool, flags)
	if err != nil {
		return nil, err
	}
	keep := func(scenario string, f func() (map[string]float64, error)) error {
		s, err := l.measure(ctx, v.subject(), scenario, f)
		if err == nil {
			all = append(all, s)
		}
		return err
	}
	serve := func(f func() error) error {
		if err := v.start(ctx); err != nil {
			return err
		}
		defer v.stop()
		return f()
	}
	backup := func() (map[string]float64, error) { return v.backup(ctx) }
	err = serve(func() error {
		if err := keep("backup-first", backup); err != nil {
			return err
		}
		if err := keep("backup-unchanged", backup); err != nil {
			return err
		}
		if err := l.changeSome(ctx); err != nil {
			return err
		}
		return keep("backup-changed", backup)
	})
	if err != nil {
		return all, err
	}
	return all, b.restores(ctx, l, []string{"restore-other", "restore-same"}, func(scenario, from, to string) error {
		return serve(func() error {
			return keep(scenario, func() (map[string]float64, error) { return v.restore(ctx, from, to) })
		})
	}, &all)
}

// restores restores a namespace under another name, or under its own after it was deleted (restore-same), checks that all
// is there, and leaves the cluster as it was.
func (b *bench) restores(ctx context.Context, l *lab, scenarios []string, restore func(scenario, from, to string) error, all *[]sample) error {
	from := namespaceName(0)
	want, err := l.count(ctx, from)
	if err != nil {
		return err
	}
	restored := []string{from}
	for _, scenario := range scenarios {
		to := from + "-" + scenario
		if scenario == "restore-same" {
			to = from
		} else {
			restored = append(restored, to)
		}
		if err := l.deleteNamespace(ctx, to); err != nil {
			return err
		}
		if err := l.awaitForgotten(ctx, to); err != nil {
			return err
		}
		if err := l.awaitQuiet(ctx); err != nil {
			return err
		}
		if err := restore(scenario, from, to); err != nil {
			return err
		}
		got, err := l.count(ctx, to)
		if err != nil {
			return err
		}
		s := &(*all)[len(*all)-1]
		s.Values["objects"] = float64(got)
		s.Values["objects_missing"] = float64(want - got)
		s.Values["objects_per_second"] = float64(got) / s.Values["seconds"]
		s.Values["requests_per_object"] = s.Values["requests"] / float64(max(got, 1))
		l.say("%-14s %-18s %d of %d objects, %.0f/s, %.2f requests each", s.Tool, s.Scenario, got, want, s.Values["objects_per_second"], s.Values["requests_per_object"])
	}
	// What a tool has restored is not what the next one is to back up: it may have other managers.
	for _, ns := range restored {
		if err := l.deleteNamespace(ctx, ns); err != nil {
			return err
		}
	}
	if err := l.awaitForgotten(ctx, from); err != nil {
		return err
	}
	mine := 0
	for mine < len(l.objects) && l.objects[mine].GetNamespace() == from {
		mine++
	}
	return l.fill(ctx, l.objects[:mine], l.kinds[:mine])
}

// tidemarkTurn starts a daemon with an empty archive, records a churn, and, if it is to do all, takes three
// snapshots, and restores.
func (b *bench) tidemarkTurn(ctx context.Context, l *lab, whole bool) (all []sample, err error) {
	t, err := l.newTidemark(ctx, b.profiles)
	if err != nil {
		return nil, err
	}
	defer t.stop()
	keep := func(s subject, scenario string, f func() (map[string]float64, error)) error {
		one, err := l.measure(ctx, s, scenario, f)
		if err == nil {
			all = append(all, one)
		}
		return err
	}
	first := subject{tool: "tidemark", user: "tidemark", bucket: t.bucket, start: func() (int, error) {
		err := t.start()
		return t.process.Pid(), err
	}}
	err = keep(first, "first-recording", func() (map[string]float64, error) {
		if err := t.awaitArchived(ctx); err != nil {
			return nil, err
		}
		s, err := t.status(ctx)
		if err != nil {
			return nil, err
		}
		return map[string]float64{"events": s.Totals.Events, "journal_bytes": s.Totals.DiskBytes, "stored_bytes": s.Archives[0].Bytes}, nil
	})
	if err != nil {
		return all, err
	}
	// Before the archive has any other history: merging that would count as the churn's.
	if err := b.tidemarkChurn(ctx, l, t, keep); err != nil {
		return all, err
	}
	if !whole {
		return all, nil
	}
	for _, scenario := range []string{"backup-first", "backup-unchanged", "backup-changed"} {
		before, err := t.retained(ctx)
		if err != nil {
			return all, err
		}
		if scenario == "backup-changed" { // what the changes themselves take belongs to it; they are archived when the snapshot begins
			if err := l.changeSome(ctx); err != nil {
				return all, err
			}
			if err := t.awaitArchived(ctx); err != nil {
				return all, err
			}
		}
		if err := keep(t.subject(), scenario, func() (map[string]float64, error) { return t.snapshot(ctx, before) }); err != nil {
			return all, err
		}
	}
	status, err := t.status(ctx)
	if err != nil {
		return all, err
	}
	at := status.Catalog.To.Revision
	return all, b.restores(ctx, l, ourRestores, func(scenario, from, to string) error {
		if scenario != "restore-bucket" {
			return keep(t.subject(), scenario, func() (map[string]float64, error) { return t.restore(ctx, at, from, to, t.daemonFlags()) })
		}
		if err := t.awaitArchived(ctx); err != nil {
			return err
		}
		t.stop()
		alone := subject{tool: "tidemark", user: "tidemark", bucket: t.bucket}
		return keep(alone, scenario, func() (map[string]float64, error) { return t.restore(ctx, at, from, to, t.bucketFlags()) })
	}, &all)
}

func (b *bench) tidemarkChurn(ctx context.Context, l *lab, t *tidemark, keep func(subject, string, func() (map[string]float64, error)) error) error {
	if err := t.profiles.heap(ctx, "listed"); err != nil {
		return err
	}
	counted := func(scenario string, f func() error) error {
		if err := t.awaitMerged(ctx); err != nil { // not a part of what is measured
			return err
		}
		before, err := t.status(ctx)
		if err != nil {
			return err
		}
		return keep(t.subject(), scenario, func() (map[string]float64, error) {
			err := t.profiles.begin(ctx)
			if err == nil {
				err = f()
			}
			if err == nil {
				err = t.awaitArchived(ctx)
			}
			if err == nil {
				err = t.profiles.end(ctx, scenario)
			}
			if err != nil {
				return nil, err
			}
			after, err := t.status(ctx)
			if err != nil {
				return nil, err
			}
			return map[string]float64{
				"events": after.Totals.Events - before.Totals.Events, "stored_bytes": after.Archives[0].Bytes - before.Archives[0].Bytes,
				"journal_bytes": after.Totals.DiskBytes - before.Totals.DiskBytes,
			}, nil
		})
	}
	if err := counted("churn", func() error { return l.churn(ctx, b.rate, b.churn, nil) }); err != nil {
		return err
	}
	if err := counted("flood", func() error { return l.floodNow(ctx) }); err != nil {
		return err
	}
	if err := t.profiles.heap(ctx, "flooded"); err != nil {
		return err
	}
	return keep(t.subject(), "lag", func() (map[string]float64, error) { return b.tidemarkLag(ctx, l, t) })
}

// tidemarkLag asks the daemon again and again what is durable, as a user with a stopwatch would.
func (b *bench) tidemarkLag(ctx context.Context, l *lab, t *tidemark) (map[string]float64, error) {
	var inJournal, inArchive writes
	var journal, archive spread
	ctx, cancel := context.WithTimeout(ctx, lagTime+2*time.Minute)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		done <- l.churn(ctx, b.rate, lagTime, func(w write) { inJournal.add(w); inArchive.add(w) })
	}()
	for ended := false; !ended || len(inArchive.copy()) > 0 || len(inJournal.copy()) > 0; {
		select {
		case err := <-done:
			if err != nil {
				return nil, err
			}
			ended = true
		case <-time.After(pollEvery):
		case <-ctx.Done():
			return nil, fmt.Errorf("changes are not durable: %d are not in the journal, %d not in the archive: %w", len(inJournal.copy()), len(inArchive.copy()), ctx.Err())
		}
		asked := time.Now() // later changes cannot be meant
		s, err := t.status(ctx)
		if err != nil {
			return nil, err
		}
		now := time.Now()
		watermarks := map[string]uint64{}
		for _, r := range s.Catalog.Resources {
			watermarks[r.Group+"/"+r.Resource] = r.Watermark.Revision
		}
		for _, w := range inJournal.take(func(w write) bool { return watermarks[w.resource.Group+"/"+w.resource.Resource] >= w.revision }) {
			journal = append(journal, now.Sub(w.at).Seconds())
		}
		for _, w := range inArchive.take(func(w write) bool { return w.at.Before(asked) && s.Archives[0].ArchivedTo.Revision >= w.revision }) {
			archive = append(archive, now.Sub(w.at).Seconds())
		}
	}
	slices.Sort(journal)
	slices.Sort(archive)
	return map[string]float64{
		"journal_p50": journal.quantile(0.5), "journal_p99": journal.quantile(0.99),
		"archive_p50": archive.quantile(0.5), "archive_p99": archive.quantile(0.99),
	}, nil
}

// informerTurn does with the recorder what it can do: list, and record the same churn.
func (b *bench) informerTurn(ctx context.Context, l *lab, tool string) (all []sample, err error) {
	r, err := l.newInformer(ctx, tool)
	if err != nil {
		return nil, err
	}
	defer r.stop()
	keep := func(s subject, scenario string, f func() (map[string]float64, error)) error {
		one, err := l.measure(ctx, s, scenario, f)
		if err == nil {
			all = append(all, one)
		}
		return err
	}
	// counted adds what was written to the file.
	counted := func(f func() error) func() (map[string]float64, error) {
		return func() (map[string]float64, error) {
			objects, bytes, err := r.written()
			if err != nil {
				return nil, err
			}
			began := time.Now()
			if err := f(); err != nil {
				return nil, err
			}
			took := time.Since(began)
			if err := r.awaitRest(ctx); err != nil {
				return nil, err
			}
			nowObjects, nowBytes, err := r.written()
			return map[string]float64{"seconds": took.Seconds(), "events": float64(nowObjects - objects), "written_bytes": float64(nowBytes - bytes), "stored_bytes": float64(nowBytes - bytes)}, err
		}
	}
	first := subject{tool: tool, user: tool, start: func() (int, error) {
		err := r.start()
		return r.process.Pid(), err
	}}
	if err := keep(first, "first-recording", counted(func() error { return r.awaitListed(ctx) })); err != nil {
		return all, err
	}
	if err := keep(r.subject(), "churn", counted(func() error { return l.churn(ctx, b.rate, b.churn, nil) })); err != nil {
		return all, err
	}
	if err := keep(r.subject(), "flood", counted(func() error { return l.floodNow(ctx) })); err != nil {
		return all, err
	}
	if r.mode != "record" {
		return all, nil
	}
	err = keep(r.subject(), "lag", func() (map[string]float64, error) {
		var sent writes
		if err := l.churn(ctx, b.rate, lagTime, sent.add); err != nil {
			return nil, err
		}
		if err := r.awaitRest(ctx); err != nil {
			return nil, err
		}
		return r.lag(sent.copy())
	})
	return all, err
}

// awaitRest waits until nothing more is written.
func (r *informer) awaitRest(ctx context.Context) error {
	last, since := -1, time.Now()
	return r.await(ctx, "the recorder to have written everything", func() (bool, error) {
		n, _, err := r.written()
		if n != last {
			last, since = n, time.Now()
		}
		return time.Since(since) > time.Second, err
	})
}

// lag is how long after each change the next fsync ended that has it, or a later one.
func (r *informer) lag(sent []write) (map[string]float64, error) {
	said, err := r.said()
	if err != nil {
		return nil, err
	}
	var lags spread
	for _, w := range sent {
		for _, s := range said {
			if s.revision >= w.revision {
				lags = append(lags, max(0, s.at.Sub(w.at)).Seconds()) // a file can be ahead of the answer to the writer
				break
			}
		}
	}
	slices.Sort(lags)
	return map[string]float64{"journal_p50": lags.quantile(0.5), "journal_p99": lags.quantile(0.99)}, nil
}
