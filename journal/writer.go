package journal

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"go.uber.org/zap"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// writer turns the queue into batches. All of it is owned by the goroutine of Journal.write.
type writer struct {
	j       *Journal
	ledgers map[schema.GroupResource]*Ledger // as of the batch being built
	seal    map[schema.GroupResource]bool

	last  time.Time // observed time of the newest entry of the index
	max   Revision  // highest revision of the main counter
	epoch uint32    // of the main counter
	count uint64    // events so far

	batch  *pebble.Batch
	began  time.Time // when the batch was begun
	round  round
	rounds chan<- round
	buf    []byte
}

// round is one batch on its way to the disk, and what becomes true once it is there.
type round struct {
	batch   *pebble.Batch
	events  int
	size    int64                              // room to give back
	touched map[schema.GroupResource]time.Time // when its oldest event was received; zero without one
	changed map[schema.GroupResource]bool      // ledgers to write, not only watermarks
	ledgers []*Ledger                          // what readers see afterwards
	newest  Cut
	count   uint64 // events up to newest
	done    []chan error
}

// write is the writer's goroutine: it fills batches while the disk syncs the ones before.
func (j *Journal) write() {
	rounds := make(chan round, 8)
	synced := make(chan struct{})
	go func() {
		defer close(synced)
		for r := range rounds {
			j.finish(r)
		}
	}()
	defer func() {
		if p := recover(); p != nil { // Pebble panics when the write-ahead log cannot be written
			j.fail(fmt.Errorf("write: %v", p))
			return // the process ends; nothing below may touch the store again
		}
		close(rounds)
		<-synced
		close(j.stopped)
	}()
	w := &j.writer
	w.rounds = rounds
	for {
		var n entry
		select {
		case n = <-j.tidying:
			if err := w.tidy(n); err != nil {
				j.fail(err)
				return
			}
			continue
		case n = <-j.queue:
		case <-j.failed:
			return
		case <-j.stop:
			if len(j.queue) == 0 {
				return
			}
			n = <-j.queue
		}
		if err := w.fill(n); err != nil {
			if !errors.Is(err, ErrClosed) {
				j.fail(err)
			}
			return
		}
	}
}

// fill builds batches from n and what is queued behind it, and hands them on.
func (w *writer) fill(n entry) error {
	w.begin()
	for more := true; more; {
		if n.exec != nil {
			if err := w.apply(); err != nil {
				return err
			}
			w.begin()
		}
		if err := w.add(n); err != nil {
			return err
		}
		if n.exec != nil || w.round.events >= w.j.opts.BatchEvents || w.batch.Len() >= w.j.opts.BatchBytes {
			break
		}
		if n, more = w.next(); !more && w.mayLinger() {
			w.linger()
			n, more = w.next()
		}
	}
	return w.apply()
}

// next takes an entry that is there already.
func (w *writer) next() (n entry, ok bool) {
	select {
	case n = <-w.j.queue:
		return n, true
	default:
		return n, false
	}
}

// lingering is how long a batch waits for more events when nobody waits for it: events that
// come one by one would each cost a sync of the disk, and wake half a dozen goroutines. What waits is not lost with the
// process: the watermark is not moved yet, and the watch resumes there.
const lingering = 20 * time.Millisecond

func (w *writer) mayLinger() bool {
	return len(w.round.done) == 0 && time.Since(w.began) < lingering
}

// linger sleeps, so that events which come in the meantime do not each wake the writer, until
// the batch has waited long enough or somebody waits for it.
func (w *writer) linger() {
	timer := time.NewTimer(lingering - time.Since(w.began))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-w.j.urgent:
	case <-w.j.stop:
	}
}

func (w *writer) begin() {
	select {
	case w.batch = <-w.j.spare:
	default:
		w.batch = w.j.db.NewBatch(pebble.WithInitialSizeBytes(64<<10), pebble.WithMaxRetainedSizeBytes(4<<20))
	}
	w.began = time.Now()
	w.round = round{batch: w.batch, touched: map[schema.GroupResource]time.Time{}, changed: map[schema.GroupResource]bool{}}
}

