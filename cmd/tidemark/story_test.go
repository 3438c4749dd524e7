package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/journal"
)

// canary is in every Secret of the story; it must show up only where it was asked for.
const canary = "CANARY-do-not-show"

// story is the history that the scripts look at. One minute passes before each change.
type story struct {
	j   *journal.Journal
	now time.Time
	rv  uint64
	dir string // exact objects are written here, as NAME.RV.json
	err error
}

var (
	namespaces  = journal.ResourceInfo{Version: "v1", Resource: "namespaces", Singular: "namespace", Kind: "Namespace", ShortNames: []string{"ns"}}
	configMaps  = journal.ResourceInfo{Version: "v1", Resource: "configmaps", Singular: "configmap", Kind: "ConfigMap", ShortNames: []string{"cm"}, Namespaced: true}
	secrets     = journal.ResourceInfo{Version: "v1", Resource: "secrets", Singular: "secret", Kind: "Secret", Namespaced: true}
	pods        = journal.ResourceInfo{Version: "v1", Resource: "pods", Singular: "pod", Kind: "Pod", ShortNames: []string{"po"}, Categories: []string{"all"}, Namespaced: true}
	services    = journal.ResourceInfo{Version: "v1", Resource: "services", Singular: "service", Kind: "Service", ShortNames: []string{"svc"}, Categories: []string{"all"}, Namespaced: true}
	deployments = journal.ResourceInfo{Group: "apps", Version: "v1", Resource: "deployments", Singular: "deployment", Kind: "Deployment", ShortNames: []string{"deploy"}, Categories: []string{"all"}, Namespaced: true}
	widgets     = journal.ResourceInfo{Group: "example.com", Version: "v1", Resource: "widgets", Singular: "widget", Kind: "Widget", ShortNames: []string{"wd"}, Namespaced: true}
)

