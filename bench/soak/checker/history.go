package checker

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"
)

// record is one line of `tidemark log -o json`.
type record struct {
	Op, Resource, Namespace, Name string
	Revision                      uint64
	Initial, Inferred             bool
	Gap                           json.RawMessage // a gap between changes
}

// Heard is what a comparison of histories counted.
type Heard struct {
	Versions int // seen by the Model and found in the history
	Missed   int // seen by the Model, not in the history, and in a gap of the ledger
}

// CompareHistory wants every version that the Model saw with a revision above from to be in the history, or in a gap
// of its ledger; and every version in the history that the Model must have seen, to have been seen. since is a time by
// which the cluster had not got past from, by the clock of whoever recorded it. It returns the revision up to which all resources were compared.
func (s *Source) CompareHistory(ctx context.Context, m *Model, from uint64, since time.Time) (Heard, uint64, error) {
	var n Heard
	known, err := s.Ledgers(ctx)
	if err != nil {
		return n, 0, err
	}
	args := []string{"log", "-A", "-o", "json"}
	if from > 0 {
		args = append(args, "--from", since.UTC().Format(time.RFC3339Nano))
	}
	out, _, err := s.run(ctx, args...)
	if err != nil {
		return n, 0, fmt.Errorf("%w: %w", ErrFailed, err)
	}
	after, err := s.Ledgers(ctx)
	if err != nil {
		return n, 0, err
	}
	beginning := max(known.From.Revision, after.From.Revision) // what was trimmed while the log was read is not in it
	have := map[string]map[string]map[uint64]record{}          // by resource, key, revision
	for line := range bytes.Lines(out) {
		var r record
		if err := json.Unmarshal(line, &r); err != nil {
			return n, 0, fmt.Errorf("a line of %s's log is no JSON", s.Name)
		}
		if r.Gap != nil {
			continue
		}
		byKey := have[r.Resource]
		if byKey == nil {
			byKey = map[string]map[uint64]record{}
			have[r.Resource] = byKey
		}
		key := r.Namespace + "/" + r.Name
		if byKey[key] == nil {
			byKey[key] = map[uint64]record{}
		}
		byKey[key][r.Revision] = r
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	upTo := known.To.Revision
	for _, name := range slices.Sorted(maps.Keys(m.all)) {
		l, st := known.all[name], m.all[name]
		if l == nil || l.OwnCounter || l.First.Revision == 0 {
			continue
		}
		low := max(from, l.First.Revision, beginning)
		high := min(l.Watermark.Revision, st.upTo, known.To.Revision)
		if l.Removed == nil {
			upTo = min(upTo, high)
		}
		if err := s.forward(&n, st, l, have[name], low, high); err != nil {
			return n, 0, err
		}
		if err := s.backward(st, have[name], low, high); err != nil {
			return n, 0, err
		}
	}
	return n, upTo, nil
}

// forward looks for what was seen and is not in the history.
func (s *Source) forward(n *Heard, st *stream, l *ledger, have map[string]map[uint64]record, low, high uint64) error {
	for key, all := range st.objects {
		for _, v := range all {
			if !v.seen || v.rv <= low || v.rv > high {
				continue
			}
			r, ok := have[key][v.rv]
			switch {
			case ok && v.deleted != (r.Op == "DELETED"):
				return &Difference{RV: v.rv, Resource: st.Name, Key: key, Who: s.Name, Want: fmt.Sprintf("deleted: %v", v.deleted), Have: r.Op}
			case ok:
				n.Versions++
			case l.missed(v.rv):
				n.Missed++
			default:
				return &Difference{RV: v.rv, Resource: st.Name, Key: key, Who: s.Name, Want: "a change with this revision", Have: "no such change, and no gap in the ledger that says so"}
			}
		}
	}
	return nil
}

// backward looks for what is in the history and never was.
func (s *Source) backward(st *stream, have map[string]map[uint64]record, low, high uint64) error {
	for key, all := range have {
		for rv, r := range all {
			if r.Initial || r.Inferred || rv <= low || rv > high || !st.sighted(rv) {
				continue
			}
			if !slices.ContainsFunc(st.objects[key], func(v version) bool { return v.rv == rv }) {
				return &Difference{RV: rv, Resource: st.Name, Key: key, Who: s.Name, Want: "nothing of this revision", Have: r.Op}
			}
		}
	}
	return nil
}