func (w *writer) add(n entry) error {
	r := &w.round
	r.size += n.size
	if n.done != nil {
		r.done = append(r.done, n.done)
	}
	switch {
	case n.event != nil:
		return w.addEvent(n.event, n.received, n.quiet)
	case n.advance != nil:
		return w.advance(*n.advance, n.rv, n.received)
	case n.seen != nil:
		return w.batch.Set(n.seen, nil, nil)
	case n.exec != nil:
		return n.exec(w)
	}
	return nil
}

// addEvent writes version, head and index entry, and moves the watermark.
func (w *writer) addEvent(e *Event, received time.Time, quiet bool) error {
	l := w.ledgers[e.Resource]
	if l == nil {
		return fmt.Errorf("event of %s before its first list", e.Resource)
	}
	if !quiet {
		if e.Revision.Epoch = l.Watermark.Epoch; e.Revision.RV <= l.Watermark.RV {
			return nil
		}
	}
	e.Observed = w.tickClock(received)
	if !l.OwnCounter && e.Revision.Compare(w.max) > 0 {
		w.max = e.Revision
	}
	w.count++
	if err := w.addVersion(e); err != nil {
		return err
	}
	o := object{Namespace: e.Namespace, Resource: e.Resource, Name: e.Name}
	w.buf = appendHead(w.buf[:0], prefixHead, o)
	n := len(w.buf)
	w.buf = appendHeadValue(w.buf, head{revision: e.Revision, deleted: e.Op == Deleted})
	if err := w.batch.Set(w.buf[:n], w.buf[n:], nil); err != nil {
		return err
	}
	if err := w.index(&indexEntry{op: e.Op, flags: e.Flags, revision: e.Revision, object: o}); err != nil {
		return err
	}
	w.round.events++
	w.j.appended.Add(1)
	w.j.appendedBytes.Add(int64(len(e.Object)))
	if !quiet {
		l.Watermark = Cut{Revision: e.Revision, Time: e.Observed}
		w.touch(e.Resource, received)
	}
	return nil
}

func (w *writer) addVersion(e *Event) error {
	key := appendVersion(nil, object{Namespace: e.Namespace, Resource: e.Resource, Name: e.Name}, e.Revision)
	if w.seal[e.Resource] {
		return w.batch.Set(key, w.j.cipher.seal(appendVersionMeta(nil, e, true), key, e.Object), nil)
	}
	w.buf = appendVersionMeta(w.buf[:0], e, false)
	d := w.batch.SetDeferred(len(key), len(w.buf)+len(e.Object))
	copy(d.Key, key)
	copy(d.Value[copy(d.Value, w.buf):], e.Object)
	return d.Finish()
}

// index writes the entry of the time index for the moment w.last.
func (w *writer) index(e *indexEntry) error {
	e.max, e.count = w.max, w.count
	return w.batch.Set(timeKey(w.last), appendIndexEntry(nil, e), nil)
}

// tickClock gives the next observed time: the wall clock's, but always later than the one before.
func (w *writer) tickClock(received time.Time) time.Time {
	t := time.Unix(0, received.UnixNano()).UTC()
	if !t.After(w.last) {
		t = w.last.Add(1)
	}
	w.last = t
	return t
}

// advance moves a watermark without an event.
func (w *writer) advance(gr schema.GroupResource, rv uint64, received time.Time) error {
	l := w.ledgers[gr]
	if l == nil || l.First.Time.IsZero() || l.Comparing != "" || rv < l.Watermark.RV {
		return nil
	}
	ahead := Revision{Epoch: l.Watermark.Epoch, RV: rv}
	if !l.OwnCounter && ahead.Compare(w.max) > 0 && received.Sub(w.last) > time.Second {
		if err := w.tick(ahead, received); err != nil {
			return err
		}
	}
	l.Watermark = Cut{Revision: ahead, Time: latest(received, w.last)}
	w.touch(gr, time.Time{})
	return nil
}

// tick notes in the time index that the main counter was seen at r.
func (w *writer) tick(r Revision, received time.Time) error {
	if r.Compare(w.max) > 0 {
		w.max = r
	}
	w.tickClock(received)
	return w.index(&indexEntry{})
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return time.Unix(0, a.UnixNano()).UTC()
	}
	return b
}

func (w *writer) touch(gr schema.GroupResource, received time.Time) {
	if oldest := w.round.touched[gr]; oldest.IsZero() {
		w.round.touched[gr] = received
	}
}

