package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/tidemark-backup/tidemark/compactor"
	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/volumes"
	"github.com/tidemark-backup/tidemark/volumes/repository"
)

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// withVolumes makes an archive with a backup of a directory beside it.
func withVolumes(t *testing.T) (dir, key string) {
	t.Helper()
	ctx, dir, key := t.Context(), t.TempDir(), filepath.Join(t.TempDir(), "key")
	_, err := archive.GenerateIdentity(key, false, time.Now())
	ok(t, err)
	ids, err := archive.LoadIdentities(key)
	ok(t, err)
	recipients, _ := archive.RecipientsOf(ids)
	store, err := archive.NewDirStore(dir)
	ok(t, err)
	j, err := journal.Open(t.TempDir(), journal.Options{})
	ok(t, err)
	ok(t, j.Bind(ctx, "c1"))
	c, err := j.Compare(ctx, journal.Recording{ResourceInfo: journal.ResourceInfo{Version: "v1", Resource: "configmaps", Kind: "ConfigMap", Namespaced: true}}, 1, "")
	ok(t, err)
	_, err = c.Commit(ctx, 1)
	ok(t, err)
	ok(t, j.SetBegan(ctx))

	content := t.TempDir()
	ok(t, os.WriteFile(filepath.Join(content, "file"), []byte(strings.Repeat("content", 1000)), 0o600))
	k := volumes.New(volumes.Options{
		Open: func(ctx context.Context, _ bool) (*repository.Repository, error) {
			return repository.Create(ctx, repository.Options{Store: store, Cluster: "c1", Identities: ids, Recipients: recipients})
		},
		Record: func(ctx context.Context, e journal.Event) error { return j.Record(ctx, volumes.Info, e) },
	})
	_, err = k.Back(ctx, volumes.BackRequest{Path: content}, nil)
	ok(t, err)
	s, err := compactor.NewShipper(compactor.Options{
		Journal: j, Open: func(context.Context) (archive.Store, error) { return store, nil },
		Archive: archive.Options{Recipients: []age.Recipient{recipients[0]}, Identities: ids},
	})
	ok(t, err)
	ok(t, s.Round(ctx))
	ok(t, j.Close())
	return dir, key
}

// command runs a command line.
func command(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out strings.Builder
	root := New(Env{In: strings.NewReader(""), Out: &out, Err: &out})
	root.SetArgs(args)
	err := root.ExecuteContext(t.Context())
	return out.String(), err
}

func TestVerifyKnowsOfVolumes(t *testing.T) {
	dir, key := withVolumes(t)
	url := "--archive=dir://" + dir
	full := []string{"verify", url, "--level", "full", "--identity", key}
	wants := func(what string, kind error, text string, args ...string) {
		t.Helper()
		out, err := command(t, args...)
		if !errors.Is(err, kind) || !strings.Contains(out, text) {
			t.Errorf("%s: %v, want %v and %q in\n%s", what, err, kind, text, out)
		}
	}
	wants("whole", nil, "volumes: 1 backup, ", full...)
	wants("hashes only", nil, "volumes were not looked at: 'tidemark volumes verify --archive dir://"+dir, "verify", url)

	copied := t.TempDir() // a copy is whole as well, and without volumes it says that they are elsewhere
	ok(t, os.CopyFS(copied, os.DirFS(dir)))
	there := []string{"verify", "--archive=dir://" + copied, "--level", "full", "--identity", key}
	wants("a copy", nil, "volumes: 1 backup, ", there...)
	if out, _ := command(t, there...); strings.Contains(out, "another archive") {
		t.Errorf("a copy: %s", out)
	}
	ok(t, os.RemoveAll(filepath.Join(copied, "volumes")))
	wants("a second archive", nil, "1 volume backup is beside another archive", there...)

	segments, err := filepath.Glob(filepath.Join(copied, "c1/segments/*/*"))
	if err != nil || len(segments) == 0 {
		t.Fatalf("no segments: %v", err)
	}
	for _, s := range segments { // history is lost, and the volumes are not
		ok(t, os.Remove(s))
	}
	ok(t, os.CopyFS(filepath.Join(copied, "volumes"), os.DirFS(filepath.Join(dir, "volumes"))))
	out, err := command(t, "repair", "--yes", "--archive=dir://"+copied, "--identity", key)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	wants("all history is lost", ErrDamaged, "volumes: 1 backup, ", there...)
	wants("all history is lost", ErrDamaged, "'tidemark snapshot create' begins anew", there...)

	rotten := t.TempDir() // indexes, without which nothing is found
	ok(t, os.CopyFS(rotten, os.DirFS(dir)))
	indexes, err := filepath.Glob(filepath.Join(rotten, "volumes/c1/kopia/xn*"))
	if err != nil || len(indexes) == 0 {
		t.Fatalf("no indexes: %v", err)
	}
	for _, x := range indexes {
		ok(t, os.WriteFile(x, []byte("rotten"), 0o600))
	}
	there = []string{"verify", "--archive=dir://" + rotten, "--level", "full", "--identity", key}
	wants("indexes are rotten", ErrDamaged, "DAMAGED: volumes: of all backups: ", there...)
	wants("indexes are rotten", ErrDamaged, "DAMAGED: of all backups: ", "volumes", "verify", "--archive=dir://"+rotten, "--identity", key)
	ok(t, os.Remove(filepath.Join(rotten, "volumes/c1/kopia/kopia.repository")))
	wants("the first file is gone", ErrDamaged, "kopia.repository is missing", there...)
	wants("the first file is gone", ErrDamaged, "kopia.repository is missing", "volumes", "verify", "--archive=dir://"+rotten, "--identity", key)

	packs, err := filepath.Glob(filepath.Join(dir, "volumes/c1/kopia/p*"))
	if err != nil || len(packs) == 0 {
		t.Fatalf("no packs: %v", err)
	}
	for _, p := range packs {
		ok(t, os.Remove(p))
	}
	wants("packs are gone", ErrDamaged, "DAMAGED: volumes: ", full...)
	ok(t, os.RemoveAll(filepath.Join(dir, "volumes")))
	wants("all are gone", ErrDamaged, "DAMAGED: volumes: ", full...)
	wants("all are gone, and only hashes are read", nil, "volumes were not looked at", "verify", url)
}

