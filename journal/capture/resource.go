package capture

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"go.uber.org/zap"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"github.com/tidemark-backup/tidemark/journal"
)

// resource captures one resource: it is the ListerWatcher and the store of one Reflector.
type resource struct {
	c      *Capture
	info   journal.ResourceInfo
	path   string // of the collection over all namespaces: /apis/GROUP/VERSION/NAME
	cancel context.CancelFunc
	ended  chan struct{} // closed when the Reflector has stopped
	stale  bool          // to be started anew; guarded by c.mu

	list sync.Mutex // held while a list runs; guards over
	over bool       // the Reflector has stopped: nothing may touch the journal any more

	mu      sync.Mutex // guards what follows
	state   State
	err     string
	since   time.Time // when state was entered
	relist  string    // why the next list must be a real one; empty: resume if the journal can
	watched bool      // a watch has delivered something since start
	broke   time.Time // when a watch last ended or was refused; zero before
	lost    time.Time // since when nothing has been watched; zero while it is
	tried   bool      // the first list or watch succeeded or failed
}

func newResource(c *Capture, info journal.ResourceInfo) *resource {
	return &resource{c: c, info: info, path: collectionPath(info, ""), ended: make(chan struct{}), state: StateWaiting, since: time.Now(), lost: time.Now()}
}

// collectionPath is the path of a resource's objects in a namespace; without one, in all.
func collectionPath(info journal.ResourceInfo, namespace string) string {
	path := "/apis/" + info.Group + "/" + info.Version
	if info.Group == "" {
		path = "/api/" + info.Version
	}
	if namespace != "" {
		path += "/namespaces/" + namespace
	}
	return path + "/" + info.Resource
}

// typeName is what list items are given that do not say what they are.
func (r *resource) typeName() typeName {
	return typeName{kind: r.info.Kind, apiVersion: schema.GroupVersion{Group: r.info.Group, Version: r.info.Version}.String()}
}

// run keeps the Reflector going until ctx ends.
func (r *resource) run(ctx context.Context) {
	defer close(r.ended)
	backoff := &wait.Backoff{Duration: 500 * time.Millisecond, Factor: 2, Jitter: 1, Steps: 6, Cap: 10 * time.Second}
	cache.NewReflectorWithOptions(r, nil, r, cache.ReflectorOptions{
		Name: r.info.GroupResource().String(), TypeDescription: r.info.Kind, MinWatchTimeout: r.c.opts.MinWatchTimeout, Backoff: backoff,
	}).RunWithContext(ctx)
	r.list.Lock() // a Reflector that is stopped does not wait for its list
	defer r.list.Unlock()
	r.over = true
}

// IsWatchListSemanticsUnSupported keeps the Reflector from buffering a streamed list in memory.
func (r *resource) IsWatchListSemanticsUnSupported() bool { return true }

// List implements cache.ListerWatcher; the Reflector uses ListWithContext.
func (r *resource) List(o metav1.ListOptions) (runtime.Object, error) {
	return r.ListWithContext(context.Background(), o)
}

// Watch implements cache.ListerWatcher; the Reflector uses WatchWithContext.
func (r *resource) Watch(o metav1.ListOptions) (watch.Interface, error) {
	return r.WatchWithContext(context.Background(), o)
}

// ListWithContext answers the Reflector's wish for a list. When the journal's watermark can
// take up the watch it makes no request and returns an empty list at the watermark; this
// never means that everything was deleted, as the store ignores Replace. Otherwise a real
// list is streamed into a comparison, and again an empty list says at which revision.
func (r *resource) ListWithContext(ctx context.Context, _ metav1.ListOptions) (runtime.Object, error) {
	r.list.Lock()
	defer r.list.Unlock()
	if r.over {
		return nil, context.Canceled
	}
	r.mu.Lock()
	cause := r.relist
	r.mu.Unlock()
	rv, ok := r.c.opts.Journal.Resume(r.info.GroupResource())
	if l := r.c.opts.Journal.Ledger(r.info.GroupResource()); ok && l.Filter != r.c.filter {
		ok, cause = false, fmt.Sprintf("what is recorded was changed from %q to %q", l.Filter, r.c.filter)
	}
	if !ok || cause != "" {
		var err error
		if rv, err = r.compare(ctx, cause); err != nil {
			r.failed(err)
			return nil, err
		}
	}
	return &metav1.List{ListMeta: metav1.ListMeta{ResourceVersion: strconv.FormatUint(rv, 10)}}, nil
}

