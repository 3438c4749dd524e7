package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"github.com/tidemark-backup/tidemark/deploy/localcluster"
	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/journal/capture"
	"github.com/tidemark-backup/tidemark/replay"
)

var (
	configMaps = schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}
	secrets    = schema.GroupVersionResource{Version: "v1", Resource: "secrets"}
	namespaces = schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}
	crds       = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
	buckets    = schema.GroupVersionResource{Group: "example.com", Version: "v1", Resource: "buckets"}
)

// startCluster starts a control plane for one test.
func startCluster(t testing.TB, o localcluster.Options) *localcluster.Cluster {
	t.Helper()
	c, err := localcluster.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Errorf("stop cluster: %v", err)
		}
	})
	return c
}

// fastClient is a dynamic client without client-side limits.
func fastClient(t testing.TB, c *rest.Config) *dynamic.DynamicClient {
	t.Helper()
	c = rest.CopyConfig(c)
	c.QPS = -1
	d, err := dynamic.NewForConfig(c)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// recording is a capture at work on a journal.
type recording struct {
	t       testing.TB
	dir     string
	journal *journal.Journal
	capture *capture.Capture
	source  replay.Source
	stop    func()
}

// record starts to record the cluster that config names, and waits for the first lists.
func record(t testing.TB, config *rest.Config, dir string, change ...func(*capture.Options)) *recording {
	t.Helper()
	log := zap.NewNop()
	if os.Getenv("TIDEMARK_TEST_LOG") != "" {
		log = zaptest.NewLogger(t)
	}
	j, err := journal.Open(dir, journal.Options{Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	o := capture.Options{Config: config, Journal: j, Logger: log}
	for _, f := range change {
		f(&o)
	}
	c, err := capture.New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	r := &recording{t: t, dir: dir, journal: j, capture: c, source: replay.NewLocal(j)}
	stopped := false
	r.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("capture: %v", err)
		}
		if err := j.Close(); err != nil {
			t.Errorf("close journal: %v", err)
		}
	}
	t.Cleanup(r.stop)
	eventually(t, 60*time.Second, "first lists", func() (bool, string) {
		return !j.Began().Time.IsZero(), fmt.Sprintf("%+v", c.Status())
	})
	return r
}

// await waits until the journal is known to hold all of the resource up to rv.
func (r *recording) await(gvr schema.GroupVersionResource, rv uint64) {
	r.t.Helper()
	eventually(r.t, 30*time.Second, fmt.Sprintf("watermark of %s at %d", gvr.Resource, rv), func() (bool, string) {
		l := r.journal.Ledger(gvr.GroupResource())
		return l != nil && l.Watermark.RV >= rv, fmt.Sprintf("%+v", l)
	})
}

// fold gives the journal's state of one resource at a revision: object by namespace/name.
func (r *recording) fold(gr schema.GroupResource, rv uint64) map[string][]byte {
	r.t.Helper()
	cut, err := r.source.Resolve(context.Background(), replay.At{Revision: journal.Revision{RV: rv}})
	if err != nil {
		r.t.Fatalf("resolve rv:%d: %v", rv, err)
	}
	all := map[string][]byte{}
	for e, err := range r.source.Fold(context.Background(), cut, replay.Scope{Resources: []schema.GroupResource{gr}}) {
		if err != nil {
			r.t.Fatal(err)
		}
		all[e.Namespace+"/"+e.Name] = e.Object
	}
	return all
}

// eventually polls until f says yes; its text is shown when it never does.
func eventually(t testing.TB, limit time.Duration, what string, f func() (bool, string)) {
	t.Helper()
	for end := time.Now().Add(limit); ; time.Sleep(20 * time.Millisecond) {
		ok, text := f()
		if ok {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v: %s", what, limit, text)
		}
	}
}

// exactList is what the API server says the resource was at a revision. It returns false when
// the server no longer knows.
func exactList(t testing.TB, config *rest.Config, info journal.ResourceInfo, rv uint64) (map[string][]byte, bool) {
	t.Helper()
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	url := fmt.Sprintf("%s/apis/%s/%s/%s?resourceVersion=%d&resourceVersionMatch=Exact", config.Host, info.Group, info.Version, info.Resource, rv)
	if info.Group == "" {
		url = fmt.Sprintf("%s/api/%s/%s?resourceVersion=%d&resourceVersionMatch=Exact", config.Host, info.Version, info.Resource, rv)
	}
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusGone {
		return nil, false
	}
	if resp.StatusCode != http.StatusOK {
		b, err := io.ReadAll(resp.Body)
		t.Fatalf("GET %s: %s %s %v", url, resp.Status, b, err)
	}
	var list struct {
		APIVersion string            `json:"apiVersion"`
		Items      []json.RawMessage `json:"items"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&list); err != nil {
		t.Fatal(err)
	}
	all := map[string][]byte{}
	for _, item := range list.Items {
		var o metav1.PartialObjectMetadata
		if err := json.Unmarshal(item, &o); err != nil {
			t.Fatal(err)
		}
		if o.APIVersion == "" { // built-in kinds leave it out inside lists
			item = append(fmt.Appendf(nil, `{"kind":%q,"apiVersion":%q,`, info.Kind, list.APIVersion), bytes.TrimPrefix(item, []byte("{"))...)
		}
		all[o.Namespace+"/"+o.Name] = item
	}
	return all, true
}

// object builds an object.
func object(apiVersion, kind, ns, name string, fields map[string]any) *unstructured.Unstructured {
	u := &unstructured.Unstructured{Object: map[string]any{"apiVersion": apiVersion, "kind": kind}}
	maps.Copy(u.Object, fields)
	u.SetNamespace(ns)
	u.SetName(name)
	return u
}

func createNamespace(t testing.TB, d dynamic.Interface, name string) {
	t.Helper()
	if _, err := d.Resource(namespaces).Create(t.Context(), object("v1", "Namespace", "", name, nil), metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
}

// createBuckets makes the CRD of a custom resource and waits until it is served.
func createBuckets(t testing.TB, d dynamic.Interface) {
	t.Helper()
	crd := object("apiextensions.k8s.io/v1", "CustomResourceDefinition", "", "buckets.example.com", map[string]any{"spec": map[string]any{
		"group": "example.com", "scope": "Namespaced",
		"names": map[string]any{"plural": "buckets", "singular": "bucket", "kind": "Bucket", "shortNames": []any{"bk"}},
		"versions": []any{map[string]any{"name": "v1", "served": true, "storage": true, "schema": map[string]any{
			"openAPIV3Schema": map[string]any{"type": "object", "x-kubernetes-preserve-unknown-fields": true},
		}}},
	}})
	if _, err := d.Resource(crds).Create(t.Context(), crd, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "CRD served", func() (bool, string) {
		_, err := d.Resource(buckets).List(t.Context(), metav1.ListOptions{Limit: 1})
		return err == nil, fmt.Sprint(err)
	})
}

func cutOf(rv uint64) journal.Cut { return journal.Cut{Revision: journal.Revision{Epoch: 1, RV: rv}} }
