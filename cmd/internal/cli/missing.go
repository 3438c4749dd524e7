package cli

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/replay"
)

// oneNamespace refuses objects that are named across all namespaces.
func (h *history) oneNamespace() error {
	if h.namespace == "" && slices.ContainsFunc(h.targets, func(t target) bool { return t.ledger.Namespaced && len(t.names) > 0 }) {
		return usage("an object cannot be named across all namespaces: give its namespace with -n instead of -A")
	}
	return nil
}

// severalTypes is a hint for "restore promotions vouchers", where commas were meant.
func (h *history) severalTypes() string {
	if len(h.targets) != 1 || len(h.targets[0].names) == 0 {
		return ""
	}
	words := []string{h.targets[0].ledger.Resource}
	for _, n := range h.targets[0].names {
		if _, err := h.kinds.find(n); err != nil {
			return ""
		}
		words = append(words, n)
	}
	return fmt.Sprintf(" (for several types write %s)", strings.Join(words, ","))
}

// knownNamespace returns an error when the namespace asked for was never recorded: an empty
// answer about it would look like good news.
func (h *history) knownNamespace(ctx context.Context) error {
	if h.namespace == "" || len(h.targets) > 0 && !slices.ContainsFunc(h.targets, func(t target) bool { return t.ledger.Namespaced }) {
		return nil
	}
	living, err := h.names(ctx, replay.Scope{Namespaces: []string{replay.ClusterScope}, Resources: []schema.GroupResource{namespaceKind}})
	if err != nil || slices.Contains(living, h.namespace) {
		return err
	}
	for _, scope := range []replay.Scope{
		{Namespaces: []string{replay.ClusterScope}, Resources: []schema.GroupResource{namespaceKind}, Names: []string{h.namespace}},
		replay.InNamespace(h.namespace),
	} {
		if known, err := h.everSeen(ctx, scope); known || err != nil {
			return err
		}
	}
	return failure(ErrNotInHistory, "namespace %s is not in the recorded history%s; choose one with -n, or all with -A", h.namespace, didYouMean(h.namespace, living))
}

// everSeen reports whether history has anything in scope.
func (h *history) everSeen(ctx context.Context, scope replay.Scope) (bool, error) {
	for _, err := range h.src.Changes(ctx, replay.ChangeQuery{Scope: scope}) {
		return err == nil, err
	}
	return false, nil
}

// names are the names of what lives in scope, as far as is known; none while nothing is restorable.
func (h *history) names(ctx context.Context, scope replay.Scope) ([]string, error) {
	if h.catalog.From.Time.IsZero() {
		return nil, nil
	}
	var out []string
	for e, err := range h.src.Fold(ctx, h.catalog.To, scope) {
		if err != nil {
			return nil, err
		}
		out = append(out, e.Name)
	}
	return out, nil
}

// nearObjects is a hint at objects whose names are like the missing one's.
func (h *history) nearObjects(ctx context.Context, m missingObject) (string, error) {
	living, err := h.names(ctx, replay.Scope{Namespaces: []string{m.namespace}, Resources: []schema.GroupResource{m.ledger.GroupResource()}})
	return didYouMean(m.name, living), err
}

// didYouMean names up to three of the words that are like the one that was typed.
func didYouMean(typed string, words []string) string {
	type match struct {
		word     string
		distance int
	}
	var found []match
	for _, w := range words {
		d := replay.EditDistance(typed, w)
		if d <= len(typed)/3+1 && d < len(w) || len(typed) >= 3 && strings.HasPrefix(w, typed) {
			found = append(found, match{w, d})
		}
	}
	slices.SortStableFunc(found, func(a, b match) int { return cmp.Compare(a.distance, b.distance) })
	var out []string
	for _, m := range found[:min(3, len(found))] {
		out = append(out, m.word)
	}
	if len(out) == 0 {
		return ""
	}
	return " (did you mean " + strings.Join(out, " or ") + "?)"
}

