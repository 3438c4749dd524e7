package checker

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// builder writes an archive's files.
type builder struct {
	t    *testing.T
	dir  string
	prev string
	seq  int
	at   place
}

func newBuilder(t *testing.T) *builder {
	b := &builder{t: t, dir: filepath.Join(t.TempDir(), "cluster-id"), at: place{Time: time.Unix(100, 0)}}
	b.prev = hash(b.write("format", enveloped(`{"format":"tidemark-archive/1"}`)))
	return b
}

func enveloped(body string) string {
	return fmt.Sprintf(`{"sha256":"%s","body":%s}`+"\n", hash([]byte(body)), body)
}

func (b *builder) write(name, text string) []byte {
	b.t.Helper()
	path := filepath.Join(b.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		b.t.Fatal(err)
	}
	return []byte(text)
}

func (b *builder) path(seq int) string { return fmt.Sprintf("manifests/%020d.json", seq) }

// commit writes the next manifest.
func (b *builder) commit(change map[string]any) {
	b.t.Helper()
	b.seq++
	body, err := json.Marshal(map[string]any{"format": "tidemark-manifest/1", "cluster": "cluster-id", "seq": b.seq, "prev": b.prev, "change": change})
	if err != nil {
		b.t.Fatal(err)
	}
	b.prev = hash(b.write(b.path(b.seq), enveloped(string(body))))
}

func at(p place) map[string]any {
	return map[string]any{"revision": p.Revision, "time": p.Time.UTC(), "count": p.Count}
}

// seal writes a segment of ten events.
func (b *builder) seal(from place) map[string]any {
	to := place{Revision: from.Revision + 10, Time: from.Time.Add(time.Second), Count: from.Count + 10}
	name := fmt.Sprintf("segments/0/%d.sst.age", to.Count)
	text := strings.Repeat("x", int(to.Count))
	b.write(name, text)
	b.at = to
	return map[string]any{"name": name, "size": len(text), "sha256": hash([]byte(text)), "from": at(from), "to": at(to), "entries": 10}
}

func (b *builder) sealed() {
	segment := b.seal(b.at)
	b.commit(map[string]any{"step": "seal", "segments": []any{segment}, "known": map[string]any{"position": at(b.at)}})
}

func TestWholeChainIsFollowed(t *testing.T) {
	b := newBuilder(t)
	c := &Chain{Dir: b.dir}
	for range 3 {
		b.sealed()
		if n, err := c.Follow(); n != 1 || err != nil {
			t.Fatalf("%d manifests, %v", n, err)
		}
	}
	merged := b.write("segments/1/30.sst.age", "all")
	b.commit(map[string]any{
		"step": "merge", "gone": []any{"segments/0/10.sst.age", "segments/0/20.sst.age", "segments/0/30.sst.age"},
		"segments": []any{map[string]any{"name": "segments/1/30.sst.age", "size": len(merged), "sha256": hash(merged), "from": at(place{Time: time.Unix(100, 0)}), "to": at(b.at), "entries": 30}},
	})
	b.commit(map[string]any{"step": "free", "freed": []any{"segments/0/10.sst.age"}})
	if err := os.Remove(filepath.Join(b.dir, "segments/0/10.sst.age")); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Follow(); n != 2 || err != nil {
		t.Errorf("%d manifests, %v", n, err)
	}
	if manifests, files, events := c.Checked(); manifests != 5 || files != 4 || events != 30 {
		t.Errorf("checked %d manifests, %d files, %d events", manifests, files, events)
	}
}

func TestDamageOfAChainIsFound(t *testing.T) {
	for name, c := range map[string]struct {
		damage func(b *builder)
		want   string
	}{
		"a byte of a segment":    {func(b *builder) { b.sealed(); b.write("segments/0/20.sst.age", strings.Repeat("y", 20)) }, "segments/0/20"},
		"a segment too short":    {func(b *builder) { b.sealed(); b.write("segments/0/20.sst.age", "x") }, "segments/0/20"},
		"a segment that is gone": {func(b *builder) { b.sealed(); _ = os.Remove(filepath.Join(b.dir, "segments/0/20.sst.age")) }, "no file"},
		"a byte of a manifest": {func(b *builder) {
			b.sealed()
			text, _ := os.ReadFile(filepath.Join(b.dir, b.path(2)))
			b.write(b.path(2), strings.Replace(string(text), `"seal"`, `"sEal"`, 1))
		}, b2},
		"a manifest that follows another": {func(b *builder) { b.prev = hash(nil); b.sealed() }, "prev"},
		"a manifest of another number": {func(b *builder) {
			b.seq++
			b.sealed()
			_ = os.Rename(filepath.Join(b.dir, b.path(3)), filepath.Join(b.dir, b.path(2)))
		}, "number 2"},
		"a hole": {func(b *builder) { b.at = place{Time: time.Unix(102, 0), Count: 11, Revision: 11}; b.sealed() }, "without a hole"},
		"a merge that loses": {func(b *builder) {
			b.commit(map[string]any{"step": "merge", "gone": []any{"segments/0/10.sst.age"}})
		}, "entries after the merge"},
		"freeing what is needed": {func(b *builder) { b.commit(map[string]any{"step": "free", "freed": []any{"segments/0/10.sst.age"}}) }, "only garbage"},
		"a loss":                 {func(b *builder) { b.commit(map[string]any{"step": "repair", "lost": []any{map[string]any{}}}) }, "nothing lost"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBuilder(t)
			b.sealed()
			chain := &Chain{Dir: b.dir}
			if _, err := chain.Follow(); err != nil {
				t.Fatal(err)
			}
			c.damage(b)
			_, err := chain.Follow()
			mustDiffer(t, err, c.want)
		})
	}
}

// b2 is the name of the second manifest.
const b2 = "manifests/00000000000000000002.json"