// A wrong key is no damage.
func TestVerifyWithAWrongKey(t *testing.T) {
	dir, _ := withVolumes(t)
	wrong := filepath.Join(t.TempDir(), "wrong")
	recipient, err := archive.GenerateIdentity(wrong, false, time.Now())
	ok(t, err)
	out, err := command(t, "verify", "--archive", "dir://"+dir, "--level", "full", "--identity", wrong)
	if !errors.Is(err, archive.ErrNoIdentity) || errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), recipient) || strings.Contains(out, "DAMAGED") {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestMaintainWithoutADaemon leaves a backup that has a snapshot in a cluster to the daemon there, says so, and maintains the repository all the same.
func TestMaintainWithoutADaemon(t *testing.T) {
	ctx := t.Context()
	dir, key := withVolumes(t)
	ids, err := archive.LoadIdentities(key)
	ok(t, err)
	store, err := archive.NewDirStore(dir)
	ok(t, err)
	r, err := repository.Open(ctx, repository.Options{Store: store, Cluster: "c1", Identities: ids})
	ok(t, err)
	for i, status := range []string{`{"snapshot":{"driver":"csi.example","id":"h"}}`, `{}`, `{}`} {
		name := fmt.Sprintf("data-%d", i)
		record := fmt.Sprintf(`{"metadata":{"name":%q,"namespace":"shop","creationTimestamp":"2020-01-1%dT10:00:00Z"},"spec":{"claim":"data","run":%q,"origin":"manual","ttl":1},"status":%s}`, name, i, name, status)
		_, err := r.Back(ctx, repository.Source{Namespace: "shop", Name: "data"}, t.TempDir(), repository.BackupOptions{
			Tags: func() (map[string]string, error) { return map[string]string{"backup": name, "record": record}, nil },
		})
		ok(t, err)
	}
	ok(t, r.Close(ctx))
	out, err := command(t, "volumes", "maintain", "--archive=dir://"+dir, "--identity", key)
	if err != nil || !strings.Contains(out, "data-0 is not deleted, though its TTL is over: it has a snapshot in the cluster's storage") || !strings.Contains(out, "data-1 is deleted: ") {
		t.Errorf("%v\n%s", err, out)
	}
	leases, err := filepath.Glob(filepath.Join(dir, "volumes/c1/maintenance/*"))
	if err != nil || len(leases) == 0 {
		t.Errorf("nobody maintained: %v", err)
	}
}

// TestADamagedKeyOfVolumes is damage, and no wrong key.
func TestADamagedKeyOfVolumes(t *testing.T) {
	for _, name := range []string{"keys/00000001.age", "kopia/kopia.repository"} {
		dir, key := withVolumes(t)
		ok(t, os.Truncate(filepath.Join(dir, "volumes/c1", name), 50))
		for _, verify := range [][]string{{"volumes", "verify"}, {"verify", "--level=full"}} {
			out, err := command(t, append(verify, "--archive=dir://"+dir, "--identity", key)...)
			if !errors.Is(err, ErrDamaged) || !strings.Contains(out, name) || !strings.Contains(out, "bring") {
				t.Errorf("%s, %v: %v\n%s", name, verify, err, out)
			}
		}
	}
}
