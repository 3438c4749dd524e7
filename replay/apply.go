package replay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// DefaultWait is how long Apply waits for what must come or go before it can write: a
// namespace that is being deleted, a definition that is not established yet.
const DefaultWait = 2 * time.Minute

// ApplyOptions tune Apply. The zero value is usable.
type ApplyOptions struct {
	// Progress is called, one call at a time, after each item and while Apply waits.
	Progress func(Progress)
	// Parallel is how many objects are written at once; 0 starts at 16 and follows the API
	// server's pace up to 64.
	Parallel int
	// Wait is the limit for one wait; 0 is DefaultWait.
	Wait time.Duration
	// Logger gets one line per failed item, without the object; nil logs nothing.
	Logger *zap.Logger
	// Record, when not nil, is told of every step before and after it is taken, and what it tells
	// to be done already is not done again.
	Record *Record
	// Fill writes the content of a claim; nil: nothing can. It tells how far it is.
	Fill func(ctx context.Context, f Filling, progress func(what string)) error
	// Stop, when closed, ends Apply at a clean point: what is being written is finished, and
	// nothing new is begun. Then the error is ErrStopped.
	Stop <-chan struct{}
}

// Progress tells how far Apply is.
type Progress struct {
	Done, Total int // items, of those that the plan writes
	// Item is the item that was just finished; nil while Apply waits.
	Item *Item
	// Err says why the item failed.
	Err error
	// Waiting says what Apply waits for.
	Waiting string
}

// Result is what Apply did.
type Result struct {
	Done      int `json:"done"`      // written or deleted
	Unchanged int `json:"unchanged"` // were as they should be
	Skipped   int `json:"skipped"`   // left out by a rule or the policy for existing objects
	Failed    int `json:"failed"`
	// Left tells why objects that the plan wanted to write were left alone after all, which
	// count as skipped, and which ones were made otherwise: without the status that they were to get, say.
	Left []ItemError `json:"left,omitempty"`
	// Errors tell why; one entry stands for all objects that failed for one common reason.
	Errors []ItemError `json:"errors,omitempty"`
}

// ItemError is why an item failed, or was left alone.
type ItemError struct {
	Item *Item `json:"item"`
	Err  error `json:"-"`
	// Message is Err's text.
	Message string `json:"message"`
	// Others is how many more items failed for the same reason.
	Others int `json:"others,omitempty"`
}

// Error names the object and the reason.
func (e *ItemError) Error() string {
	if e.Others > 0 {
		return fmt.Sprintf("%s and %d more: %v", e.Item, e.Others, e.Err)
	}
	return fmt.Sprintf("%s: %v", e.Item, e.Err)
}

// Unwrap gives the reason.
func (e *ItemError) Unwrap() error { return e.Err }

// commonError is a reason that fails many items alike, such as a namespace that does not go.
type commonError struct{ error }

// applier is one run of Apply.
type applier struct {
	plan   *Plan
	target *Target
	o      ApplyOptions
	limit  *limiter

	index   map[*Item]int // in plan.Items
	workers workers
	shapes  shapes

	announcing sync.WaitGroup // the next wave
	syncing    sync.WaitGroup // the record, beside what the next wave writes

	mu      sync.Mutex           // guards what follows
	failed  error                // why the record cannot be written
	made    map[objectKey]string // fingerprints of what this restore created
	result  Result
	done    int
	total   int
	common  map[string]int // reason -> index in result.Errors
	uids    map[objectKey]string
	blocked map[string]error    // namespaces and resources whose objects cannot be written, and why
	empty   map[objectKey]error // claims that did not get their content, and why
	idle    map[string]bool     // storage classes whose claims nobody writes to at once
}

