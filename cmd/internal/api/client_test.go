package api_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/cmd/internal/api"
	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/replay"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// awkward are bodies that a careless framing would take apart.
var awkward = []string{
	`{"metadata":{"name":"a"}}`,
	"{\n  \"spaces\" : [ 1,\n2 ]\n}\n",
	`{"end":true}` + "\n" + `{"error":"no"}` + "\n",
	"\x00\xff\xfe not even text",
	`{"html":"<a>&amp;</a>","e":"é\u00e9"}`,
	strings.Repeat("x", 3<<20),
	"\n",
}

func awkwardChanges() (out []replay.Change) {
	for i, body := range awkward {
		out = append(out, replay.Change{
			Event: journal.Event{
				Resource: deployments, Namespace: "shop", Name: fmt.Sprint("o", i), UID: "u", Op: journal.Op(i%3 + 1),
				Revision: journal.Revision{Epoch: 2, RV: 1<<63 + uint64(i)}, Observed: t0.Add(time.Duration(i)), Flags: journal.Flags(i % 4),
				Object: []byte(body),
			},
			Fields: []string{`.data["a<b"]`, ".spec"}, Managers: []string{"kubectl"}, Before: []byte(awkward[len(awkward)-1-i]),
		})
	}
	return out
}

// sameBytes spares go-cmp from looking for the smallest difference of megabytes.
var sameBytes = cmp.Comparer(bytes.Equal)

func TestObjectsTravelByteForByte(t *testing.T) {
	f := &fakeSource{changes: awkwardChanges()}
	c := serve(t, f)
	got, err := collect(c.Fold(t.Context(), cutAt(5), replay.Scope{}))
	if err != nil {
		t.Fatal(err)
	}
	var want []journal.Event
	for _, c := range f.changes {
		want = append(want, c.Event)
	}
	if d := cmp.Diff(want, got, sameBytes); d != "" {
		t.Errorf("fold (-want +got):\n%s", d)
	}
	if d := cmp.Diff(cutAt(5), f.cut); d != "" {
		t.Errorf("the cut that arrived (-want +got):\n%s", d)
	}

	changes, err := collectChanges(c.Changes(t.Context(), replay.ChangeQuery{Objects: true}))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(f.changes, changes, sameBytes); d != "" {
		t.Errorf("changes (-want +got):\n%s", d)
	}
	changes, err = collectChanges(c.Changes(t.Context(), replay.ChangeQuery{}))
	if err != nil || len(changes) != len(f.changes) {
		t.Fatal(len(changes), err)
	}
	for _, c := range changes {
		if len(c.Object)+len(c.Before) > 0 {
			t.Errorf("%s: objects were sent although nobody asked for them", c.Name)
		}
	}
}

func TestErrorInMidStreamIsNoShortAnswer(t *testing.T) {
	outside := &replay.RangeError{At: replay.At{Ago: time.Hour}, Why: "is too long ago", From: cutAt(1), To: cutAt(2)}
	for _, want := range []error{errors.New("the disk is on fire"), outside} {
		for _, n := range []int{0, 1, 3} {
			f := &fakeSource{changes: awkwardChanges()[:n], fail: want}
			got, err := collect(serve(t, f).Fold(t.Context(), cutAt(5), replay.Scope{}))
			if err == nil || err.Error() != want.Error() || len(got) != n {
				t.Errorf("after %d objects: got %d and %v, want %v", n, len(got), err, want)
			}
		}
	}
}