// tell writes the story into a new journal. It begins 2025-01-02T10:00:00Z at revision 100.
func tell(dataDir, objectDir string) error {
	s := &story{now: time.Date(2025, 1, 2, 10, 0, 0, 0, time.UTC), rv: 100, dir: objectDir}
	var err error
	if s.j, err = journal.Open(dataDir, journal.Options{Clock: func() time.Time { return s.now }}); err != nil {
		return err
	}
	if err := errors.Join(os.MkdirAll(objectDir, 0o755), s.j.Bind(context.Background(), "the-cluster")); err != nil {
		return err
	}
	shop := `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"shop","uid":"ns-1","resourceVersion":"90","creationTimestamp":"2025-01-02T09:00:00Z"},"status":{"phase":"Active"}}`
	empty := `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"empty","uid":"ns-2","resourceVersion":"91"}}`
	for _, r := range []journal.ResourceInfo{namespaces, configMaps, secrets, pods, services, deployments, widgets} {
		if r.Resource == "namespaces" {
			s.list(r, "", s.event(journal.Added, r, "", "shop", shop), s.event(journal.Added, r, "", "empty", empty))
			continue
		}
		s.list(r, "")
	}
	s.keep(s.j.SetBegan(context.Background()))

	// 101, 10:01: odd spacing and escapes, which must come out as they went in.
	s.change(journal.Added, configMaps, "settings", `{ "apiVersion":"v1","kind":"ConfigMap", "metadata":{"name":"settings","namespace":"shop","uid":"cm-1","resourceVersion":"101","creationTimestamp":"2025-01-02T10:01:00Z","labels":{"app":"web"},"managedFields":[{"manager":"alice","operation":"Update","apiVersion":"v1","time":"2025-01-02T10:01:00Z","fieldsType":"FieldsV1","fieldsV1":{"f:data":{"f:color":{},"f:mode":{}}}}]},"data":{"color":"gr\u00fcn <&> ü","mode":"1.50"}}`)
	s.change(journal.Added, secrets, "pw", secret("102", "one"))
	s.change(journal.Added, deployments, "web", deployment("103", 2, "web:1", "alice"))
	s.change(journal.Modified, configMaps, "settings", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"settings","namespace":"shop","uid":"cm-1","resourceVersion":"104","creationTimestamp":"2025-01-02T10:01:00Z","labels":{"app":"web"},"managedFields":[{"manager":"alice","operation":"Update","apiVersion":"v1","time":"2025-01-02T10:01:00Z","fieldsType":"FieldsV1","fieldsV1":{"f:data":{"f:mode":{}}}},{"manager":"bob","operation":"Update","apiVersion":"v1","time":"2025-01-02T10:04:00Z","fieldsType":"FieldsV1","fieldsV1":{"f:data":{"f:color":{}}}}]},"data":{"color":"red","mode":"1.50"}}`)
	s.change(journal.Modified, secrets, "pw", secret("105", "two"))
	s.change(journal.Modified, deployments, "web", deployment("106", 5, "web:2", "bob"))
	s.change(journal.Added, configMaps, "gone", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"gone","namespace":"shop","uid":"cm-2","resourceVersion":"107","creationTimestamp":"2025-01-02T10:07:00Z"},"data":{"k":"v"}}`)
	s.change(journal.Deleted, configMaps, "gone", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"gone","namespace":"shop","uid":"cm-2","resourceVersion":"108","creationTimestamp":"2025-01-02T10:07:00Z"},"data":{"k":"v"}}`)
	s.change(journal.Added, pods, "web-1", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"web-1","namespace":"shop","uid":"po-1","resourceVersion":"109","creationTimestamp":"2025-01-02T10:09:00Z","labels":{"app":"web"}},"spec":{"nodeName":"n1","containers":[{"name":"a","image":"web:2"},{"name":"b","image":"log:1"}]},"status":{"phase":"Running","podIP":"10.1.2.3","containerStatuses":[{"name":"a","ready":true,"restartCount":3,"state":{"running":{}}},{"name":"b","ready":false,"restartCount":1,"state":{"waiting":{"reason":"CrashLoopBackOff"}}}]}}`)
	s.change(journal.Added, services, "web", `{"apiVersion":"v1","kind":"Service","metadata":{"name":"web","namespace":"shop","uid":"svc-1","resourceVersion":"110","creationTimestamp":"2025-01-02T10:10:00Z"},"spec":{"type":"NodePort","clusterIP":"10.0.0.7","ports":[{"port":80,"nodePort":30080,"protocol":"TCP"},{"port":53,"protocol":"UDP"}],"selector":{"app":"web\u001b[31m"}}}`)

	// 111 at 10:11, then a gap until 113 at 10:13 in which widget "w" changed unseen.
	s.change(journal.Added, widgets, "w", widget("111", `a\u001b[31m`))
	s.change(journal.Added, configMaps, "late", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"late","namespace":"shop","uid":"cm-3","resourceVersion":"112","creationTimestamp":"2025-01-02T10:12:00Z"}}`)
	s.step()
	s.list(widgets, "410 Gone: the watch was too old", s.event(journal.Modified, widgets, "shop", "w", widget("113", "b")))
	ctx := context.Background()
	s.keep(s.j.SetLeftOut(ctx, []journal.LeftOut{{Resource: schema.GroupResource{Group: "coordination.k8s.io", Resource: "leases"}, Why: "excluded"}}))
	s.keep(s.j.SetMark(ctx, "restore/shop-1", journal.Cut{Revision: journal.Revision{Epoch: 1, RV: 103}, Time: time.Date(2025, 1, 2, 10, 3, 0, 0, time.UTC)}))
	// The schedule "often" ran last when the story began: its next run is long due.
	s.keep(s.j.SetNote(ctx, "schedule/often", []byte("2025-01-02T10:00:00Z")))
	return errors.Join(s.err, s.j.Close())
}

func secret(rv, value string) string {
	return fmt.Sprintf(`{"apiVersion":"v1","kind":"Secret","metadata":{"name":"pw","namespace":"shop","uid":"s-1","resourceVersion":%q,"creationTimestamp":"2025-01-02T10:02:00Z"},"type":"Opaque","data":{"password":%q}}`,
		rv, base64.StdEncoding.EncodeToString([]byte(canary+value)))
}

func deployment(rv string, replicas int, image, manager string) string {
	return fmt.Sprintf(`{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"web","namespace":"shop","uid":"d-1","resourceVersion":%q,"generation":%d,"creationTimestamp":"2025-01-02T10:03:00Z","labels":{"app":"web"},"managedFields":[{"manager":%q,"operation":"Update","apiVersion":"apps/v1","time":"2025-01-02T10:03:00Z","fieldsType":"FieldsV1","fieldsV1":{"f:spec":{"f:replicas":{},"f:template":{"f:spec":{"f:containers":{"k:{\"name\":\"app\"}":{"f:image":{}}}}}}}}]},"spec":{"replicas":%d,"selector":{"matchLabels":{"app":"web"}},"template":{"spec":{"containers":[{"name":"app","image":%q}]}}},"status":{"replicas":%d,"readyReplicas":1,"updatedReplicas":%d,"availableReplicas":1}}`,
		rv, replicas, manager, replicas, image, replicas, replicas)
}

func widget(rv, size string) string {
	return fmt.Sprintf(`{"apiVersion":"example.com/v1","kind":"Widget","metadata":{"name":"w","namespace":"shop","uid":"w-1","resourceVersion":%q,"creationTimestamp":"2025-01-02T10:11:00Z"},"spec":{"size":"%s"}}`, rv, size)
}

func (s *story) keep(err error) { s.err = errors.Join(s.err, err) }

func (s *story) step() {
	s.now = s.now.Add(time.Minute)
	s.rv++
}

func (s *story) event(op journal.Op, r journal.ResourceInfo, ns, name, object string) journal.Event {
	return journal.Event{
		Resource: schema.GroupResource{Group: r.Group, Resource: r.Resource}, Namespace: ns, Name: name, UID: "uid-" + name, Op: op,
		Revision: journal.Revision{RV: s.rv}, Object: []byte(object),
	}
}

// change records one change at the next revision, and writes the object beside it.
func (s *story) change(op journal.Op, r journal.ResourceInfo, name, object string) {
	s.step()
	ctx := context.Background()
	s.keep(s.j.Append(ctx, s.event(op, r, "shop", name, object)))
	s.keep(s.j.Flush(ctx))
	s.keep(os.WriteFile(filepath.Join(s.dir, fmt.Sprintf("%s.%d.json", name, s.rv)), []byte(object+"\n"), 0o644))
}

// list compares a list, taken now, with the journal.
func (s *story) list(r journal.ResourceInfo, cause string, listed ...journal.Event) {
	ctx := context.Background()
	c, err := s.j.Compare(ctx, journal.Recording{ResourceInfo: r}, s.rv, cause)
	if err != nil {
		s.keep(err)
		return
	}
	for _, e := range listed {
		s.keep(c.Add(ctx, e))
	}
	_, err = c.Commit(ctx, s.rv)
	s.keep(err)
}
