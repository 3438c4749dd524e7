package journal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"go.uber.org/zap"
	"golang.org/x/sync/semaphore"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

var (
	// ErrLocked is returned by Open when another process holds the data directory.
	ErrLocked = errors.New("the data directory is in use by another tidemark daemon")
	// ErrOtherCluster is returned by Bind when the journal records another cluster.
	ErrOtherCluster = errors.New("the journal records another cluster")
	// ErrWrongKey is returned by Open when the key is not the one the journal was made with.
	ErrWrongKey = errors.New("the key does not fit this journal")
	// ErrClosed is returned once the journal was closed or has failed.
	ErrClosed = errors.New("the journal is closed")
	// ErrBadName is returned for an event whose resource or name is empty or holds a zero byte.
	ErrBadName = errors.New("not a valid object name")
	// ErrNoMark is returned by MarkedCut for a name that was never given.
	ErrNoMark = errors.New("no such name")
)

// formatVersion is written into new journals; a journal of a later version is refused.
const formatVersion = 1

// Names of what is kept under prefixMeta.
const (
	metaFormat   = "format"
	metaCluster  = "cluster"
	metaKeyCheck = "keycheck"
	metaHorizon  = "horizon"
	metaBegan    = "began"
	metaLeftOut  = "leftout"
	metaOutages  = "outages"
	metaAge      = "age"
	metaID       = "id"
	metaNote     = "note/" // of SetNote
)

// keyCheckText is sealed into a new journal, so that a wrong key is found at once.
const keyCheckText = "tidemark journal key"

// Journal is the durable record of one cluster. Its methods may be called from any goroutine.
type Journal struct {
	opts   Options
	log    *zap.Logger
	db     *pebble.DB
	tables *Tables // db, to read
	lock   *pebble.Lock
	cipher *bodyCipher

	queue   chan entry
	tidying chan entry          // work that need not wait for space; see tidy
	urgent  chan struct{}       // holds a token once an entry was queued that somebody waits for
	spare   chan *pebble.Batch  // to be used again
	room    *semaphore.Weighted // bytes of events that may still be queued
	writer  writer              // owned by the writer goroutine
	stop    chan struct{}       // closed by Close
	closing sync.Once
	closed  error         // what the first Close returned
	stopped chan struct{} // closed when both writer goroutines have ended

	mu      sync.RWMutex // guards what follows: the durable state, as readers see it
	ledgers map[schema.GroupResource]*Ledger
	newest  Cut    // newest durable moment
	count   uint64 // events up to there
	horizon Cut    // history before it is trimmed
	outages []Outage
	// what is watched right now, as the capture tells; not kept
	watched     map[schema.GroupResource]bool
	interrupted map[schema.GroupResource]string
	began       Cut // the first lists of the first start were complete
	clusterID   string
	id          string
	condition   string        // why recording is paused
	advanced    chan struct{} // closed and replaced when newest moves

	trimming sync.Mutex // held during a round of Trim; guards what follows
	age      age
	keep     *time.Time // of KeepAfter

	appended, appendedBytes atomic.Int64 // events since Open, and their bytes

	failOnce sync.Once
	failed   chan struct{}
	failure  error // set before failed is closed
}

// Open opens the journal in the data directory dir, or makes one. The directory holds
// "journal" (the store) and, unless Options say otherwise, "journal.key".
//
// It returns ErrLocked, ErrWrongKey, or a *CorruptionError that names the damaged file; every
// table's checksums are verified before the journal is used.
func Open(dir string, o Options) (*Journal, error) {
	o = o.withDefaults()
	store := filepath.Join(dir, "journal")
	if err := makeDir(o.FS, store); err != nil {
		return nil, fmt.Errorf("make data directory: %w", err)
	}
	j := &Journal{
		opts: o, log: o.Logger.Named("journal"),
		queue: make(chan entry, 4096), spare: make(chan *pebble.Batch, 3), urgent: make(chan struct{}, 1), tidying: make(chan entry), room: semaphore.NewWeighted(o.QueueBytes),
		stop: make(chan struct{}), stopped: make(chan struct{}), failed: make(chan struct{}), advanced: make(chan struct{}),
		ledgers: map[schema.GroupResource]*Ledger{},
		watched: map[schema.GroupResource]bool{}, interrupted: map[schema.GroupResource]string{},
	}
	if o.Free == nil {
		j.opts.Free = func() (uint64, error) {
			u, err := o.FS.GetDiskUsage(dir)
			return u.AvailBytes, err
		}
	}
	var err error
	if j.lock, err = lockDir(o.FS, dir, store); err != nil {
		return nil, err
	}
	logger := &storeLog{journal: j, log: j.log.WithOptions(zap.AddCallerSkip(1)), stuck: make(chan struct{})}
	opened := make(chan error, 1)
	go func() { opened <- j.open(dir, store, logger) }()
	select {
	case err = <-opened:
	case <-logger.stuck: // the store is held where it met the error; the directory stays locked
		return nil, j.Err()
	}
	if err != nil {
		return nil, errors.Join(err, j.lock.Close())
	}
	logger.opened.Store(true)
	go j.write()
	return j, nil
}

