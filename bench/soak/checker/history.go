package checker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
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
	Bodies   int // revisions at which all objects of a resource were compared with the Model's
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
	upTo, bodies, err := s.compareVersions(&n, m, have, known, from, beginning)
	if err != nil {
		return n, 0, err
	}
	for _, mo := range bodies {
		if err := s.body(ctx, mo); err != nil {
			return n, 0, err
		}
		n.Bodies++
	}
	return n, upTo, nil
}

// compareVersions compares which versions there are. It returns up to which revision all resources were compared, and some
// of the revisions, with all objects that their resource had: the Model knows hashes, a log has none.
func (s *Source) compareVersions(n *Heard, m *Model, have map[string]map[string]map[uint64]record, known *Ledgers, from, beginning uint64) (uint64, []*Moment, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	upTo := known.To.Revision
	var fit []*Moment
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
		if err := s.forward(n, st, l, have[name], low, high); err != nil {
			return 0, nil, err
		}
		if err := s.backward(st, have[name], low, high); err != nil {
			return 0, nil, err
		}
		if rv := st.some(low, high); rv > 0 && !l.gap(rv) && l.Removed == nil {
			fit = append(fit, &Moment{RV: rv, Resources: []Resource{st.Resource}, sums: map[string]map[string]sum{name: st.at(rv)}})
		}
	}
	rand.Shuffle(len(fit), func(i, k int) { fit[i], fit[k] = fit[k], fit[i] })
	return upTo, fit[:min(len(fit), bodiesAtMost)], nil
}

// bodiesAtMost is of how many resources a comparison of histories looks at the objects as well.
const bodiesAtMost = 4

// some returns the revision of one version above low and up to high, of which the stream knows all other objects, too; 0: of none.
func (s *stream) some(low, high uint64) uint64 {
	for _, all := range s.objects { // in no order
		for _, k := range rand.Perm(len(all)) {
			if v := all[k]; v.seen && !v.deleted && v.rv > low && v.rv <= high && s.knows(v.rv) {
				return v.rv
			}
		}
	}
	return 0
}

// body compares all objects of one resource, as they were when one of them changed. What was trimmed meanwhile is left alone.
func (s *Source) body(ctx context.Context, mo *Moment) error {
	a, err := s.get(ctx, mo, mo.Resources)
	if err == nil {
		return s.compare(mo, mo.Resources[0].Name, a)
	}
	known, after := s.Ledgers(ctx)
	if after != nil {
		return after
	}
	if errors.Is(err, ErrFailed) && known.From.Revision > mo.RV {
		return nil
	}
	return err
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
