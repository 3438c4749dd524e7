package compactor_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"

	"github.com/tidemark-backup/tidemark/compactor"
	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/replay"
)

// golden is a released format: an archive as it was written then, the key to it, and its answers. No
// directory of testdata/golden is ever changed; a new format gets a new one, which
// TIDEMARK_WRITE_GOLDEN=NAME writes.
type golden struct {
	Folds   map[string]map[string]string // by --at
	Changes []string
}

func answersOf(t *testing.T, src replay.Source) golden {
	t.Helper()
	g := golden{Folds: map[string]map[string]string{}}
	for rv := uint64(10); rv <= 40; rv += 5 {
		cut, err := src.Resolve(t.Context(), replay.At{Revision: journal.Revision{RV: rv}})
		if err != nil {
			t.Fatal(err)
		}
		if g.Folds[fmt.Sprint("rv:", rv)], err = foldOf(src, cut); err != nil {
			t.Fatal(err)
		}
	}
	for c, err := range src.Changes(t.Context(), replay.ChangeQuery{}) {
		if err != nil {
			t.Fatal(err)
		}
		g.Changes = append(g.Changes, fmt.Sprint(c.Observed.Format(time.RFC3339Nano), " ", c.Op, " ", c.ID(), " ", c.Revision, " ", string(c.Object)))
	}
	return g
}

func TestEveryReleasedFormatIsReadable(t *testing.T) {
	const root = "testdata/golden"
	if name := os.Getenv("TIDEMARK_WRITE_GOLDEN"); name != "" {
		writeGolden(t, filepath.Join(root, name))
	}
	names, err := os.ReadDir(root)
	if err != nil || len(names) == 0 {
		t.Fatalf("there are no golden archives: %v", err)
	}
	for _, n := range names {
		t.Run(n.Name(), func(t *testing.T) {
			dir := filepath.Join(root, n.Name())
			key := filepath.Join(t.TempDir(), "key") // git does not keep its mode
			b, err := os.ReadFile(filepath.Join(dir, "key.txt"))
			if err == nil {
				err = os.WriteFile(key, b, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			identities, err := archive.LoadIdentities(key)
			if err != nil {
				t.Fatal(err)
			}
			a, err := archive.Open(t.Context(), goldenStore(t, dir), archive.Options{Identities: identities})
			if err != nil {
				t.Fatal(err)
			}
			if r, err := compactor.Verify(t.Context(), a, compactor.Level{Checksum: true, Percent: 100, Full: true}); err != nil || r.Damaged() {
				t.Fatalf("verify: %+v, %v", r, err)
			}
			var want golden
			if b, err = os.ReadFile(filepath.Join(dir, "answers.json")); err == nil {
				err = json.Unmarshal(b, &want)
			}
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(want, answersOf(t, replay.NewArchived(a.History()))); d != "" {
				t.Errorf("it gives other answers than when it was written (-then +now):\n%s", d)
			}
		})
	}
}

func goldenStore(t *testing.T, dir string) archive.Store {
	t.Helper()
	path, err := filepath.Abs(filepath.Join(dir, "archive"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := archive.OpenStore(t.Context(), "dir://"+path, archive.StoreOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// writeGolden writes a small archive with everything in it: several segments, a merged one, snapshots
// of everything and of a part, Secrets, a gap, a deletion, a mark.
func writeGolden(t *testing.T, dir string) {
	t.Helper()
	ctx := context.Background()
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ok(os.Mkdir(dir, 0o755))
	_, err := archive.GenerateIdentity(filepath.Join(dir, "key.txt"), false, time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC))
	ok(err)
	identities, err := archive.LoadIdentities(filepath.Join(dir, "key.txt"))
	ok(err)
	recipients, _ := archive.RecipientsOf(identities)
	c := &clock{now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
	j, err := journal.Open("/data", journal.Options{FS: vfs.NewMem(), Key: []byte("0123456789abcdef0123456789abcdef"), Free: func() (uint64, error) { return 1 << 40, nil }, Clock: c.Now})
	ok(err)
	ok(j.Bind(ctx, "6a3fb2b7-0001-4d2c-9b6b-3c1f6f0f3a11"))
	s, err := compactor.NewShipper(compactor.Options{
		Journal: j, Clock: c.Now, Open: func(context.Context) (archive.Store, error) { return goldenStore(t, dir), nil },
		Archive: archive.Options{Recipients: recipients, Identities: identities},
	})
	ok(err)
	_, err = s.Connect(ctx)
	ok(err)
	for _, info := range []journal.ResourceInfo{configMaps, secrets} {
		cmp, err := j.Compare(ctx, journal.Recording{ResourceInfo: info}, 9, "")
		ok(err)
		_, err = cmp.Commit(ctx, 9)
		ok(err)
	}
	ok(j.SetBegan(ctx))
	for rv := uint64(10); rv <= 40; rv++ {
		info, op := configMaps, journal.Modified
		if rv%2 == 1 {
			info = secrets
		}
		switch {
		case rv < 16:
			op = journal.Added
		case rv == 30:
			op = journal.Deleted
		}
		ok(j.Append(ctx, journal.Event{
			Resource: info.GroupResource(), Namespace: "shop", Name: fmt.Sprint("o", rv%6), UID: fmt.Sprint("u", rv%6), Op: op, Revision: journal.Revision{RV: rv},
			Object: fmt.Appendf(nil, `{"apiVersion":"v1","kind":%q,"metadata":{"name":"o%d","namespace":"shop","resourceVersion":"%d","labels":{"app":"web"}}}`, info.Kind, rv%6, rv),
		}))
		ok(j.Flush(ctx))
		if rv%3 == 0 {
			c.add(11 * time.Second)
			ok(s.Seal(ctx))
		}
		if rv == 22 {
			ok(j.SetMark(ctx, "before-upgrade", j.Newest()))
			_, err := s.Snapshot(ctx, compactor.SnapshotRequest{Name: "first", TTL: time.Hour})
			ok(err)
		}
	}
	ok(s.Merge(ctx))
	_, err = s.Snapshot(ctx, compactor.SnapshotRequest{Name: "part", Scope: &archive.SnapshotScope{Resources: []string{"secrets"}}, Keep: func(e *journal.Event) bool { return e.Resource.Resource == "secrets" }})
	ok(err)
	_, err = s.Snapshot(ctx, compactor.SnapshotRequest{Pinned: true})
	ok(err)
	a, err := archive.Open(ctx, goldenStore(t, dir), archive.Options{Identities: identities})
	ok(err)
	b, err := json.MarshalIndent(answersOf(t, replay.NewArchived(a.History())), "", " ")
	ok(err)
	ok(os.WriteFile(filepath.Join(dir, "answers.json"), b, 0o644))
	ok(j.Close())
}
