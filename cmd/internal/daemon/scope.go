package daemon

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/cmd/internal/api"
	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/replay"
)

// CheckScope refuses what no daemon can take a snapshot of. Whether a type is known only a daemon can tell, by what it records.
func CheckScope(scope *archive.SnapshotScope) error {
	if scope == nil {
		return nil
	}
	for _, p := range scope.Namespaces {
		if _, err := path.Match(p, ""); err != nil || p == "" {
			return fmt.Errorf("%q is no name of a namespace, and no pattern such as team-*", p)
		}
	}
	for _, r := range scope.Resources {
		if r == "" || strings.ContainsAny(r, "/ ,") || strings.Contains(r, "*") && r != "*" {
			return fmt.Errorf("%q is no type: want one such as deploy or deployments.apps", r)
		}
	}
	if _, err := labels.Parse(scope.Selector); err != nil {
		return fmt.Errorf("selector %q: %w", scope.Selector, err)
	}
	return nil
}

// scoped reads a scope as restores read the same flags: types by any of their names, namespaces by patterns. It gives the scope with types by
// their full names, and what chooses it; nil chooses everything. A scope in which nothing is makes no backup, and is refused.
func (d *daemon) scoped(ctx context.Context, scope *archive.SnapshotScope) (*archive.SnapshotScope, func(*journal.Event) bool, error) {
	if scope == nil {
		return nil, nil, nil
	}
	if err := CheckScope(scope); err != nil {
		return nil, nil, api.Refuse("%w", err)
	}
	full, q := *scope, replay.Scope{}
	full.Resources = nil
	if len(scope.Resources) > 0 && !slices.Contains(scope.Resources, "*") {
		types, err := d.types(ctx, scope.Resources)
		if err != nil {
			return nil, nil, err
		}
		for _, gr := range types {
			q.Resources, full.Resources = append(q.Resources, gr), append(full.Resources, gr.String())
		}
	}
	q.Selector, _ = labels.Parse(scope.Selector) // checked
	keep := func(e *journal.Event) bool {
		return (len(scope.Namespaces) == 0 || slices.ContainsFunc(scope.Namespaces, func(p string) bool {
			ok, _ := path.Match(p, e.Namespace) // checked
			return ok
		})) && q.Contains(e)
	}
	return &full, keep, d.something(ctx, q, keep)
}

// types are the recorded resources that names mean, each once.
func (d *daemon) types(ctx context.Context, names []string) (all []schema.GroupResource, err error) {
	c, err := d.local.Ledgers(ctx)
	if err != nil {
		return nil, err
	}
	kinds := replay.NewKinds(c)
	for _, name := range names {
		found, err := kinds.Find(name)
		if err != nil {
			return nil, err
		}
		for _, l := range found {
			if gr := l.GroupResource(); !slices.Contains(all, gr) {
				all = append(all, gr)
			}
		}
	}
	return all, nil
}

// errNothing is returned for a scope that nothing is in.
var errNothing = errors.New("nothing that is recorded now is in this scope, so the snapshot would be empty: 'tidemark get ns' lists namespaces, and 'tidemark get TYPE -A -l SELECTOR' what labels choose")

// something looks for the first object that is kept.
func (d *daemon) something(ctx context.Context, q replay.Scope, keep func(*journal.Event) bool) error {
	now, err := d.local.Resolve(ctx, replay.At{})
	if err != nil {
		return err
	}
	for e, err := range d.local.Fold(ctx, now, q) {
		if err != nil {
			return err
		}
		if keep(&e) {
			return nil
		}
	}
	return api.Refuse("%w", errNothing)
}
