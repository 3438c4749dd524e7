package replay

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tidwall/gjson"
	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/journal"
)

// Reversal is what is to be taken back of one object: its changes, the oldest first.
type Reversal struct {
	Resource        schema.GroupResource
	Namespace, Name string
	Steps           []Step
	// Unsure says why it cannot be told whether the object was there before the first step, though nothing was recorded of it; empty: it was not.
	Unsure string
}

// Step is one change of an object. A side that is nil means that the object was not there.
type Step struct {
	Before, After []byte // JSON
	// Made, in place of After, is the fingerprint that the object had when the step created it,
	// and UID its uid.
	Made, UID string
	// Recreated is set for a step that deleted the object and made it anew.
	Recreated bool
}

// UndoRequest says what NewUndo takes back.
type UndoRequest struct {
	Reversals []Reversal
	// Purpose says what that is, for people.
	Purpose string
	// Cluster is the id of the cluster in which it was done; empty: not known.
	Cluster string
	// Force takes back as well what has been changed again since.
	Force bool
	// Owned also takes back what the object's controller did, or would make anew.
	Owned bool
	// MaxDeletes is how many objects may be deleted; 0 means DefaultMaxDeletes, less than that any
	// number.
	MaxDeletes int

	scaled map[scaleTarget]bool // what autoscalers sized in the plan that is undone
}

// undoer plans one undo.
type undoer struct {
	planner
	force bool
	ours  map[objectKey]bool // objects that the undo deletes
}

// NewUndo plans to take changes back, each by itself and field by field: what has been changed again
// since stays as it is and is shown as a conflict. It writes nothing.
func NewUndo(ctx context.Context, target *Target, q UndoRequest) (*Plan, error) {
	if err := target.refresh(ctx); err != nil {
		return nil, err
	}
	req := &RestoreRequest{Existing: ExistingUpdate, Exact: true, Owned: q.Owned}
	u := &undoer{
		planner: planner{target: target, req: req, strategies: map[schema.GroupResource]string{}, past: &past{byKey: map[objectKey]*entry{}, byUID: map[string]*entry{}, scaled: map[scaleTarget]bool{}}},
		force:   q.Force, ours: map[objectKey]bool{},
	}
	made := time.Now().UTC()
	u.plan = &Plan{ID: namedID("undo", made), Made: made, Purpose: q.Purpose, Items: []*Item{}, past: u.past, req: *req}
	maps.Copy(u.past.scaled, q.scaled)
	if _, err := u.checkCluster(ctx, &Catalog{ClusterID: q.Cluster}); err != nil {
		return nil, err
	}
	all, err := u.entries(q.Reversals)
	if err != nil {
		return nil, err
	}
	if u.live, err = readLive(ctx, target, req, all); err != nil {
		return nil, err
	}
	u.plan.gone = u.live.gone
	for _, r := range q.Reversals {
		if err := u.reverse(ctx, &r); err != nil {
			return nil, err
		}
	}
	if err := u.tryAll(ctx); err != nil {
		return nil, err
	}
	if err := u.keepContainers(ctx); err != nil {
		return nil, err
	}
	if err := u.heirs(ctx); err != nil {
		return nil, err
	}
	u.relinkRecreated()
	u.warnEffects()
	limit := cmp.Or(q.MaxDeletes, DefaultMaxDeletes)
	if n := u.plan.Count(ActionDelete); limit > 0 && n > limit {
		return nil, fmt.Errorf("%w: the undo would delete %d objects, and --max-deletes allows %d", ErrTooManyDeletes, n, limit)
	}
	u.plan.sort()
	return u.plan, nil
}

