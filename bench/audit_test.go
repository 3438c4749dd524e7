package bench

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"github.com/tidemark-backup/tidemark/deploy/localcluster"
	"github.com/tidemark-backup/tidemark/deploy/sample"
	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/journal/capture"
	"github.com/tidemark-backup/tidemark/replay"
	"github.com/tidemark-backup/tidemark/replay/audit"
)

// audited is a daemon that audits every resource every two seconds; a proof may be six seconds old.
type audited struct {
	*daemon
	t   *testing.T
	dir string
}

func startAudited(t *testing.T, kubeconfig, dir string) *audited {
	t.Helper()
	config := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(config, []byte("audit: {every: 2s, limit: 6s, rate: 1000000, page: 7}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return &audited{startDaemon(t, kubeconfig, dir, "--config", config), t, dir}
}

// auditedStatus is the part of the status that the tests look at.
type auditedStatus struct {
	Catalog replay.Catalog
	Audit   *audit.Report
}

func (d *audited) status() (*auditedStatus, error) {
	out, err := tidemark(d.t, d.dir, "status", "-o", "json")
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	st := &auditedStatus{}
	return st, json.Unmarshal(out, st)
}

// await polls until the audit is as wanted.
func (d *audited) await(what string, wanted func(*audit.Report) bool) *audit.Report {
	d.t.Helper()
	var st *auditedStatus
	eventually(d.t, 90*time.Second, what, func() (bool, string) {
		var err error
		if st, err = d.status(); err != nil || st.Audit == nil {
			return false, fmt.Sprint(err)
		}
		b, _ := json.Marshal(st.Audit)
		return wanted(st.Audit), string(b)
	})
	return st.Audit
}

func isState(s audit.State) func(*audit.Report) bool {
	return func(r *audit.Report) bool { return r.State == s }
}

// provenAfter reports whether everything was proven after a moment.
func provenAfter(t time.Time) func(*audit.Report) bool {
	return func(r *audit.Report) bool {
		return r.State == audit.Equal && !slices.ContainsFunc(r.Resources, func(r audit.Record) bool {
			return r.NotAudited == "" && !r.Proof.Time.After(t)
		})
	}
}

// version is the journal's key of one version of an object, as docs/design.md says.
func versionKey(gvr schema.GroupVersionResource, ns, name string, rv uint64) []byte {
	key := fmt.Appendf(nil, "v%s\x00%s\x00%s\x00", ns, gvr.GroupResource(), name)
	key = binary.BigEndian.AppendUint32(key, ^uint32(1))
	return binary.BigEndian.AppendUint64(key, ^rv)
}

// tamper changes versions in a journal that no daemon holds; nil removes one.
func tamper(t *testing.T, dir string, change func(get func(key []byte) []byte, set func(key, value []byte))) {
	t.Helper()
	db, err := pebble.Open(filepath.Join(dir, "journal"), &pebble.Options{FormatMajorVersion: pebble.FormatNewest, Logger: quietly{}})
	if err != nil {
		t.Fatal(err)
	}
	get := func(key []byte) []byte {
		v, closer, err := db.Get(key)
		if err != nil {
			t.Fatalf("%q: %v", key, err)
		}
		defer closer.Close()
		return bytes.Clone(v)
	}
	set := func(key, value []byte) {
		err := db.Delete(key, pebble.Sync)
		if value != nil {
			err = db.Set(key, value, pebble.Sync)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	change(get, set)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

// quietly is a store's log that nobody reads.
type quietly struct{}

func (quietly) Infof(string, ...any)      {}
func (quietly) Errorf(string, ...any)     {}
func (quietly) Fatalf(f string, a ...any) { panic(fmt.Sprintf(f, a...)) }

// write makes a ConfigMap or Secret, or gives it another value, and returns its revision.
func write(t *testing.T, d dynamic.Interface, gvr schema.GroupVersionResource, ns, name, value string) uint64 {
	t.Helper()
	u := object("v1", kinds[gvr.Resource][1], ns, name, map[string]any{"data": map[string]any{"v": value}})
	u, err := d.Resource(gvr).Namespace(ns).Apply(t.Context(), name, u, metav1.ApplyOptions{FieldManager: "test", Force: true})
	if err != nil {
		t.Fatal(err)
	}
	var rv uint64
	if _, err := fmt.Sscan(u.GetResourceVersion(), &rv); err != nil {
		t.Fatal(err)
	}
	return rv
}

// TestTamperedHistoryTurnsRed runs the real daemon against a real API server under churn: the audit proves everything,
// custom resources and Secrets included, and finds nothing. Then the journal is changed behind its back in
// every way; the first audit of each resource names each object, and the status is not good.
// What becomes true again is proven again.
func TestTamperedHistoryTurnsRed(t *testing.T) {
	for _, newer := range []bool{false, true} {
		t.Run(fmt.Sprintf("newer=%v", newer), func(t *testing.T) { tamperedHistoryTurnsRed(t, newer) })
	}
}

func tamperedHistoryTurnsRed(t *testing.T, newer bool) {
	cluster := startCluster(t, localcluster.Options{Newer: newer})
	c := fastClient(t, cluster.Config())
	dir := t.TempDir()
	w := &traffic{client: c, namespaces: []string{"red", "red-2", "green"}, resources: []schema.GroupVersionResource{configMaps, secrets, buckets}, objects: 12}
	for _, ns := range append(w.namespaces, "kept") {
		createNamespace(t, c, ns)
	}
	createBuckets(t, c)
	d := startAudited(t, cluster.Kubeconfig(), dir)
	ctx, stopTraffic := context.WithCancel(t.Context())
	var writers sync.WaitGroup
	writers.Go(func() { w.run(ctx, t, 60, 1<<30) })
	for range 3 {
		d.await("everything proven under churn", provenAfter(time.Now()))
	}
	r := d.await("everything proven under churn", provenAfter(time.Now()))
	stopTraffic()
	writers.Wait()
	for _, rec := range r.Resources {
		if rec.Found > 0 || rec.Proof.Objects == 0 && slices.Contains([]string{"secrets", "configmaps", "buckets.example.com"}, rec.Resource) {
			t.Errorf("a clean journal: %+v", rec)
		}
	}
	t.Logf("%d resources, %d objects compared, %d requests", len(r.Resources), r.Objects, r.Requests)
	write(t, c, configMaps, "kept", "lost", "old")
	lost, gone := write(t, c, configMaps, "kept", "lost", "new"), write(t, c, configMaps, "kept", "gone", "x")
	changed, sealed := write(t, c, configMaps, "kept", "changed", "canary"), write(t, c, secrets, "kept", "sealed", "Y2FuYXJ5")
	disguised := write(t, c, configMaps, "kept", "disguised", "canary")
	d.await("everything proven", provenAfter(time.Now()))
	if err := os.WriteFile(filepath.Join(dir, "archive.key.saved"), nil, 0o600); err != nil { // else there is a warning about it
		t.Fatal(err)
	}
	if out, err := tidemark(t, dir, "status", "--check"); err != nil || !bytes.Contains(out, []byte("resources proven equal to the cluster")) {
		t.Fatalf("%v\n%s", err, out)
	}
	d.terminate()

	tamper(t, dir, func(get func([]byte) []byte, set func(key, value []byte)) {
		set(versionKey(configMaps, "kept", "lost", lost), nil)
		set(versionKey(configMaps, "kept", "gone", gone), nil)
		key := versionKey(configMaps, "kept", "changed", changed)
		set(key, bytes.Replace(get(key), []byte("canary"), []byte("Canary"), 1))
		set(versionKey(configMaps, "kept", "extra", changed), get(key))
		key = versionKey(configMaps, "kept", "disguised", disguised) // as if it were recorded in another API version
		set(key, bytes.Replace(bytes.Replace(get(key), []byte("canary"), []byte("Canary"), 1), []byte(`"apiVersion":"v1"`), []byte(`"apiVersion":"v0"`), 1))
		key = versionKey(secrets, "kept", "sealed", sealed)
		value := get(key)
		value[len(value)-1] ^= 1
		set(key, value)
	})
	restarted := time.Now()
	d = startAudited(t, cluster.Kubeconfig(), dir)
	r = d.await("the audit finds what was changed", func(r *audit.Report) bool {
		return r.State == audit.Different && provenOrDifferent(r, "configmaps", "secrets")
	})
	got := map[string]audit.Kind{}
	for _, rec := range r.Resources {
		if rec.Different > 0 && rec.Proof.Time.After(restarted) {
			t.Errorf("%s: an audit proved what was tampered with, and a later one found it", rec.Resource)
		}
		for _, diff := range rec.Differences {
			got[rec.Resource+" "+diff.Namespace+"/"+diff.Name] = diff.Kind
		}
	}
	for what, kind := range map[string]audit.Kind{
		"configmaps kept/lost": audit.Differs, "configmaps kept/gone": audit.Missing, "configmaps kept/changed": audit.Differs,
		"configmaps kept/extra": audit.Extra, "configmaps kept/disguised": audit.Differs, "secrets kept/sealed": audit.Unreadable,
	} {
		if got[what] != kind {
			t.Errorf("%s is %q, want %q", what, got[what], kind)
		}
		delete(got, what)
	}
	if len(got) > 0 {
		t.Errorf("told besides: %v", got)
	}
	out, err := tidemark(t, dir, "status", "--check")
	if err == nil {
		t.Error("status --check is content")
	}
	mustSay(t, string(out), "TROUBLE: history differs from the cluster: configmaps: ", "kept/gone (not in history, rv:", "kept/sealed (cannot be read", "HISTORY DIFFERS")
	if strings.Contains(string(out)+d.out.String(), "anary") {
		t.Error("content of an object was told")
	}

	for _, name := range []string{"lost", "gone", "changed", "extra", "disguised"} {
		write(t, c, configMaps, "kept", name, "healed")
	}
	write(t, c, secrets, "kept", "sealed", "eA==")
	r = d.await("proven again", provenAfter(time.Now()))
	for _, rec := range r.Resources {
		if want := map[string]uint64{"configmaps": 5, "secrets": 1}[rec.Resource]; rec.Found != want {
			t.Errorf("%s: %d were found in all, want %d", rec.Resource, rec.Found, want)
		}
	}
	d.terminate()
	if n := strings.Count(d.out.String(), "history differs from the cluster: "); n != 2 { // it is logged when there is more than before
		t.Errorf("not all was found by the first audit of each resource, or more later: told %d times", n)
	}
}

// provenOrDifferent reports whether each of the resources has differences.
func provenOrDifferent(r *audit.Report, resources ...string) bool {
	for _, name := range resources {
		if !slices.ContainsFunc(r.Resources, func(r audit.Record) bool { return r.Resource == name && r.Different > 0 }) {
			return false
		}
	}
	return true
}

// TestNoAnswerIsNoProof stops the API server: that is no difference, and it is not good either once the proofs have
// grown old, also for a daemon that starts then. When the server is back, and after a gap, all is proven again.
func TestNoAnswerIsNoProof(t *testing.T) {
	cluster := startCluster(t, localcluster.Options{NoControllers: true})
	c := fastClient(t, cluster.Config())
	dir := t.TempDir()
	createNamespace(t, c, "kept")
	write(t, c, configMaps, "kept", "a", "x")
	d := startAudited(t, cluster.Kubeconfig(), dir)
	d.await("everything proven", isState(audit.Equal))
	if err := cluster.StopAPIServer(); err != nil {
		t.Fatal(err)
	}
	never := func(r *audit.Report) bool {
		if r.State == audit.Different {
			t.Errorf("no answer was taken for a difference: %+v", r)
		}
		return true
	}
	r := d.await("the proofs grow old", func(r *audit.Report) bool { return never(r) && r.State == audit.Unproven })
	if age := r.Resources[0].Age(time.Now()); age < 6*time.Second {
		t.Errorf("unproven after %v", age)
	}
	eventually(t, 30*time.Second, "trouble", func() (bool, string) {
		out, err := tidemark(t, dir, "status", "--check")
		return err != nil && bytes.Contains(out, []byte("TROUBLE: nothing has proven for over 6s that history equals the cluster")), string(out)
	})
	d.terminate()
	d = startAudited(t, cluster.Kubeconfig(), dir)
	for range 5 {
		d.await("unproven", func(r *audit.Report) bool { return never(r) && r.State == audit.Unproven && len(r.Resources) > 0 })
	}
	d.terminate()

	if err := cluster.StartAPIServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		write(t, c, configMaps, "kept", fmt.Sprint("b", i), "y")
	}
	if err := cluster.CompactEtcd(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if err := cluster.RestartAPIServer(t.Context()); err != nil { // its watch cache still knew
		t.Fatal(err)
	}
	back := time.Now()
	d = startAudited(t, cluster.Kubeconfig(), dir)
	d.await("proven after a gap", func(r *audit.Report) bool { return never(r) && provenAfter(back)(r) })
	st, err := d.status()
	if err != nil {
		t.Fatal(err)
	}
	if i := slices.IndexFunc(st.Catalog.Resources, func(l journal.Ledger) bool { return l.Resource == "configmaps" }); len(st.Catalog.Resources[i].Gaps) == 0 {
		t.Error("there was no gap: the test proves nothing")
	}
	d.terminate()
}

// TestAnUpgradeOfTheServerIsNoDifference puts the objects of an application, and those that every cluster has, under the API
// server of the next minor version: history is proven all the same, and what was tampered with before is found.
func TestAnUpgradeOfTheServerIsNoDifference(t *testing.T) {
	cluster := startCluster(t, localcluster.Options{})
	c := fastClient(t, cluster.Config())
	dir, saved := t.TempDir(), filepath.Join(t.TempDir(), "etcd")
	if err := sample.Apply(t.Context(), cluster.Config()); err != nil {
		t.Fatal(err)
	}
	createNamespace(t, c, "kept")
	old := write(t, c, configMaps, "kept", "old", "canary")
	d := startAudited(t, cluster.Kubeconfig(), dir)
	d.await("everything proven", isState(audit.Equal))
	d.terminate()
	if err := cluster.SaveEtcd(t.Context(), saved); err != nil {
		t.Fatal(err)
	}
	if err := cluster.Stop(); err != nil {
		t.Fatal(err)
	}
	cluster = startCluster(t, localcluster.Options{Newer: true, NoControllers: true})
	if err := cluster.RestoreEtcd(t.Context(), saved); err != nil {
		t.Fatal(err)
	}
	upgraded := time.Now()
	d = startAudited(t, cluster.Kubeconfig(), dir)
	r := d.await("everything proven after the upgrade", func(r *audit.Report) bool { return r.State == audit.Different || provenAfter(upgraded)(r) })
	for _, rec := range r.Resources {
		if rec.Found > 0 {
			t.Errorf("after the upgrade: %+v", rec)
		}
		if rec.Proof != nil && rec.Proof.Reshaped > 0 {
			t.Logf("%s: %d of %d in another form", rec.Resource, rec.Proof.Reshaped, rec.Proof.Objects)
		}
	}
	d.terminate()
	sets := schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "statefulsets"} // the newer server gives them in another form
	set, err := fastClient(t, cluster.Config()).Resource(sets).Namespace(sample.Namespace).Get(t.Context(), "db", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	rv, err := strconv.ParseUint(set.GetResourceVersion(), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	tamper(t, dir, func(get func([]byte) []byte, set func(key, value []byte)) {
		key := versionKey(configMaps, "kept", "old", old)
		set(key, bytes.Replace(get(key), []byte("canary"), []byte("Canary"), 1))
		key = versionKey(sets, sample.Namespace, "db", rv)
		set(key, bytes.Replace(get(key), []byte(`"image":"`), []byte(`"image":"evil.example/`), 1))
	})
	d = startAudited(t, cluster.Kubeconfig(), dir)
	r = d.await("what was changed is found", func(r *audit.Report) bool { return provenOrDifferent(r, "configmaps", "statefulsets.apps") })
	for _, rec := range r.Resources {
		if rec.Different > 1 {
			t.Errorf("told besides: %+v", rec.Differences)
		}
	}
	d.terminate()
}

// TestAuditCostsFewRequests counts them: one per page, and one per round for the server's version. Filters of
// the recording hold for the audit too.
func TestAuditCostsFewRequests(t *testing.T) {
	cluster := startCluster(t, localcluster.Options{NoControllers: true})
	c := fastClient(t, cluster.Config())
	for _, ns := range []string{"in", "out"} {
		createNamespace(t, c, ns)
		for i := range 25 {
			write(t, c, configMaps, ns, fmt.Sprint("o", i), "x")
		}
	}
	config, asked := counted(cluster.Config())
	r := record(t, config, t.TempDir(), func(o *capture.Options) { o.Namespaces = []string{"in"} })
	a := audit.New(audit.Options{Journal: r.journal, Cluster: r.capture, Page: 10, Rate: 1 << 20})
	r.await(configMaps, r.journal.Newest().RV)
	asked.mu.Lock()
	asked.lists = nil
	asked.mu.Unlock()
	if err := a.Audit(t.Context(), configMaps.GroupResource()); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Round(t.Context()); err != nil {
		t.Fatal(err)
	}
	rep := a.Report()
	if rep.State != audit.Equal {
		t.Errorf("%+v", rep)
	}
	resources, pages, objects := len(rep.Resources), 0, 0
	for _, rec := range rep.Resources {
		objects += rec.Proof.Objects
		if rec.Resource == "configmaps" && rec.Proof.Objects != 25 {
			t.Errorf("%d ConfigMaps of one namespace were compared", rec.Proof.Objects)
		}
	}
	asked.mu.Lock()
	defer asked.mu.Unlock()
	pages = len(asked.lists)
	if limit := resources + (objects+25+10)/10; pages > limit || uint64(pages) != rep.Requests {
		t.Errorf("%d list requests (%d counted) for %d resources and %d objects, want at most %d", pages, rep.Requests, resources, objects, limit)
	}
	for _, u := range asked.lists {
		if !strings.Contains(u, "limit=10") {
			t.Errorf("an unbounded list: %s", u)
		}
	}
}