// apply ends the batch: watermarks and ledgers go in, then it is handed to the disk.
func (w *writer) apply() error {
	r := w.round
	for gr := range r.touched {
		l := w.ledgers[gr]
		if err := w.batch.Set(resourceKey(prefixWatermark, gr), appendWatermark(nil, l.Watermark), nil); err != nil {
			return err
		}
		if r.changed[gr] {
			saved := cloneLedger(l)
			saved.Watermark, saved.Lag = Cut{}, 0
			b, err := json.Marshal(saved)
			if err != nil {
				return err
			}
			if err := w.batch.Set(resourceKey(prefixLedger, gr), b, nil); err != nil {
				return err
			}
		}
		r.ledgers = append(r.ledgers, cloneLedger(l))
	}
	r.newest, r.count = Cut{Revision: w.max, Time: w.last}, w.count
	w.batch = nil
	if r.batch.Empty() {
		w.rounds <- r
		return nil
	}
	if err := w.awaitSpace(); err != nil {
		return err
	}
	return w.commit(r)
}

func (w *writer) commit(r round) error {
	if err := w.j.db.ApplyNoSyncWait(r.batch, pebble.Sync); err != nil {
		return err
	}
	w.rounds <- r
	return nil
}

// tidy runs n in a batch of its own that waits for no space. A batch that does wait is not
// touched: what it holds has no newest moment and no ledgers yet that readers may see.
func (w *writer) tidy(n entry) error {
	w.begin()
	if err := w.add(n); err != nil {
		return err
	}
	return w.commit(w.round)
}

// recycle keeps the memory of a few batches: they grow to megabytes, and each garbage
// collection empties Pebble's own pool of them.
func (j *Journal) recycle(b *pebble.Batch) error {
	b.Reset()
	select {
	case j.spare <- b:
		return nil
	default:
		return b.Close()
	}
}

// finish waits for the batch's sync and then lets everybody know.
func (j *Journal) finish(r round) {
	if !r.batch.Empty() {
		if err := r.batch.SyncWait(); err != nil {
			j.fail(err)
		}
	}
	if j.Err() != nil {
		return // after one failed sync, a later one that works proves nothing
	}
	if err := j.recycle(r.batch); err != nil {
		j.fail(err)
		return
	}
	j.room.Release(r.size)
	j.mu.Lock()
	now := j.opts.Clock()
	for _, l := range r.ledgers {
		gr := l.GroupResource()
		if received := r.touched[gr]; !received.IsZero() {
			l.Lag = now.Sub(received)
		} else if before := j.ledgers[gr]; before != nil {
			l.Lag = before.Lag
		}
		j.ledgers[gr] = l
	}
	if r.newest.Time.After(j.newest.Time) {
		j.newest, j.count = r.newest, r.count
		close(j.advanced)
		j.advanced = make(chan struct{})
	}
	j.mu.Unlock()
	for _, done := range r.done {
		done <- nil
	}
}

// awaitSpace blocks while the disk is so full that the store could not even tidy up. Nothing
// that was acknowledged depends on what waits here.
func (w *writer) awaitSpace() error {
	j := w.j
	for paused := false; ; paused = true {
		free, err := j.opts.Free()
		if err != nil || free >= j.opts.MinFree {
			if paused {
				j.setCondition("")
				j.log.Info("recording goes on: there is space again", zap.Uint64("freeBytes", free))
			}
			return nil
		}
		if !paused {
			j.setCondition(j.spaceTrouble())
			j.log.Error("disk full: recording is paused", zap.Uint64("freeBytes", free), zap.Uint64("neededBytes", j.opts.MinFree))
		}
		select {
		case <-time.After(250 * time.Millisecond):
		case n := <-j.tidying:
			if err := w.tidy(n); err != nil {
				return err
			}
		case <-j.stop:
			return ErrClosed
		case <-j.failed:
			return j.Err()
		}
	}
}

// spaceTrouble says that the disk is too full to record; empty when it is not.
func (j *Journal) spaceTrouble() string {
	free, err := j.opts.Free()
	if err != nil || free >= j.opts.MinFree {
		return ""
	}
	return fmt.Sprintf("disk full: recording is paused, %d MiB free of the %d MiB it needs; free space, or lower --min-free or --window (changes are caught up when it goes on)",
		free>>20, j.opts.MinFree>>20)
}