// entries files what there was before, for owners and versions, and gives what to look for in the
// target.
func (u *undoer) entries(reversals []Reversal) (all *past, err error) {
	all = &past{byKey: map[objectKey]*entry{}}
	for _, r := range reversals {
		e := &entry{objectKey: objectKey{r.Resource, r.Namespace, r.Name}, packed: pack(r.Steps[0].Before)}
		all.list = append(all.list, e)
		if e.packed == nil {
			continue
		}
		o, err := parseObject(r.Steps[0].Before)
		if err != nil {
			return nil, fmt.Errorf("reading %s as it was: %w", e, err)
		}
		u.past.list = append(u.past.list, e)
		u.past.byKey[e.objectKey] = e
		if uid := o.uid(); uid != "" {
			u.past.byUID[uid] = e
		}
		if e.gr == autoscalers {
			ref := o.sub("spec", "scaleTargetRef")
			u.past.scaled[scaleTarget{ref.str("kind"), e.namespace, ref.str("name")}] = true
		}
	}
	return all, nil
}

// fingerprint tells whether an object is as it was, what the API server and its controllers keep in
// it aside. It does not give the content away.
func (p *Plan) fingerprint(gr schema.GroupResource, o object) string {
	sum := sha256.Sum256(normal(&p.req, p.past, gr, o).json())
	return hex.EncodeToString(sum[:])
}

// reverse makes the item of one object; none when nothing of it is a person's to change.
func (u *undoer) reverse(ctx context.Context, r *Reversal) error {
	first, last := r.Steps[0], r.Steps[len(r.Steps)-1]
	it := &Item{Resource: r.Resource, Namespace: r.Namespace, Name: r.Name, entry: u.past.byKey[objectKey{r.Resource, r.Namespace, r.Name}]}
	before, after, err := u.sides(it, first.Before, last.After)
	if err != nil {
		return err
	}
	if before != nil && after != nil && len(r.Steps) == 1 && equalObjects(u.normal(it, before), u.normal(it, after)) {
		return nil // its status, or what the server keeps
	}
	if before == nil && after == nil && last.Made == "" {
		return nil // came and went
	}
	it.live = u.live.objects[it.key()]
	u.add(it)
	if reason, rule := u.notOurs(it, before, after); reason != "" {
		it.Action, it.Reason, it.Rule = ActionSkip, reason, rule
		return nil
	}
	var ok bool
	if it.served, ok = u.target.version(it.Resource, ""); !ok {
		it.Action, it.Reason = ActionFail, fmt.Sprintf("the target does not serve %s any more", it.Resource)
		return nil
	}
	if why := u.live.missing(it, journal.Cut{}); why != "" && it.live == nil && before != nil {
		it.Action, it.Reason = ActionFail, why
		return nil
	}
	live := it.live != nil && !it.live.deleting
	wasThere := after != nil || last.Made != ""
	switch {
	case before == nil && !live:
		it.Action, it.Reason = ActionUnchanged, "is gone already"
	case before == nil && r.Unsure != "":
		it.Action, it.Reason = ActionSkip, "may have been there before: "+r.Unsure
	case before == nil:
		u.remove(it, after, last)
	case !live && wasThere && !u.force:
		it.Action, it.Reason = ActionSkip, "was deleted since; --force brings it back"
	case !live:
		return u.bringBack(ctx, it)
	case wasThere && last.UID != "" && last.UID != string(it.live.uid) && !u.force:
		it.Action, it.Reason = ActionSkip, "was deleted and made anew since; --force takes the change out of the new one as well"
	case !wasThere: // it was deleted, and is there again
		return u.compareAgain(ctx, it, before)
	default:
		return u.takeBack(ctx, it, r.Steps)
	}
	return nil
}

func (u *undoer) normal(it *Item, o object) object { return normal(u.req, u.past, it.Resource, o) }

func (u *undoer) sides(it *Item, b, a []byte) (before, after object, err error) {
	if b != nil {
		if before, err = parseObject(b); err != nil {
			return nil, nil, fmt.Errorf("reading %s as it was: %w", it, err)
		}
	}
	if a != nil {
		if after, err = parseObject(a); err != nil {
			return nil, nil, fmt.Errorf("reading %s as it became: %w", it, err)
		}
	}
	return before, after, nil
}

