package checker

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// ErrNotYet is returned while there is no answer about a moment: ask again later. Its text says why. ErrFailed, which is
// one of them, is returned when Tidemark was asked and failed: with nothing going wrong, that must not stay so.
var (
	ErrNotYet = errors.New("no answer yet")
	ErrFailed = fmt.Errorf("%w, for it failed", ErrNotYet)
)

// Source is one place that Tidemark answers from: the daemon, or the archive alone.
type Source struct {
	Name   string   // "the daemon"
	Binary string   // the tidemark program
	Args   []string // of every command: --server or --archive
	Env    []string
	Dir    string // where answers that differ are saved
	// Archive says that there is no daemon behind it.
	Archive bool
	// Tamper, when set, changes every answer: it is how the checker is shown to see.
	Tamper func(list []byte) []byte

	// Last is what it said last that it knows; nil before.
	Last *Ledgers

	promised map[string]promise // by resource
}

// promise is what a source said last of a resource, and may not take back.
type promise struct{ first, watermark uint64 }

// keeps reports a ledger that takes back what the one before it said: one that begins later, as one that was lost and
// begun anew does, is complete up to less, or has a gap in what it had called complete.
func (s *Source) keeps(l *Ledgers) error {
	if s.promised == nil {
		s.promised = map[string]promise{}
	}
	broken := func(name, want, have string) error {
		return &Difference{Resource: "ledger", Key: name, Who: s.Name, Want: want, Have: have}
	}
	for name, p := range s.promised {
		now := l.all[name]
		if now == nil {
			return broken(name, fmt.Sprintf("a beginning at rv:%d", p.first), "no ledger")
		}
		if now.OwnCounter {
			continue
		}
		if now.First.Revision != p.first {
			return broken(name, fmt.Sprintf("a beginning at rv:%d", p.first), fmt.Sprintf("one at rv:%d", now.First.Revision))
		}
		if now.Watermark.Revision < p.watermark {
			return broken(name, fmt.Sprintf("all up to rv:%d, as it said before", p.watermark), fmt.Sprintf("all up to rv:%d", now.Watermark.Revision))
		}
		for _, g := range now.Gaps {
			if g.From.Revision < p.watermark && p.watermark < g.To.Revision {
				return broken(name, fmt.Sprintf("all up to rv:%d, as it said before", p.watermark), fmt.Sprintf("a gap from rv:%d to %d", g.From.Revision, g.To.Revision))
			}
		}
	}
	for name, now := range l.all {
		if !now.OwnCounter && now.First.Revision > 0 {
			s.promised[name] = promise{now.First.Revision, now.Watermark.Revision}
		}
	}
	return nil
}

// run runs one command. It returns its exit code as an error of type *exec.ExitError.
func (s *Source) run(ctx context.Context, args ...string) (stdout, stderr []byte, err error) {
	limit := 2 * time.Minute
	if args[0] == "log" || args[0] == "verify" { // which read everything
		limit = 20 * time.Minute
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.Binary, append(args, s.Args...)...)
	cmd.Env = s.Env
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err = cmd.Run(); err != nil {
		err = fmt.Errorf("tidemark %s: %w: %s", strings.Join(args, " "), err, lastLine(errs.Bytes()))
	}
	return out.Bytes(), errs.Bytes(), err
}

func lastLine(b []byte) string {
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return lines[len(lines)-1]
}

// cut is a moment as Tidemark writes it.
type cut struct {
	Epoch    uint32
	Revision uint64
	Time     time.Time
}

// ledger is what Tidemark says of one resource.
type ledger struct {
	Group, Resource         string
	OwnCounter              bool
	First, Since, Watermark cut
	Removed                 *cut
	Gaps                    []struct {
		From, To cut
		Cause    string
	}
}

func (l *ledger) name() string {
	if l.Group == "" {
		return l.Resource
	}
	return l.Resource + "." + l.Group
}

// gap reports whether the ledger says that changes up to that revision may be missing.
func (l *ledger) gap(rv uint64) bool {
	for _, g := range l.Gaps {
		if g.From.Revision < rv && rv < g.To.Revision {
			return true
		}
	}
	return false
}

// missed reports whether the change with that revision may be missing, by the ledger.
func (l *ledger) missed(rv uint64) bool {
	for _, g := range l.Gaps {
		if g.From.Revision < rv && rv <= g.To.Revision {
			return true
		}
	}
	return false
}

