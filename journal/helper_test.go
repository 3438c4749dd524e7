package journal_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/journal"
)

var (
	configMaps = journal.ResourceInfo{Version: "v1", Resource: "configmaps", Kind: "ConfigMap", Namespaced: true}
	secrets    = journal.ResourceInfo{Version: "v1", Resource: "secrets", Kind: "Secret", Namespaced: true}
	testKey    = []byte("0123456789abcdef0123456789abcdef")
)

func openMem(t *testing.T, fs vfs.FS) *journal.Journal {
	t.Helper()
	j, err := journal.Open("data", journal.Options{FS: fs, Key: testKey, Free: func() (uint64, error) { return 1 << 40, nil }})
	if err != nil {
		t.Fatal(err)
	}
	return j
}

// begin gives the resource an empty first list at rv.
func begin(t *testing.T, j *journal.Journal, info journal.ResourceInfo, rv uint64) {
	t.Helper()
	relist(t, j, info, rv, "")
}

// relist compares a list of the given events, taken at rv, with the journal.
func relist(t *testing.T, j *journal.Journal, info journal.ResourceInfo, rv uint64, cause string, listed ...journal.Event) int {
	t.Helper()
	c, err := j.Compare(context.Background(), journal.Recording{ResourceInfo: info}, rv, cause)
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

func appendAll(t *testing.T, j *journal.Journal, events ...journal.Event) {
	t.Helper()
	for _, e := range events {
		if err := j.Append(context.Background(), e); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Flush(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func ledger(t *testing.T, j *journal.Journal, info journal.ResourceInfo) journal.Ledger {
	t.Helper()
	for _, l := range j.Ledgers() {
		if l.GroupResource() == info.GroupResource() {
			return l
		}
	}
	t.Fatalf("no ledger of %s", info.Resource)
	return journal.Ledger{}
}

// history walks the time index.
func history(t *testing.T, j *journal.Journal) []journal.Event {
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
