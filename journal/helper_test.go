package journal_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/goleak"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/journal"
)

var (
	configMaps = journal.ResourceInfo{Version: "v1", Resource: "configmaps", Kind: "ConfigMap", Namespaced: true}
	secrets    = journal.ResourceInfo{Version: "v1", Resource: "secrets", Kind: "Secret", Namespaced: true}
	nodes      = journal.ResourceInfo{Version: "v1", Resource: "nodes", Kind: "Node"}
	testKey    = []byte("0123456789abcdef0123456789abcdef")
)

// memDir is the data directory of journals in memory.
const memDir = "/data"

// noLeaks fails the test when it leaves goroutines. Journals that were broken on purpose leave
// some (Pebble is held in the middle of a write; a process would end), so it is not for them.
func noLeaks(t *testing.T) {
	t.Helper()
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
}

// tb is what testing.T and rapid.T share.
type tb interface {
	Helper()
	Errorf(format string, args ...any)
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// clock is a wall clock that tests set. Each look at it takes a millisecond.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(time.Millisecond)
	return c.now
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func plenty() (uint64, error) { return 1 << 40, nil }

func openMem(t tb, fs vfs.FS, change ...func(*journal.Options)) *journal.Journal {
	t.Helper()
	j, err := tryOpenMem(fs, change...)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func tryOpenMem(fs vfs.FS, change ...func(*journal.Options)) (*journal.Journal, error) {
	o := journal.Options{FS: fs, Key: testKey, Free: plenty}
	for _, f := range change {
		f(&o)
	}
	return journal.Open(memDir, o)
}

func closeJournal(t tb, j *journal.Journal) {
	t.Helper()
	if err := j.Close(); err != nil {
		t.Fatalf("close journal: %v", err)
	}
}

func flush(t tb, j *journal.Journal) {
	t.Helper()
	if err := j.Flush(context.Background()); err != nil {
		t.Fatalf("flush: %v", err)
	}
}

// begin gives the resource an empty first list at rv.
func begin(t tb, j *journal.Journal, info journal.ResourceInfo, rv uint64) {
	t.Helper()
	relist(t, j, info, rv, "")
}

// relist compares a list of the given events, taken at rv, with the journal.
func relist(t tb, j *journal.Journal, info journal.ResourceInfo, rv uint64, cause string, listed ...journal.Event) int {
	t.Helper()
	return compare(t, j, journal.Recording{ResourceInfo: info}, rv, cause, listed...)
}

func compare(t tb, j *journal.Journal, q journal.Recording, rv uint64, cause string, listed ...journal.Event) int {
	t.Helper()
	c, err := j.Compare(context.Background(), q, rv, cause)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range listed {
		if err := c.Add(context.Background(), e); err != nil {
			t.Fatal(err)
		}
	}
	n, err := c.Commit(context.Background(), rv)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func event(op journal.Op, gr schema.GroupResource, ns, name string, rv uint64, body string) journal.Event {
	return journal.Event{
		Op: op, Resource: gr, Namespace: ns, Name: name, UID: "uid-" + name, Revision: journal.Revision{RV: rv},
		Object: fmt.Appendf(nil, `{"metadata":{"name":%q,"namespace":%q,"resourceVersion":"%d"},"data":{"v":%q}}`, name, ns, rv, body),
	}
}

func appendAll(t tb, j *journal.Journal, events ...journal.Event) {
	t.Helper()
	for _, e := range events {
		if err := j.Append(context.Background(), e); err != nil {
			t.Fatal(err)
		}
	}
	flush(t, j)
}

func ledger(t tb, j *journal.Journal, info journal.ResourceInfo) journal.Ledger {
	t.Helper()
	l := j.Ledger(info.GroupResource())
	if l == nil {
		t.Fatalf("no ledger of %s", info.Resource)
		return journal.Ledger{}
	}
	return *l
}

// history walks the time index.
func history(t tb, j *journal.Journal) []journal.Event {
	t.Helper()
	tail, err := j.Tail(time.Time{}, j.Newest().Time)
	if err != nil {
		t.Fatal(err)
	}
	var all []journal.Event
	for tail.Next() {
		e, ok, err := tail.Event()
		if err != nil || !ok {
			t.Fatalf("event %+v: ok %v, err %v", tail.Meta(), ok, err)
		}
		all = append(all, e)
	}
	if err := tail.Close(); err != nil {
		t.Fatal(err)
	}
	return all
}

// id is the key of an object in tests' maps.
func id(gr schema.GroupResource, ns, name string) string { return gr.String() + " " + ns + "/" + name }

// fold gives the body of each object that lived at r, of resources of the main counter.
func fold(t tb, j *journal.Journal, r journal.Revision) map[string]string {
	t.Helper()
	v, err := j.View()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for ok := v.Seek("", schema.GroupResource{}, ""); ok; ok = v.NextObject() {
		ns, gr, name := v.Object()
		if !v.Before(r) {
			continue
		}
		e, err := v.Event()
		if err != nil {
			t.Fatalf("%s %s/%s: %v", gr, ns, name, err)
		}
		if e.Op != journal.Deleted {
			all[id(gr, ns, name)] = string(e.Object)
		}
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	return all
}

// within runs f and fails the test when it does not come back.
func within(t tb, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatalf("%s: hangs", what)
	}
}

// eventually polls until f says yes.
func eventually(t tb, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !f(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: never", what)
		}
	}
}

func wantError(t tb, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error %v, want %v", err, want)
	}
}
