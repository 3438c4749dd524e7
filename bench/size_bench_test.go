package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/tidwall/gjson"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/journal"
)

// BenchmarkSize measures the disk space of a revision at rest: the whole data directory after
// the store has compacted, divided by the revisions in it, and what of it the families of keys
// take (v: versions, t: time index, h: heads). One op is one whole history.
//
// TIDEMARK_CORPUS names a recording to measure as well: JSON lines {"t","gr","e"}, e being a
// watch event as the API server sent it, in zstd.
func BenchmarkSize(b *testing.B) {
	b.Run("synthetic", func(b *testing.B) {
		measureSize(b, func(j *journal.Journal) {
			beginRecording(b, j, 1_000_000, podInfo, deploymentInfo)
			h := podsAndDeployments(1, 1000, 20)
			for range 40_000 {
				appendOne(b, j, h.next())
			}
		})
	})
	corpus := os.Getenv("TIDEMARK_CORPUS")
	if corpus == "" {
		b.Log("TIDEMARK_CORPUS names no recording: only the synthetic history is measured")
		return
	}
	b.Run("corpus", func(b *testing.B) {
		measureSize(b, func(j *journal.Journal) { replayRecording(b, j, corpus) })
	})
}

func measureSize(b *testing.B, fill func(*journal.Journal)) {
	for b.Loop() {
		dir := b.TempDir()
		j := openJournal(b, dir, journal.Options{})
		fill(j)
		flush(b, j)
		totals, err := j.Totals()
		if err := errors.Join(err, j.Close()); err != nil {
			b.Fatal(err)
		}
		compact(b, dir)
		n := float64(totals.Events)
		b.ReportMetric(n, "revisions")
		b.ReportMetric(float64(dirBytes(b, dir))/n, "B/revision")
		db := openStore(b, dir)
		for _, prefix := range []byte("vth") {
			bytes, err := db.EstimateDiskUsage([]byte{prefix}, []byte{prefix + 1})
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(bytes)/n, string(prefix)+"-B/revision")
		}
		if err := db.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// replayRecording appends a recording as capture would have: first what the lists gave, then
// the events in their order, without what capture leaves out by default. It returns how many bytes of JSON that was.
func replayRecording(b *testing.B, j *journal.Journal, path string) (raw int) {
	b.Helper()
	first := map[schema.GroupResource]*journal.Comparison{} // lists still being read
	begun := map[schema.GroupResource]bool{}
	eachFrame(b, path, func(gvr, op string, object []byte) {
		info := infoOf(gvr, object)
		gr := info.GroupResource()
		switch gr.String() {
		case "events", "events.events.k8s.io", "leases.coordination.k8s.io":
			return
		}
		meta := gjson.GetManyBytes(object, "metadata.resourceVersion", "metadata.namespace", "metadata.name", "metadata.uid")
		rv, err := strconv.ParseUint(meta[0].Str, 10, 64)
		if err != nil {
			b.Fatal(err)
		}
		if !begun[gr] {
			begun[gr] = true
			if first[gr], err = j.Compare(context.Background(), journal.Recording{ResourceInfo: info}, rv, ""); err != nil {
				b.Fatal(err)
			}
		}
		if op != "BOOKMARK" {
			raw += len(object)
		}
		e := journal.Event{
			Resource: gr, Namespace: meta[1].Str, Name: meta[2].Str, UID: meta[3].Str,
			Revision: journal.Revision{RV: rv}, Object: object,
		}
		switch c := first[gr]; {
		case op == "BOOKMARK" && c != nil:
			if _, err := c.Commit(context.Background(), rv); err != nil {
				b.Fatal(err)
			}
			delete(first, gr)
		case op == "BOOKMARK":
			err = j.Advance(context.Background(), gr, rv)
		case c != nil:
			err = c.Add(context.Background(), e)
		default:
			if err := e.Op.UnmarshalText([]byte(op)); err != nil {
				b.Fatal(err)
			}
			err = j.Append(context.Background(), e)
		}
		if err != nil {
			b.Fatal(err)
		}
	})
	if len(first) > 0 {
		b.Fatalf("%d first lists of the recording did not end", len(first))
	}
	return raw
}

func infoOf(gvr string, object []byte) journal.ResourceInfo {
	parts := strings.Split(gvr, "/")
	info := journal.ResourceInfo{Version: parts[len(parts)-2], Resource: parts[len(parts)-1], Kind: gjson.GetBytes(object, "kind").Str}
	if len(parts) == 3 {
		info.Group = parts[0]
	}
	info.Namespaced = gjson.GetBytes(object, "metadata.namespace").Exists()
	return info
}

// eachFrame calls f with each watch event of a recording, whose last line may be cut off.
func eachFrame(b *testing.B, path string, f func(gvr, op string, object []byte)) {
	b.Helper()
	file, err := os.Open(filepath.Clean(path))
	if err != nil {
		b.Fatal(err)
	}
	defer file.Close()
	z, err := zstd.NewReader(file)
	if err != nil {
		b.Fatal(err)
	}
	defer z.Close()
	lines := bufio.NewReaderSize(z, 1<<20)
	for {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			b.Fatal(err)
		}
		var frame struct {
			GR string `json:"gr"`
			E  struct {
				Type   string          `json:"type"`
				Object json.RawMessage `json:"object"`
			} `json:"e"`
		}
		if err := json.Unmarshal(line, &frame); err != nil {
			b.Fatal(err)
		}
		f(frame.GR, frame.E.Type, frame.E.Object)
	}
}