// neverSeen are those of the named objects that history knows nothing of.
func (h *history) neverSeen(ctx context.Context) ([]missingObject, error) {
	var out []missingObject
	for i := range h.targets {
		t := &h.targets[i]
		for _, n := range t.names {
			scope := t.scope(h.namespace)
			scope.Names = []string{n}
			known, err := h.everSeen(ctx, scope)
			if err != nil {
				return nil, err
			}
			if !known {
				out = append(out, missingObject{t.ledger, namespaceOf(t, h.namespace), n})
			}
		}
	}
	return out, nil
}

// neverWas is an error when history knows nothing of the namespace, or of an object, asked for.
func (h *history) neverWas(ctx context.Context) error {
	missing, err := h.neverSeen(ctx)
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		return h.explainMissing(ctx, missing, h.catalog.To)
	}
	return h.knownNamespace(ctx)
}

// namespaceOf is the namespace of a target's objects; empty for what is in none.
func namespaceOf(t *target, namespace string) string {
	if !t.ledger.Namespaced {
		return replay.ClusterScope
	}
	return namespace
}

// missingObject is an object that was named and not there.
type missingObject struct {
	ledger          *journal.Ledger
	namespace, name string
}

// printTarget prints one resource's objects and returns how many, and which named ones were missing.
func (h *history) printTarget(ctx context.Context, t *target, cut journal.Cut, p objectPrinter) (int, []missingObject, error) {
	scope := t.scope(h.namespace)
	scope.Selector = h.selector
	found := 0
	seen := map[string]bool{}
	for e, err := range h.src.Fold(ctx, cut, scope) {
		if err != nil {
			return 0, nil, err
		}
		found++
		if len(t.names) > 0 {
			seen[e.Name] = true
		}
		if err := p.print(t.ledger, &e); err != nil {
			return 0, nil, err
		}
	}
	var missing []missingObject
	if h.selector == nil {
		for _, n := range t.names {
			if !seen[n] {
				missing = append(missing, missingObject{t.ledger, namespaceOf(t, h.namespace), n})
			}
		}
	}
	return found, missing, nil
}

// explainMissing tells of each missing object what history knows.
func (h *history) explainMissing(ctx context.Context, missing []missingObject, cut journal.Cut) error {
	kind, text := ErrNotInHistory, ""
	for _, m := range missing {
		line, known, err := h.lastSeen(ctx, m, cut)
		if err != nil {
			return err
		}
		if known {
			kind = ErrNotFound
		}
		if text != "" {
			text += "\n"
		}
		text += line
	}
	return failure(kind, "%s", text)
}

// lastSeen describes the object's life around the cut in one line, and whether it ever lived.
func (h *history) lastSeen(ctx context.Context, m missingObject, cut journal.Cut) (string, bool, error) {
	id := replay.Label(m.ledger) + "/" + m.name
	where, flag := "", ""
	if m.namespace != "" {
		where, flag = " in namespace "+m.namespace, " -n "+m.namespace
	}
	scope := replay.Scope{Namespaces: []string{m.namespace}, Names: []string{m.name}}
	scope.Resources = append(scope.Resources, m.ledger.GroupResource())
	var before, after *replay.Change
	for c, err := range h.src.Changes(ctx, replay.ChangeQuery{Scope: scope}) {
		if err != nil {
			return "", false, err
		}
		c.Object, c.Before = nil, nil // they are only valid inside the loop
		if c.Revision.Compare(cut.Revision) <= 0 {
			before = &c
		} else if after == nil {
			after = &c
		}
	}
	switch {
	case before != nil:
		return fmt.Sprintf("%s%s was not there at %s: deleted at %s (%s ago); bring it back with 'tidemark undelete %s%s'",
			id, where, stamp(cut.Time), stamp(before.Observed), ago(time.Since(before.Observed)), id, flag), true, nil
	case after != nil:
		return fmt.Sprintf("%s%s was not there yet at %s: first seen at %s; try '--at %s'", id, where, stamp(cut.Time), stamp(after.Observed), stamp(after.Observed)), true, nil
	}
	near, err := h.nearObjects(ctx, m)
	if err != nil {
		return "", false, err
	}
	return fmt.Sprintf("%s%s is not in the recorded history%s%s; look around with 'tidemark get %s -A' or 'tidemark log %s%s'",
		id, where, near, h.severalTypes(), m.ledger.Resource, m.ledger.Resource, flag), false, nil
}