// compare lists the resource into the journal and returns the list's revision.
func (r *resource) compare(ctx context.Context, cause string) (uint64, error) {
	if err := r.c.lists.Acquire(ctx, 1); err != nil {
		return 0, err
	}
	defer r.c.lists.Release(1)
	r.enter(StateListing, nil)
	q := journal.Recording{ResourceInfo: r.info, Filter: r.c.filter}
	if l := r.c.opts.Journal.Ledger(r.info.GroupResource()); l != nil && cause == "" {
		cause = whyNotResumed(l)
	}
	floor, own, err := r.c.counter(ctx, r.path)
	if err != nil {
		return 0, err
	}
	q.OwnCounter = own
	for attempt := 1; ; attempt++ {
		c, err := r.c.opts.Journal.Compare(ctx, q, floor.rv, cause)
		if err != nil {
			return 0, err
		}
		rv := floor.rv
		if !floor.empty { // else there is nothing to list that it did not tell
			rv, err = r.listInto(ctx, c)
		}
		if err != nil {
			err = errors.Join(err, c.Close())
		}
		if apierrors.IsResourceExpired(err) && attempt < 3 {
			continue // the pages' revision was compacted away below us: from the start
		}
		if err != nil {
			return 0, err
		}
		n, err := c.Commit(ctx, rv)
		if err != nil {
			return 0, err
		}
		r.mu.Lock()
		r.relist = ""
		r.mu.Unlock()
		r.c.log.Info("listed", zap.Stringer("resource", r.info.GroupResource()), zap.Uint64("revision", rv), zap.Int("events", n), zap.String("cause", cause))
		r.c.listed(r, c.Epoch())
		return rv, nil
	}
}

// whyNotResumed is the gap's cause when the journal itself asked for a list.
func whyNotResumed(l *journal.Ledger) string {
	switch {
	case l.Comparing != "":
		return l.Comparing
	case l.Removed != nil:
		return "the resource was removed from the cluster and came back"
	}
	return "the server's history went backwards (etcd was restored?)"
}

func (r *resource) listInto(ctx context.Context, c *journal.Comparison) (rv uint64, err error) {
	o := metav1.ListOptions{Limit: pageSize, LabelSelector: r.c.opts.Selector}
	for {
		p, err := getPage(ctx, r.c.client, r.path, "application/json", o, r.typeName(), func(raw []byte) error {
			obj, err := scanObject(raw)
			if err == nil && obj.name == "" {
				err = errMetadata
			}
			if err != nil || !r.wants(obj) {
				return err
			}
			return c.Add(ctx, r.event(0, obj))
		})
		if err != nil {
			return 0, err
		}
		if rv == 0 {
			rv = p.rv
		}
		if o.Continue = p.next; p.next == "" {
			return rv, nil
		}
	}
}

// WatchWithContext opens the watch; its frames are read as bytes.
func (r *resource) WatchWithContext(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	r.mu.Lock()
	ended := r.broke
	r.mu.Unlock()
	if !ended.IsZero() {
		if err := r.c.recheckHistory(ctx, ended); err != nil {
			r.failed(err)
			return nil, err
		}
		if _, ok := r.c.opts.Journal.Resume(r.info.GroupResource()); !ok {
			return nil, errHistory
		}
	}
	o.Watch, o.LabelSelector = true, r.c.opts.Selector
	body, err := r.c.client.Get().AbsPath(r.path).SpecificallyVersionedParams(&o, metav1.ParameterCodec, metav1Version).
		SetHeader("Accept", "application/json").Stream(ctx)
	if err != nil {
		r.failed(err)
		r.away() // the server that answers next may be another one
		return nil, err
	}
	if err := r.resumed(ctx); err != nil {
		return nil, errors.Join(err, body.Close())
	}
	r.enter(StateWatching, nil)
	onEvent := func(e watch.Event) {
		if status, ok := e.Object.(*metav1.Status); ok {
			r.failed(apierrors.FromObject(status))
			return
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.watched = true
	}
	return newFrameWatch(body, onEvent, r.away), nil
}

// away notes that the server was lost just now.
func (r *resource) away() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.broke = time.Now()
	if r.lost.IsZero() {
		r.lost = r.broke
	}
}

// resumed notes the time in which the resource was not watched, when it was long. After a list
// there is a gap, or a beginning, that says more.
func (r *resource) resumed(ctx context.Context) error {
	r.mu.Lock()
	lost := r.lost
	r.lost = time.Time{}
	r.mu.Unlock()
	gr := r.info.GroupResource()
	if l := r.c.opts.Journal.Ledger(gr); l == nil || l.Since.Time.After(lost) {
		return nil
	}
	return r.c.noteOutage(ctx, &gr, lost)
}

