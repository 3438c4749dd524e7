package journal_test

import (
	"context"
	"fmt"
	"log"

	"github.com/cockroachdb/pebble/v2/vfs"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/journal"
)

// A resource is recorded from its first list on; then come the events of its watch. The
// versions of an object are read newest first.
func Example() {
	ctx := context.Background()
	j, err := journal.Open("/data", journal.Options{FS: vfs.NewMem(), Key: make([]byte, 32)})
	if err != nil {
		log.Fatal(err)
	}
	defer j.Close()

	info := journal.ResourceInfo{Version: "v1", Resource: "configmaps", Kind: "ConfigMap", Namespaced: true}
	gr := info.GroupResource()
	list, err := j.Compare(ctx, journal.Recording{ResourceInfo: info}, 100, "")
	if err != nil {
		log.Fatal(err)
	}
	listed := journal.Event{Resource: gr, Namespace: "shop", Name: "web", Revision: journal.Revision{RV: 90}, Object: []byte(`{"data":{"color":"red"}}`)}
	if err := list.Add(ctx, listed); err != nil {
		log.Fatal(err)
	}
	if _, err := list.Commit(ctx, 100); err != nil {
		log.Fatal(err)
	}
	changed := journal.Event{Resource: gr, Namespace: "shop", Name: "web", Op: journal.Modified, Revision: journal.Revision{RV: 101}, Object: []byte(`{"data":{"color":"blue"}}`)}
	if err := j.Append(ctx, changed); err != nil {
		log.Fatal(err)
	}
	if err := j.Flush(ctx); err != nil {
		log.Fatal(err)
	}

	v, err := j.View()
	if err != nil {
		log.Fatal(err)
	}
	defer v.Close()
	for ok := v.Seek("shop", schema.GroupResource{}, ""); ok; ok = v.NextObject() {
		for more := true; more; more = v.NextVersion() {
			e, err := v.Event()
			if err != nil {
				log.Fatal(err)
			}
			fmt.Println(e.Op, e.ID(), e.Revision, string(e.Object))
		}
	}
	rv, ok := j.Resume(gr)
	fmt.Println("a watch can go on from", rv, ok)
	// Output:
	// MODIFIED configmaps shop/web 1/101 {"data":{"color":"blue"}}
	// ADDED configmaps shop/web 1/90 {"data":{"color":"red"}}
	// a watch can go on from 101 true
}