// Ledgers is what Tidemark says that it knows.
type Ledgers struct {
	all      map[string]*ledger
	From, To cut
	leftOut  map[string]bool
}

// Ledgers asks for the status.
func (s *Source) Ledgers(ctx context.Context) (*Ledgers, error) {
	out, _, err := s.run(ctx, "status", "-o", "json")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFailed, err)
	}
	var st struct {
		Catalog struct { // of a daemon
			Resources []ledger
			From, To  cut
			LeftOut   []struct {
				Resource struct{ Group, Resource string }
			}
		}
		Resources  []ledger // of an archive
		Restorable []struct{ From, To cut }
		ArchivedTo cut
		Damage     []string
	}
	if err := json.Unmarshal(out, &st); err != nil {
		return nil, fmt.Errorf("status of %s: %w", s.Name, err)
	}
	if len(st.Damage) > 0 {
		return nil, &Difference{Resource: "archive", Key: st.Damage[0], Who: s.Name, Want: "no damage", Have: "damage"}
	}
	l := &Ledgers{all: map[string]*ledger{}, leftOut: map[string]bool{}, From: st.Catalog.From, To: st.Catalog.To}
	list := st.Catalog.Resources
	if s.Archive {
		list, l.To = st.Resources, st.ArchivedTo
		if len(st.Restorable) == 0 {
			return nil, fmt.Errorf("%w: the archive holds nothing restorable", ErrNotYet)
		}
		if len(st.Restorable) > 1 { // nothing may ever be lost between two of them
			return nil, &Difference{Resource: "archive", Key: fmt.Sprint(st.Restorable), Who: s.Name, Want: "one range", Have: "a hole"}
		}
		l.From = st.Restorable[0].From
	}
	for _, o := range st.Catalog.LeftOut {
		name := o.Resource.Resource
		if o.Resource.Group != "" {
			name += "." + o.Resource.Group
		}
		l.leftOut[name] = true
	}
	for i := range list {
		l.all[list[i].name()] = &list[i]
	}
	s.Last = l
	return l, s.keeps(l)
}

// Gap is one gap of a ledger.
type Gap struct {
	Resource string
	From, To uint64
	Cause    string
}

// Gaps are all of them.
func (l *Ledgers) Gaps() []Gap {
	var out []Gap
	for name, one := range l.all {
		for _, g := range one.Gaps {
			if !one.OwnCounter {
				out = append(out, Gap{name, g.From.Revision, g.To.Revision, g.Cause})
			}
		}
	}
	return out
}

// warnedAtMost is how many of the resources in a gap are asked about one by one.
const warnedAtMost = 4

// Counted is what one comparison looked at.
type Counted struct {
	Objects   int // set against the API server's, byte for byte
	Resources int
	Unsure    []string // resources of a gap, or not recorded yet
	InGap     int      // resources whose answer the ledger does not vouch for
	Warned    int      // of those, how many were asked about, and the answer said so
	Skipped   int      // resources not recorded yet, or with a counter of their own
}

// Compare asks about the Moment and compares all of the answer. ErrNotYet: the source is not that far.
func (s *Source) Compare(ctx context.Context, mo *Moment) (Counted, error) {
	var n Counted
	known, err := s.Ledgers(ctx)
	if err != nil {
		return n, err
	}
	if known.From.Revision == 0 || mo.RV < known.From.Revision {
		return n, fmt.Errorf("%w: restorable from rv:%d", ErrTooOld, known.From.Revision)
	}
	if mo.RV > known.To.Revision { // it may be complete that far, but answers only up to the newest change that it recorded
		return n, fmt.Errorf("%w: %s is at %d", ErrNotYet, s.Name, known.To.Revision)
	}
	var ask, unsure []Resource
	for _, r := range mo.Resources {
		l := known.all[r.Name]
		switch {
		case l == nil && known.leftOut[r.Name], l != nil && (l.OwnCounter || l.First.Revision > mo.RV):
			n.Skipped++
			n.Unsure = append(n.Unsure, r.Name)
		case l == nil || l.First.Revision == 0:
			return n, fmt.Errorf("%w: %s knows no %s", ErrNotYet, s.Name, r.Name)
		case l.gap(mo.RV):
			unsure = append(unsure, r)
			n.Unsure = append(n.Unsure, r.Name)
		case l.Watermark.Revision < mo.RV && l.Removed == nil:
			return n, fmt.Errorf("%w: %s is at %d in %s", ErrNotYet, s.Name, l.Watermark.Revision, r.Name)
		case l.Removed != nil && mo.RV >= l.Removed.Revision && len(mo.sums[r.Name]) > 0:
			return n, fmt.Errorf("%w: %s holds %s for removed", ErrNotYet, s.Name, r.Name)
		default:
			ask = append(ask, r)
		}
	}
	n.InGap = len(unsure)
	for i := range unsure { // a gap after a restart of the API server is one of all resources: ask about some
		if i == warnedAtMost {
			break
		}
		if err := s.mustWarn(ctx, mo, &unsure[(i+int(mo.RV))%len(unsure)]); err != nil {
			return n, err
		}
		n.Warned++
	}
	if len(ask) == 0 {
		return n, nil
	}
	answer, err := s.get(ctx, mo, ask)
	if err != nil {
		return n, err
	}
	for _, r := range ask {
		if err := s.compare(mo, r.Name, answer); err != nil {
			return n, err
		}
		n.Objects += len(mo.sums[r.Name])
		n.Resources++
	}
	return n, nil
}