// errHistory ends a Reflector's round; the next one begins with a list.
var errHistory = errors.New("the server's history went backwards")

// failed notes an error, and whether it means that only a list can go on.
func (r *resource) failed(err error) {
	if errors.Is(err, context.Canceled) {
		return
	}
	state := StateWaiting
	if apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) {
		state = StateForbidden
	}
	r.enter(state, err)
	defer r.c.attempted()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tried = true
	switch {
	case apierrors.IsResourceExpired(err), apierrors.IsGone(err):
		r.relist = "the server no longer had the changes since the watermark (410 Gone)"
		if !r.watched {
			r.relist = "tidemark was not running, and " + r.relist
		}
	case tooLarge(err):
		r.relist = "the server had not reached the watermark: its history went backwards (etcd was restored?)"
	}
}

// tooLarge reports whether the server said that it has not reached the revision asked for.
func tooLarge(err error) bool {
	return apierrors.HasStatusCause(err, metav1.CauseTypeResourceVersionTooLarge)
}

func (r *resource) enter(s State, err error) {
	defer r.c.attempted()
	r.mu.Lock()
	defer r.mu.Unlock()
	why := ""
	if s != StateWatching {
		why = string(s)
		if err != nil {
			why += ": " + plain(err).Error()
		}
	}
	r.c.opts.Journal.SetWatched(r.info.GroupResource(), why)
	if s != r.state {
		r.state, r.since = s, time.Now()
		if err != nil && !apierrors.IsResourceExpired(err) {
			r.c.log.Warn("capture interrupted, trying again", zap.Stringer("resource", r.info.GroupResource()), zap.String("state", string(s)), zap.Error(plain(err)))
		}
	}
	r.tried = r.tried || s == StateWatching
	r.err = ""
	if err != nil {
		r.err = plain(err).Error()
	}
}

// wants reports whether the object is to be recorded.
func (r *resource) wants(o *rawObject) bool {
	return len(r.c.opts.Namespaces) == 0 || o.namespace == "" || slices.Contains(r.c.opts.Namespaces, o.namespace)
}

func (r *resource) event(op journal.Op, o *rawObject) journal.Event {
	return journal.Event{
		Resource: r.info.GroupResource(), Namespace: o.namespace, Name: o.name, UID: o.uid,
		Op: op, Revision: journal.Revision{RV: o.rv}, Object: o.raw,
	}
}

// record hands an event to the journal. It never returns an error: a Reflector would log the
// object and go on behind it. When the journal cannot take it, the process is about to end.
func (r *resource) record(op journal.Op, obj any) error {
	o, ok := obj.(*rawObject)
	if !ok {
		return nil
	}
	if !r.wants(o) {
		return r.Bookmark(o.meta.ResourceVersion)
	}
	err := r.c.opts.Journal.Append(r.c.ctx, r.event(op, o))
	if errors.Is(err, journal.ErrBadName) {
		r.c.log.Error("an object whose name no Kubernetes object can have is not recorded", zap.Stringer("resource", r.info.GroupResource()))
		return nil
	}
	if err != nil {
		<-r.c.ctx.Done()
		return nil
	}
	r.c.noticed(r.info.GroupResource())
	return nil
}

// Add, Update, Delete, Replace, Resync and Bookmark are the store that the Reflector fills.
func (r *resource) Add(obj any) error { return r.record(journal.Added, obj) }

// Update implements cache.ReflectorStore.
func (r *resource) Update(obj any) error { return r.record(journal.Modified, obj) }

// Delete implements cache.ReflectorStore.
func (r *resource) Delete(obj any) error { return r.record(journal.Deleted, obj) }

// Replace does nothing: the list went into the journal while it was read (see ListWithContext).
func (r *resource) Replace([]any, string) error { return nil }

// Resync does nothing: there is no cache to send again.
func (r *resource) Resync() error { return nil }

// Bookmark implements cache.ReflectorBookmarkStore: the watch has delivered all up to rv.
func (r *resource) Bookmark(version string) error {
	rv, err := strconv.ParseUint(version, 10, 64)
	if err != nil {
		return nil
	}
	if err := r.c.opts.Journal.Advance(r.c.ctx, r.info.GroupResource(), rv); err != nil {
		<-r.c.ctx.Done()
	}
	return nil
}
