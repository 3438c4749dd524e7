package hooks

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func pod(image string, labels, annotations map[string]string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db-0", Labels: labels, Annotations: annotations},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "sidecar", Image: "registry.example/proxy:1"}, {Name: "db", Image: image}}},
	}
}

func TestVelerosAnnotations(t *testing.T) {
	p, err := (&Rules{}).For(pod("postgres:15", nil, map[string]string{
		"pre.hook.backup.velero.io/command": `["/bin/sh", "-c", "fsfreeze --freeze /data"]`, "pre.hook.backup.velero.io/container": "db",
		"pre.hook.backup.velero.io/on-error": "Continue", "pre.hook.backup.velero.io/timeout": "2m",
		"post.hook.backup.velero.io/command": "/unfreeze",
	}))
	if err != nil {
		t.Fatal(err)
	}
	pre, post := p.Pre[0], p.Post[0]
	if pre.Container != "db" || len(pre.Command) != 3 || pre.OnError != Continue || time.Duration(pre.Timeout) != 2*time.Minute {
		t.Errorf("pre %+v", pre)
	}
	if post.Container != "sidecar" || post.Command[0] != "/unfreeze" || post.OnError != Fail || time.Duration(post.Timeout) != DefaultTimeout {
		t.Errorf("post %+v", post)
	}
	for key, value := range map[string]string{"command": `["a", 1]`, "timeout": "soon", "on-error": "maybe"} {
		a := map[string]string{"pre.hook.backup.velero.io/command": "/x"}
		a["pre.hook.backup.velero.io/"+key] = value
		if _, err := (&Rules{}).For(pod("x", nil, a)); err == nil || !strings.Contains(err.Error(), "shop/db-0") {
			t.Errorf("%s %q: %v", key, value, err)
		}
	}
}

func TestRules(t *testing.T) {
	r, err := Parse([]byte(`
resources:
- name: freeze
  includedNamespaces: ['*']
  excludedNamespaces: [other]
  labelSelector: {matchLabels: {app: db}}
  pre:
  - exec: {container: db, command: [/freeze], onError: Continue, timeout: 10s}
  - exec: {command: [/sync]}
  post:
  - exec: {command: [/thaw]}
`))
	if err != nil {
		t.Fatal(err)
	}
	p, err := r.For(pod("x", map[string]string{"app": "db"}, nil))
	if err != nil || len(p.Pre) != 2 || len(p.Post) != 1 || p.Pre[1].Container != "sidecar" {
		t.Errorf("%+v, %v", p, err)
	}
	if p, err := r.For(pod("x", map[string]string{"app": "web"}, nil)); err != nil || !p.Empty() {
		t.Errorf("for a Pod with other labels: %+v, %v", p, err)
	}
	for _, bad := range []string{"resources: [{name: x, pre: [{exec: {}}]}]", "resources: [{name: x, pre: [{http: {}}]}]", "nothing: 1"} {
		if _, err := Parse([]byte(bad)); err == nil {
			t.Errorf("%s is taken", bad)
		}
	}
}

func TestReadySets(t *testing.T) {
	var r Rules
	for image, set := range map[string]string{
		"postgres": "postgresql", "docker.io/bitnami/postgresql:16.2@sha256:0": "postgresql", "mariadb:11": "mysql", "mongo:7": "mongodb",
		"registry.example:5000/redis:7": "redis", "nginx": "", "postgres-exporter:1": "",
	} {
		p, err := r.For(pod(image, nil, nil))
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if !p.Empty() {
			got = p.Pre[0].Set
			if p.Pre[0].Container != "db" || p.Pre[0].OnError != Continue {
				t.Errorf("%s: %+v", image, p.Pre[0])
			}
		}
		if got != set {
			t.Errorf("%s has the set %q, want %q", image, got, set)
		}
	}
	if p, err := r.For(pod("registry.example/own-db", map[string]string{SetLabel: "postgresql"}, nil)); err != nil || p.Empty() {
		t.Errorf("chosen by label: %+v, %v", p, err)
	}
	if p, err := r.For(pod("postgres", map[string]string{SetLabel: "none"}, nil)); err != nil || !p.Empty() {
		t.Errorf("with none: %+v, %v", p, err)
	}
	if _, err := r.For(pod("postgres", map[string]string{SetLabel: "oracle"}, nil)); err == nil {
		t.Error("a set that is not there is taken")
	}
	own := Rules{Sets: []Set{{Name: "postgresql", Images: []string{"postgres"}, Pre: []Hook{{Command: []string{"/own"}}}}}}
	if p, err := own.For(pod("postgres", nil, nil)); err != nil || p.Pre[0].Command[0] != "/own" {
		t.Errorf("overridden: %+v, %v", p, err)
	}
}