func TestRangeErrorSurvivesTheWire(t *testing.T) {
	at, err := replay.ParseAt("rv:1/77")
	if err != nil {
		t.Fatal(err)
	}
	want := &replay.RangeError{At: at, Why: "lies before recording began", From: cutAt(100), To: cutAt(300)}
	f := &fakeSource{resolve: fmt.Errorf("wrapped: %w", want)}
	_, err = serve(t, f).Resolve(t.Context(), at)
	var got *replay.RangeError
	if !errors.As(err, &got) {
		t.Fatalf("got %T %v, want a RangeError", err, err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestMomentsSurviveTheWire(t *testing.T) {
	f := &fakeSource{}
	c := serve(t, f)
	for _, at := range []replay.At{
		{},
		{Time: t0},
		{Ago: 90 * time.Minute},
		{Revision: journal.Revision{RV: 7}},
		{Revision: journal.Revision{Epoch: 3, RV: 7}},
		{Mark: "nightly/2025-01-02"},
		{Before: "restore/shop-1"},
	} {
		cut, err := c.Resolve(t.Context(), at)
		if err != nil {
			t.Fatal(at, err)
		}
		if d := cmp.Diff(cutAt(123), cut); d != "" {
			t.Errorf("cut (-want +got):\n%s", d)
		}
		if d := cmp.Diff(at, f.at); d != "" {
			t.Errorf("moment (-want +got):\n%s", d)
		}
	}
}

func TestScopeSurvivesTheWire(t *testing.T) {
	sel, err := labels.Parse("app in (a,b),!gone,tier!=x")
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeSource{}
	c := serve(t, f)
	compare := cmp.Options{cmpopts.EquateEmpty(), cmp.Comparer(func(a, b labels.Selector) bool {
		return a == nil && b == nil || a != nil && b != nil && a.String() == b.String()
	})}
	for _, want := range []replay.Scope{
		{},
		{Namespaces: []string{replay.ClusterScope}},
		{Namespaces: []string{"shop", replay.ClusterScope}, Resources: []schema.GroupResource{configMaps, deployments}, Names: []string{"a", "b&c=d"}},
		{Selector: sel},
	} {
		if _, err := collect(c.Fold(t.Context(), cutAt(5), want)); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, f.scope, compare); d != "" {
			t.Errorf("fold (-want +got):\n%s", d)
		}
		if (want.Namespaces == nil) != (f.scope.Namespaces == nil) {
			t.Errorf("namespaces %#v became %#v, which means something else", want.Namespaces, f.scope.Namespaces)
		}
		q := replay.ChangeQuery{From: t0, To: t0.Add(time.Nanosecond), Scope: want, Objects: true}
		if _, err := collectChanges(c.Changes(t.Context(), q)); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(q, f.query, compare); d != "" {
			t.Errorf("changes (-want +got):\n%s", d)
		}
	}
}

// A list that is empty but not nil means "none"; it must not turn into "all" on the way.
func TestScopeOfNothingStaysNothing(t *testing.T) {
	c := serve(t, &fakeSource{changes: awkwardChanges()})
	for _, s := range []replay.Scope{
		{Namespaces: []string{}}, {Names: []string{}}, {Resources: []schema.GroupResource{}}, {Selector: labels.Nothing()},
	} {
		got, err := collect(c.Fold(t.Context(), cutAt(5), s))
		if err != nil || len(got) != 0 {
			t.Errorf("fold of %+v: %d objects, %v", s, len(got), err)
		}
		changes, err := collectChanges(c.Changes(t.Context(), replay.ChangeQuery{Scope: s}))
		if err != nil || len(changes) != 0 {
			t.Errorf("changes of %+v: %d, %v", s, len(changes), err)
		}
	}
}

func TestCatalogStatusAndMarks(t *testing.T) {
	f := &fakeSource{}
	c := serve(t, f)
	want, _ := f.Ledgers(t.Context())
	got, err := c.Ledgers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("catalog (-want +got):\n%s", d)
	}
	st, err := c.Status(t.Context())
	if err != nil || st.Version != "test" || !cmp.Equal(st.Catalog, *want) {
		t.Errorf("status: %+v, %v", st, err)
	}
	if cut, err := c.Mark(t.Context(), "now", journal.Cut{}); err != nil || !cmp.Equal(cut, cutAt(300)) {
		t.Errorf("mark of now: %v, %v", cut, err)
	}
	if cut, err := c.Mark(t.Context(), "then", cutAt(7)); err != nil || !cmp.Equal(cut, cutAt(7)) || !cmp.Equal(f.marks["then"], cutAt(7)) {
		t.Errorf("mark of a cut: %v, %v", cut, err)
	}
	if _, err := c.Mark(t.Context(), "bad", journal.Cut{}); err == nil || err.Error() != "no such name" {
		t.Errorf("a refused mark: %v", err)
	}
}

func TestFollowerGetsChangesAtOnceAndEndsWithItsContext(t *testing.T) {
	f := &fakeSource{changes: awkwardChanges()[:2], block: make(chan struct{}), ended: make(chan error, 1)}
	c := serve(t, f)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	n := 0
	for _, err := range c.Changes(ctx, replay.ChangeQuery{Follow: true}) {
		if err != nil {
			t.Fatal(err)
		}
		if n++; n == 2 {
			break // both are here while the source still has more to come
		}
	}
	select {
	case err := <-f.ended:
		if err == nil {
			t.Error("the source was not told that the follower left")
		}
	case <-ctx.Done():
		t.Fatal("the server goes on following for a client that left")
	}
}

func TestFollowerIsToldThatTheDaemonStops(t *testing.T) {
	f := &fakeSource{block: make(chan struct{}), ended: make(chan error, 1)}
	path := t.TempDir() + "/s.sock"
	l, err := api.ListenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	c, stop := serveUntil(t, f, l, "unix://"+path)
	got := make(chan error, 1)
	go func() {
		_, err := collectChanges(c.Changes(context.Background(), replay.ChangeQuery{Follow: true}))
		got <- err
	}()
	waitFor(t, func() bool { f.mu.Lock(); defer f.mu.Unlock(); return f.query.Follow })
	stop()
	if err := <-got; err == nil || !strings.Contains(err.Error(), "stopping") {
		t.Errorf("the follower got %v, want to hear that the daemon is stopping", err)
	}
}

func TestManyClientsAtOnce(t *testing.T) {
	f := &fakeSource{changes: awkwardChanges()}
	c := serve(t, f)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 4 {
				got, err := collect(c.Fold(t.Context(), cutAt(5), replay.Scope{}))
				if err != nil || len(got) != len(awkward) {
					t.Errorf("got %d objects and %v", len(got), err)
					return
				}
				for i, e := range got {
					if !bytes.Equal(e.Object, f.changes[i].Object) {
						t.Errorf("object %d of one answer is another's", i)
					}
				}
			}
		})
	}
	wg.Wait()
}

func TestUnreachableDaemonSaysWhereAndWhatToType(t *testing.T) {
	path := t.TempDir() + "/none.sock"
	c, err := api.NewClient(api.ClientOptions{Server: "unix://" + path})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Ledgers(t.Context())
	if _, ok := errors.AsType[*api.UnreachableError](err); !ok {
		t.Fatalf("got %T %v", err, err)
	}
	for _, part := range []string{"unix://" + path, "no such file", "tidemark run", "--server"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not say %q", err, part)
		}
	}
}

func TestServerAddressesThatCannotBe(t *testing.T) {
	for _, s := range []string{"", "http://127.0.0.1:80", "tidemark.sock", "unix://relative.sock", "https://", "ftp://x", "unix:///"[:7]} {
		if _, err := api.NewClient(api.ClientOptions{Server: s}); err == nil {
			t.Errorf("%q was taken", s)
		}
	}
}
