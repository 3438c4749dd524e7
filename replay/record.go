package replay

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/journal/durable"
)

// Records keeps what restores did, each in a directory of its own: its plan with all bodies and
// what was live before, written before anything else is, and its progress, item by item. So a
// restore that was cut off can be gone on with, and any can be undone. They hold Secrets as they are:
// the directories are for their owner only.
type Records struct{ dir string }

var (
	// ErrNoRecord is returned for a restore that nothing is known of here.
	ErrNoRecord = errors.New("no restore of that name is recorded here")
	// ErrRunning is returned for a restore that another process works on.
	ErrRunning = errors.New("the restore is being worked on by another process")
	// ErrRecordFormat is returned for a record or a plan that another version wrote.
	ErrRecordFormat = errors.New("it was written by another version of tidemark")
)

// OpenRecords uses a directory, which is made with the first record. Nothing is read yet.
func OpenRecords(dir string) *Records { return &Records{dir: dir} }

// Dir is where the records lie.
func (r *Records) Dir() string { return r.dir }

// Record is one restore or undo that was begun.
type Record struct {
	ID   string
	Plan *Plan

	dir  string
	file *os.File // progress, locked; nil: read only

	mu    sync.Mutex
	done  map[int]outcome    // by index in Plan.Items
	hooks map[string]outcome // by Hooked.String
	// announced are waves of which anything may have been begun, though the progress does not say so: what it said may have been lost with the machine.
	announced map[int]bool
	// Ended is when it was done with; zero: it was cut off, or is still running.
	Ended time.Time
}

// outcome is how far one item has come.
type outcome struct {
	State string `json:"s"` // begin, done, left, failed
	UID   string `json:"uid,omitempty"`
	Made  string `json:"made,omitempty"` // fingerprint of what was created
	Why   string `json:"why,omitempty"`
}

// line is one line of the progress.
type line struct {
	Item *int   `json:"i,omitempty"`
	Wave *int   `json:"w,omitempty"`
	Boot string `json:"boot,omitempty"` // when the machine was started, as bootID has it
	Hook string `json:"hook,omitempty"`
	outcome
	Time time.Time `json:"t,omitzero"`
}

// Begin writes a plan down before it is applied. A plan that was applied before gets another ID. The record
// must be closed.
func (r *Records) Begin(p *Plan) (*Record, error) {
	if err := durable.MkdirAll(r.dir); err != nil {
		return nil, fmt.Errorf("record the restore: %w", err)
	}
	r.sweep()
	id := p.ID
	dir := filepath.Join(r.dir, id)
	err := os.Mkdir(dir, 0o700)
	for n := 2; errors.Is(err, fs.ErrExist); n++ {
		p.ID = fmt.Sprintf("%s-%d", id, n)
		dir = filepath.Join(r.dir, p.ID)
		err = os.Mkdir(dir, 0o700)
	}
	if err != nil {
		return nil, fmt.Errorf("record the restore: %w", err)
	}
	rec := newRecord(p.ID, dir)
	rec.Plan = p
	if err = rec.lock(); err == nil { // the progress is there before the plan, by which the record exists
		err = durable.Replace(rec.planFile(), func(w io.Writer) error {
			b := bufio.NewWriter(w)
			return errors.Join(p.Save(b), b.Flush())
		})
	}
	if err == nil {
		err = durable.SyncDir(r.dir)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("record the restore: %w", err), rec.Close(), os.RemoveAll(dir))
	}
	return rec, nil
}

// sweep removes what is left of records whose making or removal was cut off, a day ago at least: no command shows them, and there are Secrets in them.
// Directories in which there is anything else are not ours.
func (r *Records) sweep() {
	dirs, _ := os.ReadDir(r.dir)
	for _, d := range dirs {
		dir := filepath.Join(r.dir, d.Name())
		info, err := d.Info()
		if err != nil || !d.IsDir() || time.Since(info.ModTime()) < 24*time.Hour {
			continue
		}
		files, err := os.ReadDir(dir)
		others := func(f fs.DirEntry) bool {
			return f.Name() != progressFile && !strings.HasPrefix(f.Name(), durable.TempPrefix)
		}
		if err == nil && len(files) > 0 && !slices.ContainsFunc(files, others) {
			_ = os.RemoveAll(dir) // it is tried again by the next
		}
	}
}

func newRecord(id, dir string) *Record {
	return &Record{ID: id, dir: dir, done: map[int]outcome{}, hooks: map[string]outcome{}, announced: map[int]bool{}}
}

// progressFile is in the directory of each record.
const progressFile = "progress.jsonl"

func (rec *Record) progressFile() string { return filepath.Join(rec.dir, progressFile) }
func (rec *Record) planFile() string     { return filepath.Join(rec.dir, "plan.json.zst") }