// Apply does what the plan shows, wave by wave. An object that fails does not stop the
// others: then the error is ErrPartly, or ErrNotRestored when nothing was written at all, and
// the result tells which failed and why: each failure once, and to Progress once when it was
// the plan's to write. Applying
// again, or making the plan again, completes what was cut short.
func (p *Plan) Apply(ctx context.Context, target *Target, o ApplyOptions) (*Result, error) {
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	o.Wait = cmp.Or(o.Wait, DefaultWait)
	a := &applier{
		plan: p, target: target, o: o, limit: newLimiter(o.Parallel, target.throttled.Load()), total: p.Writes(),
		common: map[string]int{}, uids: map[objectKey]string{}, blocked: map[string]error{},
		index: map[*Item]int{}, made: map[objectKey]string{}, empty: map[objectKey]error{}, idle: map[string]bool{},
	}
	for i, it := range p.Items {
		a.index[it] = i
		switch it.Action {
		case ActionSkip:
			a.result.Skipped++
		case ActionUnchanged:
			a.result.Unchanged++
		case ActionFail:
			a.fail(it, errors.New(it.Reason))
			if it.Resource == definitions {
				a.block(it.Name+"/", commonError{fmt.Errorf("its definition %s cannot be restored", it.Name)})
			}
		}
	}
	a.recall()
	defer a.workers.end()
	waves := p.waves()
	for i, wave := range waves {
		if i == 0 {
			a.announce(wave)
		}
		a.announcing.Wait()
		if ctx.Err() != nil || a.stopped() {
			break
		}
		if i+1 < len(waves) {
			a.announce(waves[i+1]) // beside the writing, so that nobody waits for the disk
		}
		a.wave(ctx, wave)
	}
	a.announcing.Wait()
	a.syncing.Wait()
	if o.Record != nil && a.failed == nil && (ctx.Err() != nil || a.stopped() && a.done < a.total) {
		a.cannotRecord(o.Record.stop())
	}
	slices.SortStableFunc(a.result.Errors, func(x, y ItemError) int { return cmp.Compare(x.Item.Wave, y.Item.Wave) })
	if a.failed != nil {
		return &a.result, fmt.Errorf("the restore was stopped after %d of %d objects, because it could not be recorded: %w", a.done, a.total, a.failed)
	}
	if ctx.Err() == nil && a.stopped() && a.done < a.total {
		return &a.result, fmt.Errorf("%w after %d of %d objects", ErrStopped, a.done, a.total)
	}
	if o.Record != nil && ctx.Err() == nil {
		if err := o.Record.end(); err != nil {
			return &a.result, err
		}
	}
	if ctx.Err() != nil {
		return &a.result, fmt.Errorf("the restore was cut short after %d of %d objects: run it again to complete it: %w", a.done, a.total, context.Cause(ctx))
	}
	if a.result.Failed > 0 && a.result.Done == 0 {
		return &a.result, fmt.Errorf("%w: %d objects failed", ErrNotRestored, a.result.Failed)
	}
	if a.result.Failed > 0 {
		return &a.result, fmt.Errorf("%w: %d of %d objects failed", ErrPartly, a.result.Failed, a.result.Failed+a.result.Done+a.result.Unchanged)
	}
	return &a.result, nil
}

// waves are the items that are written together, wave by wave, and those between them.
func (p *Plan) waves() [][]*Item {
	var all [][]*Item
	for start, end := 0, 0; start < len(p.Items); start = end {
		for end < len(p.Items) && p.Items[end].Wave == p.Items[start].Wave {
			end++
		}
		if slices.ContainsFunc(p.Items[start:end], func(it *Item) bool { return it.Action.writes() }) {
			all = append(all, p.Items[start:end])
		}
	}
	return all
}

// wave writes the items of one wave, several at once, and waits for all of them.
func (a *applier) wave(ctx context.Context, items []*Item) {
	var wg sync.WaitGroup
	defs := false
	for _, it := range spread(items) {
		if a.before(it) {
			continue
		}
		if err := a.blockedBy(it); err != nil {
			a.finish(it, err)
			continue
		}
		if !a.limit.acquire(ctx) {
			break
		}
		if a.stopped() || !a.begin(it) {
			a.limit.release(0, a.target.throttled.Load())
			break
		}
		defs = defs || it.Resource == definitions && it.Action != ActionDelete
		wg.Add(1)
		a.workers.do(func() {
			defer wg.Done()
			start := time.Now()
			waited, err := a.write(ctx, it)
			took := time.Since(start) - waited
			if err != nil && it.Resource == namespaces {
				a.block(it.Name, commonError{fmt.Errorf("namespace %s: %w", it.Name, err)})
			}
			if (ctx.Err() == nil || err == nil) && !errors.Is(err, ErrStopped) {
				a.finish(it, err)
			}
			if err != nil && took <= fastAnswer {
				took = noPace // a refusal is soon told
			}
			a.limit.release(took, a.target.throttled.Load()) // last: who stops the restore when told of this item wants no other begun
		})
	}
	wg.Wait()
	a.syncRecord(items)
	if defs && ctx.Err() == nil {
		a.awaitDefinitions(ctx, items)
	}
}

// workers run what they are told in goroutines that stay: parsing an object needs a deep stack, which a new goroutine has to grow each time. The zero value is usable.
type workers struct{ tasks chan func() }