// notOurs says why an object is left to others.
func (u *undoer) notOurs(it *Item, before, after object) (reason, rule string) {
	o := before
	if o == nil {
		o = after
	}
	if o == nil && it.live != nil {
		o = it.live.object()
	}
	if o == nil {
		return "", ""
	}
	if c := o.controller(); c != nil && !u.req.Owned {
		return fmt.Sprintf("its controller, %s %s, makes and changes it (--owned takes it back all the same)", c.str("kind"), c.str("name")), "made-by-controller"
	}
	s := &subject{gr: it.Resource, obj: o, original: o, req: u.req, past: u.past}
	if before == nil {
		if guarded(s) {
			return "is made by the cluster itself", "made-by-cluster"
		}
		return "", ""
	}
	return refuse(s)
}

// remove plans to delete what was made, if it is still as it was made.
func (u *undoer) remove(it *Item, after object, last Step) {
	live := it.live.object()
	same := last.UID == "" || last.UID == live.uid()
	if same && (!u.force || last.UID == "") { // whose it is, is only known by its uid, or by how it looks
		if last.Made != "" {
			same = last.Made == u.plan.fingerprint(it.Resource, live)
		} else {
			same = equalObjects(u.normal(it, live), u.normal(it, after))
		}
	}
	switch {
	case last.UID != "" && last.UID != live.uid():
		it.Action, it.Reason = ActionSkip, "was deleted and made anew since"
	case !same:
		it.Action, it.Reason = ActionSkip, "has been changed since"+by(live)+"; --force deletes it all the same"
	default:
		it.Action, it.Reason = ActionDelete, "was not there before"
		u.ours[it.key()] = true
	}
}

// by names who changed an object last, as far as it says.
func by(live object) string {
	if names := Managers(nil, live.json(), nil); len(names) > 0 {
		return " by " + strings.Join(names, " or ") // managers of one second cannot be told apart
	}
	return ""
}

// bringBack plans to create what is not there any more, as a restore does.
func (u *undoer) bringBack(ctx context.Context, it *Item) error {
	original, why, err := u.inServedVersion(ctx, it, it.entry.object())
	if err != nil {
		return err
	}
	if why != "" {
		it.Action, it.Reason = ActionFail, why
		return nil
	}
	it.managed = packParts(original.list("metadata", "managedFields"))
	create, _, err := u.prepared(it.entry, original, false)
	if err != nil {
		return err
	}
	u.linkOwners(ctx, it, create)
	it.create, it.Action = pack(create.json()), ActionCreate
	if it.live != nil {
		it.Reason, it.awaitGone = "when the live one, which is being deleted, is gone", true
	}
	return nil
}

// compareAgain deals with what was deleted and is there again.
func (u *undoer) compareAgain(ctx context.Context, it *Item, before object) error {
	want, _, err := u.prepared(it.entry, before, true)
	if err != nil {
		return err
	}
	diff, err := diffBodies(u.normal(it, it.live.object()), want)
	switch {
	case err != nil:
		return fmt.Errorf("comparing %s: %w", it, err)
	case len(diff) == 0:
		it.Action, it.Reason = ActionUnchanged, "is there again"
	case !u.force:
		it.Action, it.Reason, it.Diff = ActionSkip, "was made anew since, and differs; --force makes it as it was", diff
	default:
		return u.compare(ctx, it, before)
	}
	return nil
}

// takeBack plans to take changes out of a live object, the newest first.
func (u *undoer) takeBack(ctx context.Context, it *Item, steps []Step) error {
	live := it.live.object()
	body, have := live, u.normal(it, live)
	for _, s := range slices.Backward(steps) {
		before, after, err := u.sides(it, s.Before, s.After)
		if err != nil {
			return err
		}
		if before == nil || after == nil {
			continue // came, or went and came again, in the middle: its fields tell
		}
		var conflicts []FieldDiff
		body, conflicts = revert(u.normal(it, before), u.normal(it, after), body, u.force)
		it.Conflicts = append(it.Conflicts, conflicts...)
	}
	if !reflect.DeepEqual(body.at("metadata", "ownerReferences"), live.at("metadata", "ownerReferences")) {
		u.linkOwners(ctx, it, body) // an owner that comes back has another uid; with the old one, the object would go
	}
	var err error
	if it.Diff, err = diffBodies(have, u.normal(it, body)); err != nil {
		return fmt.Errorf("comparing %s: %w", it, err)
	}
	if !u.force && len(it.Conflicts) > 0 {
		it.Reason = "keeps what has been changed again since: " + paths(it.Conflicts) + " (--force takes it back as well)"
	}
	it.update = pack(body.json())
	switch {
	case len(it.Diff) == 0 && len(it.Conflicts) > 0:
		it.Action = ActionSkip
	case len(it.Diff) == 0:
		it.Action, it.Reason = ActionUnchanged, "was taken back already"
	default:
		it.Action = ActionUpdate
		u.try(it, func(ctx context.Context, refused error) error { return u.recreate(ctx, it, steps, refused) })
	}
	return nil
}