// lock opens the progress for writing, and keeps others from it.
func (rec *Record) lock() error {
	f, err := os.OpenFile(rec.progressFile(), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("record the restore: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		return fmt.Errorf("%s: %w", rec.ID, ErrRunning)
	}
	rec.file = f
	return nil
}

// Close lets go of the record.
func (rec *Record) Close() error {
	if rec.file == nil {
		return nil
	}
	f := rec.file
	rec.file = nil
	return errors.Join(f.Sync(), f.Close())
}

// Open reads a record, to go on with it when write is set.
func (r *Records) Open(id string, write bool) (*Record, error) {
	if id == "" || filepath.Base(id) != id {
		return nil, fmt.Errorf("%w: %q", ErrNoRecord, id)
	}
	rec := newRecord(id, filepath.Join(r.dir, id))
	f, err := os.Open(rec.planFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s, in %s: 'tidemark restores list' shows what is", ErrNoRecord, id, r.dir)
	}
	if err != nil {
		return nil, fmt.Errorf("read the restore: %w", err)
	}
	defer f.Close()
	if rec.Plan, err = LoadPlan(f); err != nil {
		return nil, fmt.Errorf("read the restore %s: %w", id, err)
	}
	if write {
		if err := rec.lock(); err != nil {
			return nil, err
		}
	}
	return rec, rec.readProgress()
}

func (rec *Record) readProgress() error {
	b, err := os.ReadFile(rec.progressFile())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read the restore: %w", err)
	}
	whole := 0
	for text := range bytes.Lines(b) {
		var l line
		if text[len(text)-1] != '\n' || json.Unmarshal(text, &l) != nil {
			break // cut off in the middle of a line
		}
		whole += len(text)
		switch {
		case l.Item != nil:
			rec.done[*l.Item] = l.outcome
			rec.Ended = time.Time{}
		case l.Wave != nil:
			if boot := bootID(); boot == "" || l.Boot != boot { // else the machine has lived on, and nothing was lost
				rec.announced[*l.Wave] = true
			}
			rec.Ended = time.Time{}
		case l.Hook != "":
			rec.hooks[l.Hook] = l.outcome
		case l.State == "stop":
			clear(rec.announced)
		case l.State == "end":
			clear(rec.announced)
			rec.Ended = l.Time
		}
	}
	if rec.file != nil && whole < len(b) { // what is appended must begin a line
		if err := rec.file.Truncate(int64(whole)); err != nil {
			return fmt.Errorf("go on with the restore: %w", err)
		}
	}
	return nil
}

// note appends to the progress. What was written outlives the process at once, and the machine
// after the next sync.
func (rec *Record) note(i int, o outcome) error {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	rec.done[i] = o
	return rec.append(line{Item: &i, outcome: o})
}

func (rec *Record) append(l line) error {
	b, err := json.Marshal(l)
	if err != nil {
		return err
	}
	if _, err := rec.file.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("record the restore: %w", err)
	}
	return nil
}

// announce notes, so that it outlives the machine, that the items of a wave may be begun from now on.
func (rec *Record) announce(wave int) error {
	rec.mu.Lock()
	err := rec.append(line{Wave: &wave, Boot: bootID(), outcome: outcome{State: "begin"}})
	rec.mu.Unlock()
	return errors.Join(err, rec.sync())
}

// bootID is another one after each start of the machine; empty where there is none.
var bootID = sync.OnceValue(func() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
})

// stop notes that nothing is being written any more, and that the progress tells of all that was begun.
func (rec *Record) stop() error {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	clear(rec.announced)
	return errors.Join(rec.append(line{outcome: outcome{State: "stop"}}), rec.sync())
}

// known is how far an item has come, as far as it can be known: when the machine broke down, anything in a wave that was announced may have been begun. Claims
// are noted one by one before they are made, so that none is filled that may be somebody else's.
func (rec *Record) known(i int) outcome {
	o, it := rec.done[i], rec.Plan.Items[i]
	if o.State == "" && rec.announced[it.Wave] && it.Action.writes() && it.Volume == nil {
		o.State = "begin"
	}
	return o
}

// sync makes the progress outlive the machine.
func (rec *Record) sync() error {
	if err := rec.file.Sync(); err != nil {
		return fmt.Errorf("record the restore: %w", err)
	}
	return nil
}

// end notes that all was tried that the plan wants.
func (rec *Record) end() error {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	rec.Ended = time.Now().UTC()
	return errors.Join(rec.append(line{outcome: outcome{State: "end"}, Time: rec.Ended}), rec.sync())
}

// RecordProgress counts what has become of the objects that the plan writes.
type RecordProgress struct {
	Total   int `json:"total"`
	Done    int `json:"done"`
	Left    int `json:"left,omitempty"`    // turned out not to be the plan's to write
	Failed  int `json:"failed,omitempty"`  // and tried
	Unsure  int `json:"unsure,omitempty"`  // begun, and cut off
	Pending int `json:"pending,omitempty"` // not begun
}