func (j *Journal) open(dir, store string, logger *storeLog) error {
	p := j.opts.store(logger.events(), logger)
	p.Lock = j.lock
	var err error
	if j.db, err = openStore(store, p); err != nil {
		return err
	}
	if err = errors.Join(verifyTables(j.db, j.opts.FS, store), j.verifyIndex(store), j.load(dir)); err != nil {
		return errors.Join(err, j.db.Close())
	}
	return nil
}

// load reads what the journal knows about itself, or writes it into a new one.
func (j *Journal) load(dir string) error {
	if err := j.loadIdentity(dir); err != nil {
		return err
	}
	if err := j.loadLedgers(); err != nil {
		return err
	}
	j.writer = writer{j: j, ledgers: map[schema.GroupResource]*Ledger{}, seal: map[schema.GroupResource]bool{}}
	for gr, l := range j.ledgers {
		j.writer.ledgers[gr] = cloneLedger(l)
		if !l.OwnCounter && l.Watermark.Epoch > j.writer.epoch {
			j.writer.epoch = l.Watermark.Epoch
		}
	}
	for _, gr := range j.opts.Seal {
		j.writer.seal[gr] = true
	}
	last, entry, err := j.lastEntry()
	if err != nil {
		return err
	}
	j.writer.last, j.writer.max, j.writer.count = last, entry.max, entry.count
	j.writer.epoch = max(j.writer.epoch, entry.max.Epoch)
	j.newest, j.count = Cut{Revision: entry.max, Time: last}, entry.count
	return nil
}

// loadIdentity checks format and key.
func (j *Journal) loadIdentity(dir string) error {
	format, err := j.meta(metaFormat)
	if err != nil {
		return err
	}
	key := j.opts.Key
	if key == nil {
		path := j.opts.KeyFile
		if path == "" {
			path = filepath.Join(dir, "journal.key")
		}
		if key, err = loadKey(path, format == nil); err != nil {
			return fmt.Errorf("journal key: %w", err)
		}
	}
	if j.cipher, err = newBodyCipher(key); err != nil {
		return err
	}
	j.tables = &Tables{open: func(o *pebble.IterOptions) (*pebble.Iterator, error) { return j.db.NewIter(o) }, cipher: j.cipher}
	if err := j.loadID(); err != nil {
		return err
	}
	checkKey := nameKey(prefixMeta, metaKeyCheck)
	if format == nil {
		b := j.db.NewBatch()
		defer b.Close()
		sealed := j.cipher.seal(nil, checkKey, []byte(keyCheckText))
		return errors.Join(b.Set(checkKey, sealed, nil), b.Set(nameKey(prefixMeta, metaFormat), fmt.Appendf(nil, "%d", formatVersion), nil), b.Commit(pebble.Sync))
	}
	if string(format) != fmt.Sprint(formatVersion) {
		return fmt.Errorf("journal %s has format %q, this tidemark reads %d: use a newer tidemark, or another --data-dir", dir, format, formatVersion)
	}
	check, err := j.meta(metaKeyCheck)
	if err != nil {
		return err
	}
	if text, err := j.cipher.open(checkKey, check); err != nil || string(text) != keyCheckText {
		return fmt.Errorf("%w: give the one it was made with (--key-file), or begin with a new --data-dir", ErrWrongKey)
	}
	cluster, err := j.meta(metaCluster)
	if err != nil {
		return err
	}
	j.clusterID = string(cluster)
	return errors.Join(j.loadCut(metaHorizon, &j.horizon), j.loadCut(metaBegan, &j.began), j.loadAge(), j.loadOutages())
}

func (j *Journal) loadCut(name string, c *Cut) error {
	v, err := j.meta(name)
	if err != nil || v == nil {
		return err
	}
	*c, err = decodeWatermark(v)
	return err
}

func (j *Journal) loadLedgers() error {
	err := j.scan([]byte{prefixLedger}, func(k, v []byte) error {
		l := &Ledger{}
		if err := json.Unmarshal(v, l); err != nil {
			return fmt.Errorf("read ledger %q: %w", k[1:], err)
		}
		j.ledgers[l.GroupResource()] = l
		return nil
	})
	if err != nil {
		return err
	}
	return j.scan([]byte{prefixWatermark}, func(k, v []byte) error {
		l := j.ledgers[schema.ParseGroupResource(string(k[1:]))]
		if l == nil {
			return fmt.Errorf("watermark %q has no ledger", k[1:])
		}
		var err error
		l.Watermark, err = decodeWatermark(v)
		return err
	})
}

