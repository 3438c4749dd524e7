package replay

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"github.com/tidemark-backup/tidemark/journal"
)

// history is a Source over a list of events in the order of their revisions.
type history struct {
	events  []journal.Event
	ledgers []journal.Ledger
	// forgotten is how many of the events Changes has no longer; the versions stay.
	forgotten int
	clusterID string
}

var _ Source = (*history)(nil)

func (h *history) Ledgers(context.Context) (*Catalog, error) {
	return &Catalog{ClusterID: h.clusterID, Resources: h.ledgers}, nil
}

func (h *history) Resolve(context.Context, At) (journal.Cut, error) { return h.now(), nil }

func (h *history) Mark(_ context.Context, _ string, c journal.Cut) (journal.Cut, error) {
	return c, nil
}

// now is the cut after the newest event.
func (h *history) now() journal.Cut {
	if len(h.events) == 0 {
		return journal.Cut{Time: time.Unix(1, 0)}
	}
	e := h.events[len(h.events)-1]
	return journal.Cut{Revision: e.Revision, Time: e.Observed}
}

func (h *history) Fold(_ context.Context, cut journal.Cut, scope Scope) iter.Seq2[journal.Event, error] {
	return func(yield func(journal.Event, error) bool) {
		newest := map[objectKey]journal.Event{}
		var order []objectKey
		for _, e := range h.events {
			k := objectKey{e.Resource, e.Namespace, e.Name}
			if e.Revision.Compare(cut.Revision) <= 0 && scope.Covers(k.gr, k.namespace, k.name) {
				if _, known := newest[k]; !known {
					order = append(order, k)
				}
				newest[k] = e
			}
		}
		slices.SortFunc(order, func(a, b objectKey) int {
			return strings.Compare(a.namespace+"\x00"+a.String(), b.namespace+"\x00"+b.String())
		})
		buf := []byte{}
		for _, k := range order {
			e := newest[k]
			if e.Op == journal.Deleted || !scope.Selects(e.Object) {
				continue
			}
			buf = append(buf[:0], e.Object...) // valid until the next one only, as the contract says
			e.Object = buf
			if !yield(e, nil) {
				return
			}
		}
	}
}

func (h *history) Changes(_ context.Context, q ChangeQuery) iter.Seq2[Change, error] {
	return func(yield func(Change, error) bool) {
		before := map[objectKey][]byte{}
		for i, e := range h.events {
			k := objectKey{e.Resource, e.Namespace, e.Name}
			if i >= h.forgotten && q.Scope.Contains(&e) && e.Observed.After(q.From) && (q.To.IsZero() || !e.Observed.After(q.To)) && !yield(NewChange(e, before[k]), nil) {
				return
			}
			if before[k] = e.Object; e.Op == journal.Deleted {
				delete(before, k)
			}
		}
	}
}

// add records an object given as YAML, at the next revision.
func (h *history) add(t testing.TB, op journal.Op, resource, y string) {
	t.Helper()
	b, err := yaml.YAMLToJSON([]byte(y))
	if err != nil {
		t.Fatal(err)
	}
	o, err := parseObject(b)
	if err != nil {
		t.Fatal(err)
	}
	h.events = append(h.events, journal.Event{
		Resource: schema.ParseGroupResource(resource), Namespace: o.namespace(), Name: o.name(), UID: o.uid(), Op: op,
		Revision: journal.Revision{Epoch: 1, RV: uint64(10 * (len(h.events) + 1))}, Observed: time.Unix(int64(1000+len(h.events)), 0).UTC(), Object: b,
	})
}

// fromYAML parses one object.
func fromYAML(t testing.TB, y string) object {
	t.Helper()
	b, err := yaml.YAMLToJSON([]byte(y))
	if err != nil {
		t.Fatal(err)
	}
	o, err := parseObject(b)
	if err != nil {
		t.Fatalf("%v in\n%s", err, y)
	}
	return o
}

func toYAML(o object) string {
	b, err := yaml.JSONToYAML(o.json())
	if err != nil {
		return fmt.Sprint(err)
	}
	return string(b)
}

func parseGR(s string) schema.GroupResource { return schema.ParseGroupResource(s) }