// Progress tells how far the record's restore has come.
func (rec *Record) Progress() RecordProgress {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	var n RecordProgress
	for i, it := range rec.Plan.Items {
		if !it.Action.writes() {
			continue
		}
		n.Total++
		switch rec.done[i].State {
		case "done":
			n.Done++
		case "left":
			n.Left++
		case "failed":
			n.Failed++
		case "begin":
			n.Unsure++
		default:
			n.Pending++
		}
	}
	return n
}

// Each yields what became of each item that the plan writes: "done", "left", "failed", "begin" (cut off
// in the middle) or nothing, and why.
func (rec *Record) Each(yield func(it *Item, state, why string)) {
	for i, it := range rec.Plan.Items {
		if it.Action.writes() {
			yield(it, rec.done[i].State, rec.done[i].Why)
		}
	}
}

// Undo is the request that takes back what was done. What was begun and cut off is taken back as far as it
// can be seen.
func (rec *Record) Undo() UndoRequest {
	q := UndoRequest{Purpose: "takes back " + rec.ID, Cluster: rec.Plan.Cluster, MaxDeletes: -1, Owned: true, scaled: rec.Plan.past.scaled}
	started := map[objectKey]int{} // the items that started what was made at rest
	uids := map[objectKey]string{}
	for i, it := range rec.Plan.Items {
		if uid := rec.done[i].UID; uid != "" {
			uids[it.key()] = uid
		}
		if it.Action == ActionStart && rec.done[i].Made != "" {
			started[it.key()] = i
		}
	}
	for i, it := range rec.Plan.Items {
		o := rec.known(i)
		if it.Action.follows() {
			continue
		}
		create := it.create
		if at, ok := started[it.key()]; ok {
			o.Made = rec.done[at].Made
			body := create.object()
			if field, was := rec.Plan.Items[at].starts(); was == nil {
				body.drop("spec", field)
			} else {
				body.put(was, "spec", field)
			}
			create = pack(body.json())
		}
		if !it.Action.writes() || o.State != "done" && o.State != "begin" && (o.State != "failed" || o.Made == "") {
			continue // one that failed may have been made before
		}
		s := Step{Made: o.Made, UID: o.UID}
		if it.live != nil && it.Action != ActionCreate {
			s.Before = it.live.json()
		}
		if it.Action == ActionUpdate {
			s.After = linked(it, it.update, uids)
		}
		if it.Action == ActionCreate && s.Made == "" {
			if o.State == "done" {
				continue // somebody else had made it
			}
			s.After, s.UID = linked(it, create, uids), "" // begun: it may have been made, as this
		}
		if it.Action == ActionRecreate {
			s.After, s.Recreated = linked(it, create, uids), true
		}
		q.Reversals = append(q.Reversals, Reversal{Resource: it.Resource, Namespace: it.Namespace, Name: it.Name, Steps: []Step{s}})
	}
	return q
}

// linked is a body as it was sent: with the uids that its owners had got by then. An owner that was not there was
// not sent either.
func linked(it *Item, p packed, uids map[objectKey]string) []byte {
	if len(it.owners) == 0 {
		return p.json()
	}
	body := p.object()
	_ = it.link(body, func(k objectKey) string { return uids[k] })
	return body.json()
}

// RecordInfo is one record of a list.
type RecordInfo struct {
	ID      string         `json:"id"`
	Purpose string         `json:"purpose,omitempty"`
	Made    time.Time      `json:"made"`
	Cut     journal.Cut    `json:"cut,omitzero"`
	Server  string         `json:"server"`
	Ended   time.Time      `json:"ended,omitzero"`
	Items   RecordProgress `json:"objects"`
	// Err says why the record cannot be read.
	Err string `json:"error,omitempty"`
}

// List tells of all records, the newest first.
func (r *Records) List() ([]RecordInfo, error) {
	dirs, err := os.ReadDir(r.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list the restores: %w", err)
	}
	var all []RecordInfo
	for _, d := range dirs {
		rec, err := r.Open(d.Name(), false)
		if errors.Is(err, ErrNoRecord) {
			continue
		}
		if err != nil {
			all = append(all, RecordInfo{ID: d.Name(), Err: err.Error()})
			continue
		}
		p := rec.Plan
		all = append(all, RecordInfo{ID: rec.ID, Purpose: p.Purpose, Made: p.Made, Cut: p.Cut, Server: p.Server, Ended: rec.Ended, Items: rec.Progress()})
	}
	slices.SortFunc(all, func(a, b RecordInfo) int { return cmp.Or(b.Made.Compare(a.Made), cmp.Compare(a.ID, b.ID)) })
	return all, nil
}

// Remove forgets a record.
func (r *Records) Remove(id string) error {
	rec, err := r.Open(id, true)
	if err != nil {
		return err
	}
	err = os.Remove(rec.planFile()) // first: without it nobody goes on with what is left
	if err == nil {
		err = durable.SyncDir(rec.dir)
	}
	return errors.Join(err, rec.Close(), os.RemoveAll(rec.dir))
}