// scan calls f with each key that has the prefix; k and v are valid during the call only.
func (j *Journal) scan(prefix []byte, f func(k, v []byte) error) error {
	it, err := j.db.NewIter(&pebble.IterOptions{LowerBound: prefix, UpperBound: keyAfter(prefix)})
	if err != nil {
		return err
	}
	for it.First(); it.Valid() && err == nil; it.Next() {
		err = f(it.Key(), it.Value())
	}
	return errors.Join(err, it.Close())
}

// get returns a copy of the key's value, nil when there is none.
func (j *Journal) get(key []byte) ([]byte, error) {
	v, closer, err := j.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return slices.Clone(v), closer.Close()
}

func (j *Journal) meta(name string) ([]byte, error) { return j.get(nameKey(prefixMeta, name)) }

// Bind ties the journal to a cluster by the uid of its kube-system namespace. The first call
// on a new journal sets it; later ones return ErrOtherCluster when it differs.
func (j *Journal) Bind(ctx context.Context, clusterID string) error {
	if clusterID == "" {
		return errors.New("bind journal: the cluster has no id")
	}
	if j.ClusterID() == "" {
		if err := j.do(ctx, entry{exec: func(w *writer) error { return w.bind(clusterID) }}); err != nil {
			return err
		}
	}
	if own := j.ClusterID(); own != clusterID {
		return fmt.Errorf("%w: it was made for the cluster with id %s, this one has %s: use the kubeconfig of that cluster, or another --data-dir for this one",
			ErrOtherCluster, own, clusterID)
	}
	return nil
}

// bind notes the cluster, unless another caller of Bind was first.
func (w *writer) bind(clusterID string) error {
	w.j.mu.Lock()
	defer w.j.mu.Unlock()
	if w.j.clusterID != "" {
		return nil
	}
	w.j.clusterID = clusterID
	return w.batch.Set(nameKey(prefixMeta, metaCluster), []byte(clusterID), nil)
}

// ClusterID is the uid the journal was bound to; empty before the first Bind.
func (j *Journal) ClusterID() string {
	j.mu.RLock()
	defer j.mu.RUnlock()
	return j.clusterID
}

// Condition says why recording is paused; empty when it is not.
func (j *Journal) Condition() string {
	j.mu.RLock()
	condition := j.condition
	j.mu.RUnlock()
	if condition != "" {
		return condition
	}
	return j.spaceTrouble() // of which the writer learns with the next change
}

func (j *Journal) setCondition(s string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.condition = s
}

// Failed is closed when the journal cannot go on: an I/O error below it. The process must then
// end; what was acknowledged is on disk and is there when it starts again. Err tells why.
func (j *Journal) Failed() <-chan struct{} { return j.failed }

// Err returns why the journal failed, nil while it works.
func (j *Journal) Err() error {
	select {
	case <-j.failed:
		return j.failure
	default:
		return nil
	}
}

func (j *Journal) fail(err error) {
	j.failOnce.Do(func() {
		j.failure = fmt.Errorf("journal: %w", err)
		j.log.Error("the journal cannot go on", zap.Error(err))
		close(j.failed)
	})
}

// Flush returns once all that was appended before is durable.
func (j *Journal) Flush(ctx context.Context) error {
	return j.do(ctx, entry{})
}

// Close writes what is queued, syncs and closes. After a failure it returns that failure and
// leaves the files as they are. Further calls return what the first one did. Views and Tails
// must be closed before.
func (j *Journal) Close() error {
	j.closing.Do(func() { j.closed = j.close() })
	return j.closed
}

func (j *Journal) close() error {
	close(j.stop)
	select {
	case <-j.stopped:
	case <-j.failed:
		return j.Err()
	}
	if err := j.Err(); err != nil {
		return err
	}
	return errors.Join(j.db.Close(), j.lock.Close())
}

// Totals counts what the journal holds.
func (j *Journal) Totals() (Totals, error) {
	t := Totals{DiskBytes: j.db.Metrics().DiskSpaceUsage()}
	it, err := j.db.NewIter(&pebble.IterOptions{LowerBound: []byte{prefixTime}, UpperBound: []byte{prefixTime + 1}})
	if err != nil {
		return t, err
	}
	defer it.Close()
	if !it.First() {
		return t, it.Error()
	}
	first, err := decodeIndexEntry(it.Value())
	if err != nil {
		return t, err
	}
	t.Oldest, err = decodeTimeKey(it.Key())
	if err != nil || !it.Last() {
		return t, errors.Join(err, it.Error())
	}
	last, err := decodeIndexEntry(it.Value())
	if err != nil {
		return t, err
	}
	t.Events = last.count - first.count
	if first.op != 0 {
		t.Events++
	}
	t.Newest, err = decodeTimeKey(it.Key())
	return t, err
}
