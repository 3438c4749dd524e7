package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/tidemark-backup/tidemark/deploy/localserver"
)

// veleroTuned are the flags with which Velero was fastest.
var veleroTuned = []string{
	"--item-block-worker-count=8", "--client-qps=1000", "--client-burst=1000", "--client-page-size=5000", "--disable-informer-cache", "--log-level=error",
}

// veleroMetricsPort is where Velero's controllers serve metrics. It cannot be changed.
const veleroMetricsPort = "8080"

var (
	veleroBackups   = veleroResource("backups")
	veleroRestores  = veleroResource("restores")
	veleroLocations = veleroResource("backupstoragelocations")
	deployments     = schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "deployments"}
	definitions     = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
	secrets         = schema.GroupVersionResource{Version: "v1", Resource: "secrets"}
)

func veleroResource(name string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: "velero.io", Version: "v1", Resource: name}
}

// velero is one server's turn.
type velero struct {
	*lab
	tool        string
	flags       []string
	dir, bucket string
	kubeconfig  string
	process     *localserver.Process
	backups     int
	restores    int
}

// installVelero makes what a Velero server wants to find in the cluster: its definitions, its namespace, and its
// own Deployment, which its restores read.
func (l *lab) installVelero(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, l.velero, "install", "--crds-only", "--dry-run", "-o", "yaml").Output()
	if err != nil {
		return fmt.Errorf("velero install: %w", err)
	}
	var crds struct{ Items []unstructured.Unstructured }
	if err := yaml.Unmarshal(out, &crds); err != nil {
		return fmt.Errorf("velero install: %w", err)
	}
	if len(crds.Items) == 0 {
		return errors.New("velero install prints no definitions")
	}
	for _, o := range crds.Items {
		if err := l.put(ctx, definitions, &o); err != nil {
			return err
		}
	}
	if err := l.put(ctx, namespaces, &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": "velero"},
	}}); err != nil {
		return err
	}
	label := map[string]any{"component": "velero"}
	return l.put(ctx, deployments, &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "apps/v1", "kind": "Deployment", "metadata": map[string]any{"name": "velero", "namespace": "velero"},
		"spec": map[string]any{"replicas": int64(0), "selector": map[string]any{"matchLabels": label}, "template": map[string]any{
			"metadata": map[string]any{"labels": label},
			"spec":     map[string]any{"containers": []any{map[string]any{"name": "velero", "image": "velero/velero:v1.18.3"}}},
		}},
	}})
}

func (l *lab) put(ctx context.Context, r schema.GroupVersionResource, o *unstructured.Unstructured) error {
	o.SetCreationTimestamp(metav1.Time{})
	unstructured.RemoveNestedField(o.Object, "metadata", "creationTimestamp")
	_, err := l.client.Resource(r).Namespace(o.GetNamespace()).Apply(ctx, o.GetName(), o, metav1.ApplyOptions{FieldManager: applier, Force: true})
	if err != nil {
		return fmt.Errorf("%s %s: %w", o.GetKind(), o.GetName(), err)
	}
	return nil
}

// newVelero prepares a turn: a bucket, and the storage location that names it.
func (l *lab) newVelero(ctx context.Context, tool string, flags []string) (*velero, error) {
	v := &velero{lab: l, tool: tool, flags: flags}
	var err error
	if v.dir, v.bucket, err = l.turn(ctx, tool); err != nil {
		return nil, err
	}
	if v.kubeconfig, err = l.kubeconfig("velero"); err != nil {
		return nil, err
	}
	for _, r := range []schema.GroupVersionResource{veleroBackups, veleroRestores} { // of the turn before, which are in another bucket
		if err := l.client.Resource(r).Namespace("velero").DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
			return nil, err
		}
	}
	access, secret := l.s3.Credentials()
	err = l.put(ctx, secrets, &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Secret", "metadata": map[string]any{"name": "cloud-credentials", "namespace": "velero"},
		"stringData": map[string]any{"cloud": "[default]\naws_access_key_id=" + access + "\naws_secret_access_key=" + secret + "\n"},
	}})
	if err != nil {
		return nil, err
	}
	if err := client404(l.client.Resource(veleroLocations).Namespace("velero").Delete(ctx, "default", metav1.DeleteOptions{})); err != nil {
		return nil, err
	}
	return v, l.put(ctx, veleroLocations, &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "velero.io/v1", "kind": "BackupStorageLocation", "metadata": map[string]any{"name": "default", "namespace": "velero"},
		"spec": map[string]any{
			"provider": "aws", "default": true,
			"objectStorage": map[string]any{"bucket": v.bucket, "prefix": "bench"},
			"credential":    map[string]any{"name": "cloud-credentials", "key": "cloud"},
			"config":        map[string]any{"region": "us-east-1", "s3ForcePathStyle": "true", "s3Url": l.s3.Endpoint(), "checksumAlgorithm": ""},
		},
	}})
}

