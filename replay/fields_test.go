package replay

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestFieldsThatAreNotThere(t *testing.T) {
	o := fromYAML(t, `{spec: {replicas: 2, paused: null, containers: [{name: web, image: "web:1"}]}}`)
	for path, want := range map[string]bool{
		".spec.replicas": true, ".spec.replica": false, ".spec.paused": true, ".spec.replicas.x": false, ".spec.containers[name=web].image": true,
		".spec.containers[name=nginxx].image": false, ".spec.containers[name=web]": true, ".spec.replicas[0]": false,
	} {
		if got := hasField(map[string]any(o), splitPath(path)); got != want {
			t.Errorf("%s is there: %v, want %v", path, got, want)
		}
	}
}

func TestCopyField(t *testing.T) {
	const was = `{spec: {replicas: 2, containers: [{name: web, image: "web:1", ports: [{containerPort: 80, protocol: TCP, name: old}]}, {name: log, image: "log:1"}]}, metadata: {labels: {a.b/c: x}}}`
	const live = `{spec: {replicas: 5, paused: true, containers: [{name: new}, {name: web, image: "web:2", ports: [{containerPort: 80, protocol: TCP, name: new}]}]}, metadata: {labels: {a.b/c: y, z: "1"}}}`
	for _, c := range []struct{ path, want, failed string }{
		{"spec.replicas", `{spec: {replicas: 2, paused: true, containers: [{name: new}, {name: web, image: "web:2", ports: [{containerPort: 80, protocol: TCP, name: new}]}]}, metadata: {labels: {a.b/c: y, z: "1"}}}`, ""},
		{".spec.paused", `{spec: {replicas: 5, containers: [{name: new}, {name: web, image: "web:2", ports: [{containerPort: 80, protocol: TCP, name: new}]}]}, metadata: {labels: {a.b/c: y, z: "1"}}}`, ""},
		{".spec.containers[name=web].image", `{spec: {replicas: 5, paused: true, containers: [{name: new}, {name: web, image: "web:1", ports: [{containerPort: 80, protocol: TCP, name: new}]}]}, metadata: {labels: {a.b/c: y, z: "1"}}}`, ""},
		{".spec.containers[name=web].ports[containerPort=80,protocol=TCP].name", `{spec: {replicas: 5, paused: true, containers: [{name: new}, {name: web, image: "web:2", ports: [{containerPort: 80, protocol: TCP, name: old}]}]}, metadata: {labels: {a.b/c: y, z: "1"}}}`, ""},
		{".spec.containers[name=log]", `{spec: {replicas: 5, paused: true, containers: [{name: new}, {name: web, image: "web:2", ports: [{containerPort: 80, protocol: TCP, name: new}]}, {name: log, image: "log:1"}]}, metadata: {labels: {a.b/c: y, z: "1"}}}`, ""},
		{".spec.containers[name=new]", `{spec: {replicas: 5, paused: true, containers: [{name: web, image: "web:2", ports: [{containerPort: 80, protocol: TCP, name: new}]}]}, metadata: {labels: {a.b/c: y, z: "1"}}}`, ""},
		{`.metadata.labels["a.b/c"]`, `{spec: {replicas: 5, paused: true, containers: [{name: new}, {name: web, image: "web:2", ports: [{containerPort: 80, protocol: TCP, name: new}]}]}, metadata: {labels: {a.b/c: x, z: "1"}}}`, ""},
		{".spec.containers[name=log].image", "", "the live object has no [name=log]: restore that"},
		{".spec.containers[name=new].image", "", "there was no [name=new] then"},
	} {
		path, err := ParseField(c.path)
		ok(t, err)
		o := fromYAML(t, live)
		err = copyField(o, fromYAML(t, was), splitPath(path))
		if c.failed != "" {
			if err == nil || err.Error() != c.failed {
				t.Errorf("%s: %v, want %s", c.path, err, c.failed)
			}
			continue
		}
		ok(t, err)
		if d := cmp.Diff(fromYAML(t, c.want), o); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.path, d)
		}
	}
	for _, path := range []string{"", "status.phase", "kind", "metadata", "metadata.name", "metadata.uid", "[0]"} {
		if _, err := ParseField(path); err == nil {
			t.Errorf("%q is taken for a field", path)
		}
	}
}