// answer is what get said.
type answer struct {
	raw  []byte
	sums map[string]map[string]sum
}

// get asks for all objects of the resources, at the Moment.
func (s *Source) get(ctx context.Context, mo *Moment, ask []Resource) (*answer, error) {
	names := make([]string, len(ask))
	kinds := map[[2]string]string{}
	a := &answer{sums: map[string]map[string]sum{}}
	for i, r := range ask {
		names[i] = r.Name
		kinds[[2]string{r.APIVersion, r.Kind}] = r.Name
		a.sums[r.Name] = map[string]sum{}
	}
	out, _, err := s.run(ctx, "get", strings.Join(names, ","), "-A", "--at", "rv:"+strconv.FormatUint(mo.RV, 10), "-o", "json")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFailed, err)
	}
	if s.Tamper != nil {
		out = s.Tamper(out)
	}
	a.raw = out
	var list struct{ Items []json.RawMessage }
	if err := json.Unmarshal(out, &list); err != nil {
		return nil, fmt.Errorf("answer of %s: %w", s.Name, errors.New("no JSON"))
	}
	for _, raw := range list.Items {
		it, h, err := parseItem(raw)
		if err != nil {
			return nil, err
		}
		name, ok := kinds[[2]string{h.APIVersion, h.Kind}]
		if !ok {
			return nil, &Difference{RV: mo.RV, Resource: h.APIVersion + " " + h.Kind, Key: it.key, Who: s.Name, Want: "not asked for", Have: "an object"}
		}
		if _, twice := a.sums[name][it.key]; twice {
			return nil, &Difference{RV: mo.RV, Resource: name, Key: it.key, Who: s.Name, Want: "one", Have: "two of that name"}
		}
		a.sums[name][it.key] = sha256.Sum256(it.raw)
	}
	return a, nil
}

// compare sets the answer against the Moment and saves it when it differs.
func (s *Source) compare(mo *Moment, resource string, a *answer) error {
	err := compare(mo, resource, s.Name, a.sums[resource])
	if d, ok := errors.AsType[*Difference](err); ok {
		d.Saved = filepath.Join(s.Dir, fmt.Sprintf("answer-%d.json", mo.RV))
		return errors.Join(d, os.WriteFile(d.Saved, a.raw, 0o600))
	}
	return err
}

// mustWarn wants an answer about a moment in a gap to say that it is one.
func (s *Source) mustWarn(ctx context.Context, mo *Moment, r *Resource) error {
	_, text, err := s.run(ctx, "get", r.Name, "-A", "--at", "rv:"+strconv.FormatUint(mo.RV, 10), "-o", "name")
	if err != nil {
		return fmt.Errorf("%w: %w", ErrFailed, err)
	}
	if !slices.ContainsFunc(strings.Split(string(text), "\n"), func(line string) bool {
		return strings.HasPrefix(line, "# warning:") && (strings.Contains(line, "gap") || strings.Contains(line, "removed"))
	}) {
		return &Difference{RV: mo.RV, Resource: r.Name, Who: s.Name, Want: "a warning of the gap in its ledger", Have: "none", File: mo.file}
	}
	return nil
}

// Verify has the whole archive read and checked by Tidemark itself.
func (s *Source) Verify(ctx context.Context) error {
	out, _, err := s.run(ctx, "verify", "--level", "full")
	if err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}