// start starts a server and waits until it can use the bucket.
func (v *velero) start(ctx context.Context) error {
	free, err := net.Listen("tcp", ":"+veleroMetricsPort)
	if err != nil {
		return fmt.Errorf("velero cannot do without port %s: %w", veleroMetricsPort, err)
	}
	if err := free.Close(); err != nil {
		return err
	}
	plugins, tmp := filepath.Join(v.dir, "plugins"), filepath.Join(v.dir, "tmp")
	for _, dir := range []string{plugins, tmp} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	// It takes every program in the folder for a plug-in, so that it is given one with nothing else.
	if err := copyProgram(v.veleroPlugin, filepath.Join(plugins, "velero-plugin-for-aws")); err != nil {
		return err
	}
	// The command has to come first: plug-ins are started with what follows it.
	args := append([]string{
		"server", "--kubeconfig", v.kubeconfig, "--namespace", "velero", "--plugin-dir", plugins,
		"--metrics-address", "127.0.0.1:0", "--profiler-address", "",
	}, v.flags...)
	v.process, err = localserver.Start(v.velero, args, append(os.Environ(), "TMPDIR="+tmp), filepath.Join(v.dir, "velero.log"))
	if err != nil {
		return err
	}
	began := metav1.NewTime(time.Now().Add(-time.Second).Truncate(time.Second))
	return v.await(ctx, "velero's storage location", func() (bool, error) {
		if _, err := tree(v.process.Pid()); err != nil {
			return false, fmt.Errorf("%w; see %s", err, filepath.Join(v.dir, "velero.log"))
		}
		o, err := v.client.Resource(veleroLocations).Namespace("velero").Get(ctx, "default", metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		phase, _, _ := unstructured.NestedString(o.Object, "status", "phase")
		text, _, _ := unstructured.NestedString(o.Object, "status", "lastValidationTime")
		validated, _ := time.Parse(time.RFC3339, text)
		return phase == "Available" && !validated.Before(began.Time), nil
	})
}

func copyProgram(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

func (v *velero) stop() {
	v.process.Stop(syscall.SIGTERM, 10*time.Second)
	v.process = nil
}

func (v *velero) subject() subject {
	return subject{tool: v.tool, user: "velero", pid: v.process.Pid(), bucket: v.bucket}
}

// do creates a backup or a restore and waits for its end by a watch. The time is from the request to the end.
func (v *velero) do(ctx context.Context, r schema.GroupVersionResource, kind, name string, spec map[string]any) (*unstructured.Unstructured, error) {
	client := v.client.Resource(r).Namespace("velero")
	o := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "velero.io/v1", "kind": kind, "metadata": map[string]any{"name": name, "namespace": "velero"}, "spec": spec,
	}}
	made, err := client.Create(ctx, o, metav1.CreateOptions{})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, awaitLimit)
	defer cancel()
	revision := made.GetResourceVersion()
	for {
		w, err := client.Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name, ResourceVersion: revision})
		if err != nil {
			return nil, err
		}
		for e := range w.ResultChan() {
			o, ok := e.Object.(*unstructured.Unstructured)
			if !ok {
				w.Stop()
				return nil, apierrors.FromObject(e.Object)
			}
			revision = o.GetResourceVersion()
			switch phase, _, _ := unstructured.NestedString(o.Object, "status", "phase"); phase {
			case "Completed":
				w.Stop()
				return o, nil
			case "FailedValidation", "Failed", "PartiallyFailed":
				w.Stop()
				return nil, fmt.Errorf("%s ended as %s: %v", name, phase, o.Object["status"])
			}
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("%s does not end: %w", name, ctx.Err())
		}
	}
}

// backup backs up the whole cluster.
func (v *velero) backup(ctx context.Context) (map[string]float64, error) {
	v.backups++
	o, err := v.do(ctx, veleroBackups, "Backup", v.backupName(), map[string]any{
		"includedNamespaces": []any{"*"}, "storageLocation": "default", "snapshotVolumes": false, "ttl": "720h0m0s",
	})
	if err != nil {
		return nil, err
	}
	items, _, _ := unstructured.NestedInt64(o.Object, "status", "progress", "itemsBackedUp")
	return map[string]float64{"items": float64(items)}, nil
}

func (v *velero) backupName() string { return fmt.Sprintf("%s-%d", v.bucket, v.backups) }

// restore restores a namespace from the newest backup, under the name to.
func (v *velero) restore(ctx context.Context, from, to string) (map[string]float64, error) {
	v.restores++
	spec := map[string]any{"backupName": v.backupName(), "includedNamespaces": []any{from}}
	if from != to {
		spec["namespaceMapping"] = map[string]any{from: to}
	}
	_, err := v.do(ctx, veleroRestores, "Restore", fmt.Sprintf("%s-%d", v.bucket, v.restores), spec)
	return map[string]float64{}, err
}
