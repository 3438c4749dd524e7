package journal

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	iofs "io/fs"
	"iter"
	"path/filepath"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"go.uber.org/zap"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// ErrNotEmpty is returned by Rebuild for a data directory that holds a journal already.
var ErrNotEmpty = errors.New("there is a journal already")

// Rebuild makes a journal in the data directory dir out of what Export and ExportState gave:
// the time index and the versions, in the order of their keys, and the state at their end.
// horizon is where complete history begins in it. id is the new journal's ID.
//
// It is all or nothing: what a rebuild that was cut off left behind is removed by the next one.
func Rebuild(ctx context.Context, dir string, o Options, clusterID, id string, s State, horizon Cut, content iter.Seq2[[]byte, []byte]) error {
	o = o.withDefaults()
	final := filepath.Join(dir, "journal")
	if names, err := o.FS.List(final); err == nil && len(names) > 0 {
		return fmt.Errorf("%w in %s", ErrNotEmpty, dir)
	} else if err != nil && !errors.Is(err, iofs.ErrNotExist) {
		return err
	}
	store := filepath.Join(dir, "journal.new")
	if err := o.FS.RemoveAll(store); err != nil {
		return fmt.Errorf("remove what an earlier rebuild left behind: %w", err)
	}
	if err := makeDir(o.FS, store); err != nil {
		return fmt.Errorf("make data directory: %w", err)
	}
	j := &Journal{opts: o, log: o.Logger.Named("journal"), failed: make(chan struct{}), ledgers: map[schema.GroupResource]*Ledger{}}
	logger := &storeLog{journal: j, log: j.log.WithOptions(zap.AddCallerSkip(1)), stuck: make(chan struct{})}
	var err error
	if j.db, err = openStore(store, o.store(logger.events(), logger)); err != nil {
		return err
	}
	if err := errors.Join(j.rebuild(ctx, dir, clusterID, id, s, horizon, content), j.db.Close()); err != nil {
		return err
	}
	if err := o.FS.RemoveAll(final); err != nil { // an empty directory
		return err
	}
	if err := o.FS.Rename(store, final); err != nil {
		return err
	}
	d, err := o.FS.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (j *Journal) rebuild(ctx context.Context, dir, clusterID, id string, s State, horizon Cut, content iter.Seq2[[]byte, []byte]) error {
	if err := j.loadIdentity(dir); err != nil {
		return err
	}
	r := &rebuilder{j: j, seal: map[schema.GroupResource]bool{}, batch: j.db.NewBatch(), horizon: horizon.Time}
	for _, gr := range j.opts.Seal {
		r.seal[gr] = true
	}
	for k, v := range content {
		if err := errors.Join(context.Cause(ctx), r.add(k, v)); err != nil {
			return err
		}
	}
	if err := r.state(clusterID, id, s, horizon); err != nil {
		return err
	}
	return r.batch.Commit(pebble.Sync)
}

// rebuilder writes what a journal would have written, in batches that nobody waits for.
type rebuilder struct {
	j      *Journal
	seal   map[schema.GroupResource]bool
	batch  *pebble.Batch
	object []byte // prefix of the object whose newest version was seen

	horizon time.Time
	under   bool // the object's state at the horizon was seen
}

func (r *rebuilder) add(k, v []byte) error {
	if len(k) > 0 && k[0] == prefixVersion {
		if err := r.version(k, v); err != nil {
			return err
		}
	} else if at, err := decodeTimeKey(k); err != nil {
		return fmt.Errorf("key %q: %w", k, err)
	} else if at.Before(r.horizon) {
		return nil
	} else if err := r.batch.Set(k, v, nil); err != nil {
		return err
	}
	if r.batch.Len() < r.j.opts.BatchBytes {
		return nil
	}
	if err := r.batch.Commit(pebble.NoSync); err != nil {
		return err
	}
	r.batch = r.j.db.NewBatch()
	return nil
}

func (r *rebuilder) version(k, v []byte) error {
	o, revision, n, err := decodeVersion(k)
	if err != nil {
		return fmt.Errorf("key %q: %w", k, err)
	}
	m, body, err := decodeVersionMeta(v)
	if err != nil {
		return fmt.Errorf("value of %q: %w", k, err)
	}
	newest := !bytes.Equal(k[:n], r.object)
	if newest {
		r.object, r.under = append(r.object[:0], k[:n]...), false
	}
	if !m.observed.After(r.horizon) { // as Trim leaves it: the state at the horizon, and nothing older
		if r.under || m.op == Deleted {
			r.under = true
			return nil
		}
		r.under = true
	}
	if newest {
		head := appendHeadValue(nil, head{revision: revision, deleted: m.op == Deleted})
		if err := r.batch.Set(appendHead(nil, prefixHead, o), head, nil); err != nil {
			return err
		}
	}
	if r.seal[o.Resource] {
		e := m.event(o, revision)
		v = r.j.cipher.seal(appendVersionMeta(nil, &e, true), k, body)
	}
	return r.batch.Set(k, v, nil)
}

func (r *rebuilder) state(clusterID, id string, s State, horizon Cut) error {
	var errs []error
	set := func(key, value []byte) { errs = append(errs, r.batch.Set(key, value, nil)) }
	setJSON := func(key []byte, v any) {
		b, err := json.Marshal(v)
		errs = append(errs, err)
		set(key, b)
	}
	for i := range s.Ledgers {
		l := cloneLedger(&s.Ledgers[i])
		set(resourceKey(prefixWatermark, l.GroupResource()), appendWatermark(nil, l.Watermark))
		l.Watermark, l.Lag, l.Interrupted = Cut{}, 0, ""
		setJSON(resourceKey(prefixLedger, l.GroupResource()), l)
	}
	for _, m := range s.Marks {
		setJSON(nameKey(prefixMark, m.Name), m.Cut)
	}
	set(nameKey(prefixMeta, metaCluster), []byte(clusterID))
	if !s.Began.Time.IsZero() {
		set(nameKey(prefixMeta, metaBegan), appendWatermark(nil, s.Began))
	}
	if !horizon.Time.IsZero() {
		set(nameKey(prefixMeta, metaHorizon), appendWatermark(nil, horizon))
	}
	setJSON(nameKey(prefixMeta, metaLeftOut), s.LeftOut)
	setJSON(nameKey(prefixMeta, metaOutages), s.Outages)
	set(nameKey(prefixMeta, metaID), []byte(id))
	return errors.Join(errs...)
}