// do runs a task in the background, in a new goroutine if no other is idle. One caller at a time.
func (w *workers) do(task func()) {
	if w.tasks == nil {
		w.tasks = make(chan func())
	}
	select {
	case w.tasks <- task:
	default:
		go func() {
			task()
			for next := range w.tasks {
				next()
			}
		}()
	}
}

// end lets the goroutines go when they are done.
func (w *workers) end() {
	if w.tasks != nil {
		close(w.tasks)
	}
}

// syncRecord makes the record outlive the machine. What comes next waits for it only when more than creations were done: if the machine
// breaks down in between, a creation can be seen in the cluster.
func (a *applier) syncRecord(items []*Item) {
	if a.o.Record == nil {
		return
	}
	a.syncing.Wait()
	a.syncing.Go(func() { a.cannotRecord(a.o.Record.sync()) })
	if slices.ContainsFunc(items, func(it *Item) bool { return it.Action.writes() && it.Action != ActionCreate }) {
		a.syncing.Wait()
	}
}

// spread mixes the kinds of a wave evenly, and drops what is not written. Services are slow by themselves, as the API server gives out
// their addresses one after another: they are spread over the first four fifths, as alone at the end they would hold up everything.
func spread(items []*Item) []*Item {
	kinds := map[schema.GroupResource]int{}
	for _, it := range items {
		if it.Action.writes() {
			kinds[it.Resource]++
		}
	}
	type placed struct {
		it *Item
		at float64 // between 0 and 1
	}
	var all []placed
	seen := map[schema.GroupResource]int{}
	for _, it := range items {
		if it.Action.writes() {
			at := (float64(seen[it.Resource]) + 0.5) / float64(kinds[it.Resource])
			if it.Resource == services {
				at *= 0.8
			}
			all = append(all, placed{it, at})
			seen[it.Resource]++
		}
	}
	slices.SortStableFunc(all, func(a, b placed) int { return cmp.Compare(a.at, b.at) })
	out := make([]*Item, len(all))
	for i, p := range all {
		out[i] = p.it
	}
	return out
}

// blockedBy says why an item cannot be written although it was not tried.
func (a *applier) blockedBy(it *Item) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.blocked[it.Namespace]; err != nil && it.Namespace != "" {
		return err
	}
	return a.blocked[it.Resource.String()+"/"]
}

func (a *applier) block(what string, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.blocked[what] = err
}

// finish counts an item and tells about it.
func (a *applier) finish(it *Item, err error) {
	skip := errors.As(err, new(*leftAlone))
	var partly *otherwise
	if errors.As(err, &partly) {
		err = nil // it is there; what is different is told below
	}
	if err != nil && !skip {
		a.o.Logger.Warn("object not restored", zap.Stringer("resource", it.Resource), zap.String("namespace", it.Namespace), zap.String("name", it.Name), zap.String("action", string(it.Action)))
		a.fail(it, err)
	}
	a.outcome(it, err, skip)
	if partly != nil {
		a.mu.Lock()
		a.result.Left = append(a.result.Left, ItemError{Item: it, Err: partly, Message: partly.Error()})
		a.mu.Unlock()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.done++
	switch {
	case err == nil:
		a.result.Done++
	case skip:
		a.result.Skipped++
	}
	if skip {
		a.result.Left = append(a.result.Left, ItemError{Item: it, Err: err, Message: err.Error()})
		err = nil // it did not fail
	}
	if a.o.Progress != nil {
		a.o.Progress(Progress{Done: a.done, Total: a.total, Item: it, Err: err})
	}
}

// leftAlone is the outcome of an item that turned out not to be the plan's to write.
type leftAlone struct{ why string }

func (l *leftAlone) Error() string { return l.why }

// otherwise is the outcome of an item that was made, and not wholly as planned: its status could not be written, say.
type otherwise struct{ error }

func (o *otherwise) Unwrap() error { return o.error }

func (a *applier) fail(it *Item, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.result.Failed++
	var common commonError
	if it.Action == ActionFail || errors.As(err, &common) {
		reason := it.Resource.String() + it.Namespace + err.Error()
		if i, known := a.common[reason]; known {
			a.result.Errors[i].Others++
			return
		}
		a.common[reason] = len(a.result.Errors)
	}
	a.result.Errors = append(a.result.Errors, ItemError{Item: it, Err: err, Message: err.Error()})
}

func (a *applier) waiting(what string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.o.Progress != nil {
		a.o.Progress(Progress{Done: a.done, Total: a.total, Waiting: what})
	}
}

// restored remembers the uid an object has in the target now.
func (a *applier) restored(k objectKey, uid string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.uids[k] = uid
}

func (a *applier) uid(k objectKey) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.uids[k]
}
