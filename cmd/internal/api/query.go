package api

import (
	"net/url"
	"strconv"
	"time"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/replay"
)

// selectsNothing reports whether the scope is empty by construction. Such a scope has no form
// in a URL, where a missing parameter means "all"; the client answers it without asking.
func selectsNothing(s *replay.Scope) bool {
	if s.Namespaces != nil && len(s.Namespaces) == 0 || s.Resources != nil && len(s.Resources) == 0 || s.Names != nil && len(s.Names) == 0 {
		return true
	}
	if s.Selector == nil {
		return false
	}
	_, selectable := s.Selector.Requirements()
	return !selectable
}

func putScope(v url.Values, s *replay.Scope) {
	for _, ns := range s.Namespaces {
		v.Add("namespace", ns) // empty: objects outside any namespace
	}
	for _, gr := range s.Resources {
		v.Add("resource", gr.String())
	}
	for _, n := range s.Names {
		v.Add("name", n)
	}
	if s.Selector != nil && !s.Selector.Empty() {
		v.Set("selector", s.Selector.String())
	}
}

func scopeOf(v url.Values) (replay.Scope, error) {
	s := replay.Scope{Namespaces: v["namespace"], Names: v["name"]}
	for _, r := range v["resource"] {
		s.Resources = append(s.Resources, schema.ParseGroupResource(r))
	}
	if text := v.Get("selector"); text != "" {
		sel, err := labels.Parse(text)
		if err != nil {
			return s, badRequest("selector: %w", err)
		}
		s.Selector = sel
	}
	return s, nil
}

func putCut(v url.Values, c journal.Cut) {
	v.Set("epoch", strconv.FormatUint(uint64(c.Epoch), 10))
	v.Set("revision", strconv.FormatUint(c.RV, 10))
	putTime(v, "time", c.Time)
}

func cutOf(v url.Values) (journal.Cut, error) {
	var c journal.Cut
	epoch, err := strconv.ParseUint(v.Get("epoch"), 10, 32)
	if err != nil {
		return c, badRequest("epoch: %w", err)
	}
	rv, err := strconv.ParseUint(v.Get("revision"), 10, 64)
	if err != nil {
		return c, badRequest("revision: %w", err)
	}
	c.Revision = journal.Revision{Epoch: uint32(epoch), RV: rv}
	c.Time, err = timeOf(v, "time")
	return c, err
}

func putTime(v url.Values, key string, t time.Time) {
	if !t.IsZero() {
		v.Set(key, t.UTC().Format(time.RFC3339Nano))
	}
}

func timeOf(v url.Values, key string) (time.Time, error) {
	text := v.Get(key)
	if text == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return t, badRequest("%s: %w", key, err)
	}
	return t, nil
}

func putChanges(v url.Values, q *replay.ChangeQuery) {
	putScope(v, &q.Scope)
	putTime(v, "from", q.From)
	putTime(v, "to", q.To)
	if q.Follow {
		v.Set("follow", "true")
	}
	if q.Objects {
		v.Set("objects", "true")
	}
}

func changesOf(v url.Values) (q replay.ChangeQuery, err error) {
	if q.Scope, err = scopeOf(v); err != nil {
		return q, err
	}
	if q.From, err = timeOf(v, "from"); err != nil {
		return q, err
	}
	if q.To, err = timeOf(v, "to"); err != nil {
		return q, err
	}
	q.Follow, q.Objects = v.Get("follow") == "true", v.Get("objects") == "true"
	return q, nil
}