// recreate plans for a change that cannot be taken back in place: the object was made anew to be changed,
// and is made anew again.
func (u *undoer) recreate(ctx context.Context, it *Item, steps []Step, refused error) error {
	why := invalid(refused, "does not allow to change")
	it.Action, it.Reason = ActionFail, why
	if !slices.ContainsFunc(steps, func(s Step) bool { return s.Recreated }) || precious[it.Resource.String()] || len(it.Conflicts) > 0 {
		return nil
	}
	diff, live := it.Diff, it.live
	if err := u.bringBack(ctx, it); err != nil || it.Action != ActionCreate {
		return err
	}
	it.Action, it.Reason, it.Diff, it.live, it.update, it.awaitGone = ActionRecreate, why, diff, live, nil, false
	return nil
}

// keepContainers keeps namespaces and definitions that hold what is not the undo's to delete: it would
// go with them.
func (u *undoer) keepContainers(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(liveReaders)
	var mu sync.Mutex
	inside := map[*Item][]string{}
	look := func(it *Item, r servedResource, namespace string) {
		g.Go(func() error {
			err := u.target.list(ctx, r, namespace, func(o *unstructured.Unstructured) {
				k := objectKey{r.GroupResource(), o.GetNamespace(), o.GetName()}
				if u.ours[k] || goesByItself(k.gr, o.Object, u.req, u.past) {
					return
				}
				mu.Lock()
				defer mu.Unlock()
				inside[it] = append(inside[it], k.String())
			})
			if apierrors.IsForbidden(err) || apierrors.IsMethodNotSupported(err) || apierrors.IsNotFound(err) {
				return nil
			}
			return err
		})
	}
	for _, it := range u.plan.Items {
		if it.Action != ActionDelete || u.force {
			continue
		}
		switch it.Resource {
		case namespaces:
			for _, versions := range u.target.table().byResource {
				if r := versions[0]; r.Namespaced && slices.Contains(r.Verbs, "list") && slices.Contains(r.Verbs, "delete") {
					look(it, r, it.Name)
				}
			}
		case definitions:
			for gr, versions := range u.target.table().byResource {
				if gr.Resource+"."+gr.Group == it.Name {
					look(it, versions[0], "")
				}
			}
		}
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for it, names := range inside {
		slices.Sort(names)
		it.Action, it.Reason = ActionSkip, fmt.Sprintf("holds what is not the undo's to delete: %s, %d in all; --force deletes it with all that", names[0], len(names))
	}
	return nil
}

// goesByItself reports whether an object is the cluster's own business.
func goesByItself(gr schema.GroupResource, o object, req *RestoreRequest, p *past) bool {
	return o.deleting() || o.controller() != nil || guarded(&subject{gr: gr, obj: o, original: o, live: true, req: req, past: p})
}

// slowWatch is how long after others a watch may bring a change.
const slowWatch = time.Minute

// Reversals reads from history what changed after one cut and up to another, so that it can be taken back. manager, when not
// empty, chooses the changes in which that field manager had a part; deletions name nobody, and are
// left out then. A manager is its writes to subresources as well, unless one of these is named, such as kubectl/scale. ErrNobody is returned when
// it changed nothing.
func Reversals(ctx context.Context, src Source, from, to journal.Cut, scope Scope, manager string) ([]Reversal, error) {
	catalog, err := src.Ledgers(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading the ledgers: %w", err)
	}
	own, unsure := map[schema.GroupResource]bool{}, map[schema.GroupResource]string{}
	for i := range catalog.Resources {
		l := &catalog.Resources[i]
		own[l.GroupResource()], unsure[l.GroupResource()] = l.OwnCounter, catalog.unsure(l, from)
	}
	between := func(c *Change) bool { // as a fold sees the two cuts: revisions count, not when a watch brought them
		if own[c.Resource] {
			return c.Observed.After(from.Time) && !c.Observed.After(to.Time)
		}
		return c.Revision.Compare(from.Revision) > 0 && c.Revision.Compare(to.Revision) <= 0
	}
	q := ChangeQuery{From: from.Time.Add(-slowWatch), To: to.Time.Add(slowWatch), Scope: scope, Objects: true}
	byKey := map[objectKey]*Reversal{}
	var order []*Reversal
	others := map[string]bool{}
	for c, err := range src.Changes(ctx, q) {
		if err != nil {
			return nil, fmt.Errorf("reading what changed: %w", err)
		}
		if !between(&c) || c.Flags&journal.Initial != 0 || c.Resource.Group == journal.OwnGroup {
			continue
		}
		if manager != "" && !slices.ContainsFunc(c.Managers, func(m string) bool { return m == manager || strings.HasPrefix(m, manager+"/") }) {
			for _, m := range c.Managers {
				others[m] = true
			}
			continue
		}
		s := Step{Before: slices.Clone(c.Before), UID: c.UID}
		if c.Op != journal.Deleted {
			s.After = slices.Clone(c.Object)
		}
		k := objectKey{c.Resource, c.Namespace, c.Name}
		r := byKey[k]
		switch {
		case r == nil:
			r = &Reversal{Resource: c.Resource, Namespace: c.Namespace, Name: c.Name, Steps: []Step{s}}
			byKey[k] = r
			order = append(order, r)
		case manager == "": // all that happened in between is one step
			r.Steps[0].After, r.Steps[0].UID = s.After, s.UID
		default:
			r.Steps = append(r.Steps, s)
		}
	}
	if manager != "" && len(order) == 0 {
		return nil, nobody(manager, slices.Sorted(maps.Keys(others)))
	}
	all := make([]Reversal, 0, len(order))
	for _, r := range order {
		for i := range r.Steps {
			s := &r.Steps[i]
			was, is := gjson.GetBytes(s.Before, "metadata.uid").String(), gjson.GetBytes(s.After, "metadata.uid").String()
			s.Recreated = was != "" && is != "" && was != is
		}
		if r.Steps[0].Before == nil {
			r.Unsure = doubt(r.Steps[0].After, from, unsure[r.Resource])
		}
		all = append(all, *r)
	}
	return all, nil
}

// doubt says why an object of which nothing was recorded at a cut may have been there; empty: it was not. Its own word counts first, unsure is the ledger's.
func doubt(text []byte, from journal.Cut, unsure string) string {
	switch made := gjson.GetBytes(text, "metadata.creationTimestamp").Time(); {
	case made.After(from.Time):
		return ""
	case !made.IsZero() && made.Before(from.Time.Add(-slowWatch)):
		return "it says that it was made on " + clock(made)
	}
	return unsure
}

// ErrNobody is returned by Reversals for a manager that changed nothing.
var ErrNobody = errors.New("changed nothing in that time")

func nobody(manager string, others []string) error {
	const most = 10
	switch n := len(others); {
	case n == 0:
		return fmt.Errorf("%s %w, and neither did anybody else whose name is known: 'tidemark log' shows what changed", manager, ErrNobody)
	case n > most:
		return fmt.Errorf("%s %w: %s and %d more did; 'tidemark log' shows who did what", manager, ErrNobody, strings.Join(others[:most], ", "), n-most)
	}
	return fmt.Errorf("%s %w: %s did; 'tidemark log' shows who did what", manager, ErrNobody, strings.Join(others, ", "))
}
