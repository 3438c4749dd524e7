// Package e2e runs the program on a real node: kubelet, containerd, CSI driver. `make e2e` starts it.
package e2e

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/deploy/localnode"
	"github.com/tidemark-backup/tidemark/deploy/localserver"
	"github.com/tidemark-backup/tidemark/volumes"
)

// moverImage holds the program under test.
const moverImage = "docker.io/library/tidemark:test"

// shared is what all tests of a run use: starting a node takes longer than most of them.
var shared struct {
	once sync.Once
	node *localnode.Node
	bin  string // the program
	err  error
}

func TestMain(m *testing.M) {
	flag.Parse()
	if why := localnode.Missing(); why != "" && os.Getenv("TIDEMARK_E2E") != "" && !testing.Verbose() {
		fmt.Fprintln(os.Stderr, "the tests on a real node are skipped: "+why)
	}
	code := m.Run()
	if shared.node != nil {
		shared.node.Stop()
	}
	if shared.bin != "" {
		_ = os.RemoveAll(filepath.Dir(shared.bin))
	}
	os.Exit(code)
}

// world is a node, and a daemon that backs its cluster up.
type world struct {
	*testing.T
	*localnode.Node
	bin, dir string
	daemon   *localserver.Process
	config   string
	// server is the kubeconfig of the daemon; empty: the cluster's.
	server string
}

// newWorld gives a test the node. more is added to the daemon's configuration.
func newWorld(t *testing.T, more string) *world {
	t.Helper()
	w := newNode(t)
	w.config = "image: " + moverImage + "\n  pod: {spec: {containers: [{name: mover, imagePullPolicy: Never}]}}\n" + more
	w.startDaemon()
	return w
}

// newNode gives a test the node, without a daemon.
func newNode(t *testing.T) *world {
	t.Helper()
	if os.Getenv("TIDEMARK_E2E") == "" {
		t.Skip("a real node is started by `make e2e`")
	}
	if why := localnode.Missing(); why != "" {
		t.Skip(why)
	}
	shared.once.Do(func() { shared.err = startShared() })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	w := &world{T: t, Node: shared.node, bin: shared.bin, dir: t.TempDir()}
	t.Cleanup(func() {
		w.stopDaemon(syscall.SIGTERM)
		if t.Failed() {
			w.showLogs()
		}
	})
	return w
}

func startShared() error {
	dir, err := os.MkdirTemp("", "tidemark-e2e-")
	if err != nil {
		return err
	}
	shared.bin = filepath.Join(dir, "tidemark")
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", shared.bin, "github.com/tidemark-backup/tidemark/cmd/tidemark")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the program: %w\n%s", err, out)
	}
	images := []localnode.Image{{Ref: moverImage, Files: map[string]string{"/usr/local/bin/tidemark": shared.bin}}}
	shared.node, err = localnode.Start(context.Background(), localnode.Options{Number: 91, SnapshotDelay: time.Second, Output: os.Stderr, Images: images})
	return err
}

func (w *world) ok(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *world) showLogs() {
	for _, log := range []string{filepath.Join(w.dir, "daemon.log")} {
		b, _ := os.ReadFile(log)
		w.Logf("%s ends:\n%s", log, b[max(0, len(b)-6000):])
	}
}

// startDaemon starts the daemon and waits until it has everything recorded.
func (w *world) startDaemon() {
	w.Helper()
	config := filepath.Join(w.dir, "config.yaml")
	text := "logLevel: warn\ndataDir: " + filepath.Join(w.dir, "data") + "\nkubeconfig: " + cmp.Or(w.server, w.Kubeconfig()) + "\nvolumes:\n  " + w.config
	w.ok(os.WriteFile(config, []byte(text), 0o600))
	var err error
	w.daemon, err = localserver.Start(w.bin, []string{"run", "--config", config}, nil, filepath.Join(w.dir, "daemon.log"))
	w.ok(err)
	w.ok(w.daemon.Await(w.Context(), time.Minute, func(context.Context) error {
		_, _, err := w.try("status", "--wait-ready=0")
		if _, out, e := w.try("get", "ns", "default", "--at", "now"); e != nil {
			return fmt.Errorf("%w: %s", e, out)
		}
		_ = err
		return nil
	}))
}

func (w *world) stopDaemon(sig syscall.Signal) {
	w.daemon.Stop(sig, 20*time.Second)
	w.daemon = nil
}

// try runs a command as a user would.
func (w *world) try(args ...string) (stdout, stderr string, err error) {
	limited, cancel := context.WithTimeout(context.WithoutCancel(w.Context()), 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(limited, w.bin, args...)
	var out, trouble bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &trouble
	cmd.Env = append(os.Environ(), "KUBECONFIG="+w.Kubeconfig(), "TIDEMARK_DATA_DIR="+filepath.Join(w.dir, "data"), "HOME="+w.dir)
	err = cmd.Run()
	return out.String(), trouble.String(), err
}

// run runs a command that must succeed.
func (w *world) run(args ...string) string {
	w.Helper()
	out, trouble, err := w.try(args...)
	if err != nil {
		w.Fatalf("tidemark %s: %v\n%s%s", strings.Join(args, " "), err, out, trouble)
	}
	return out
}

// back backs claims up and gives the backups.
func (w *world) back(args ...string) []*volumes.Backup {
	w.Helper()
	var m volumes.Made
	w.ok(json.Unmarshal([]byte(w.run(append([]string{"volumes", "backup", "-o", "json"}, args...)...)), &m))
	return m.Backups
}

func (w *world) await(what string, met func() bool) {
	w.Helper()
	w.awaitFor(2*time.Minute, what, met)
}

// awaitLong waits for what schedules do, whose smallest step is a minute.
func (w *world) awaitLong(what string, met func() bool) {
	w.Helper()
	w.awaitFor(5*time.Minute, what, met)
}

func (w *world) awaitFor(limit time.Duration, what string, met func() bool) {
	w.Helper()
	for end := time.Now().Add(limit); !met(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			w.Fatalf("waited %s for %s", limit, what)
		}
	}
}

// moment is a time at which all that happened before is in the journal.
func (w *world) moment() string {
	w.Helper()
	text := rand.Text()
	maps := w.Client.CoreV1().ConfigMaps("default")
	made := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "moment"}, Data: map[string]string{"is": text}}
	_, err := maps.Update(w.Context(), made, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		_, err = maps.Create(w.Context(), made, metav1.CreateOptions{})
	}
	w.ok(err)
	w.seen(text)
	return time.Now().UTC().Format(time.RFC3339Nano)
}

// archived waits until all that happened before is in the archive.
func (w *world) archived() {
	w.Helper()
	w.moment()
	m, err := w.Client.CoreV1().ConfigMaps("default").Get(w.Context(), "moment", metav1.GetOptions{})
	w.ok(err)
	w.seen(m.Data["is"], "--archive", "dir://"+filepath.Join(w.dir, "data", "archive"), "--identity", filepath.Join(w.dir, "data", "archive.key"))
}

func (w *world) seen(moment string, args ...string) {
	w.Helper()
	w.await("the daemon to have seen a change", func() bool {
		out, _, _ := w.try(append([]string{"get", "cm", "moment", "-n", "default", "--at", "now", "-o", "yaml"}, args...)...)
		return strings.Contains(out, moment)
	})
}

// sent waits until movers have sent some more, under the limit that slow sets.
func (w *world) sent() {
	w.Helper()
	before := w.stored()
	w.await("movers to send", func() bool { return w.stored() > before+1<<20 })
}

// stored is how much the store holds, in bytes.
func (w *world) stored() (sum int64) {
	_ = filepath.WalkDir(filepath.Join(w.dir, "data", "archive", "volumes"), func(_ string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			if i, err := e.Info(); err == nil {
				sum += i.Size()
			}
		}
		return nil
	})
	return sum
}

// logged waits until the daemon's log has a text.
func (w *world) logged(text string) {
	w.Helper()
	w.await("the log to tell of it", func() bool {
		b, err := os.ReadFile(filepath.Join(w.dir, "daemon.log"))
		return err == nil && bytes.Contains(b, []byte(text))
	})
}

// namespace makes a namespace that goes with the test.
func (w *world) namespace(name string) {
	w.Helper()
	_, err := w.Client.CoreV1().Namespaces().Create(w.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	w.ok(err)
	w.await("the default ServiceAccount", func() bool {
		_, err := w.Client.CoreV1().ServiceAccounts(name).Get(w.Context(), "default", metav1.GetOptions{})
		return err == nil
	})
	w.Cleanup(func() {
		_ = w.Client.CoreV1().Namespaces().Delete(context.Background(), name, metav1.DeleteOptions{})
	})
}

func (w *world) deleteNamespace(name string) {
	w.Helper()
	w.ok(w.Client.CoreV1().Namespaces().Delete(w.Context(), name, metav1.DeleteOptions{}))
	w.await("namespace "+name+" to be gone", func() bool {
		_, err := w.Client.CoreV1().Namespaces().Get(w.Context(), name, metav1.GetOptions{})
		return err != nil
	})
}

// claim makes a claim.
func (w *world) claim(namespace, name, class string, change ...func(*corev1.PersistentVolumeClaim)) {
	w.Helper()
	c := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PersistentVolumeClaimSpec{
		AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, StorageClassName: &class,
		Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("16Mi")}},
	}}
	for _, f := range change {
		f(c)
	}
	_, err := w.Client.CoreV1().PersistentVolumeClaims(namespace).Create(w.Context(), c, metav1.CreateOptions{})
	w.ok(err)
}

// shell makes a Pod that has the claims mounted at /data/CLAIM, runs a script once, and lives on.
func (w *world) shell(namespace, name, script string, claims ...string) {
	w.Helper()
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name}}, Spec: w.podSpec(script, claims...)}
	_, err := w.Client.CoreV1().Pods(namespace).Create(w.Context(), p, metav1.CreateOptions{})
	w.ok(err)
	w.await("Pod "+name, func() bool { return w.ready(namespace, "app="+name) })
}

func (w *world) podSpec(script string, claims ...string) corev1.PodSpec {
	grace := int64(0)
	spec := corev1.PodSpec{
		TerminationGracePeriodSeconds: &grace,
		Containers: []corev1.Container{{
			Name: "c", Image: localnode.Busybox, ImagePullPolicy: corev1.PullNever, Command: []string{"sh", "-c", script + "\ntouch /tmp/ready; sleep 1000000"},
			ReadinessProbe: &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"cat", "/tmp/ready"}}}},
		}},
	}
	for _, c := range claims {
		spec.Volumes = append(spec.Volumes, corev1.Volume{Name: c, VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: c}}})
		spec.Containers[0].VolumeMounts = append(spec.Containers[0].VolumeMounts, corev1.VolumeMount{Name: c, MountPath: "/data/" + c})
	}
	return spec
}

// ready reports whether there are Pods with the labels, and all are ready.
func (w *world) ready(namespace, labels string) bool {
	l, err := w.Client.CoreV1().Pods(namespace).List(w.Context(), metav1.ListOptions{LabelSelector: labels})
	if err != nil || len(l.Items) == 0 {
		return false
	}
	for _, p := range l.Items {
		is := false
		for _, c := range p.Status.Conditions {
			is = is || c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
		}
		if !is {
			return false
		}
	}
	return true
}

// path is where this machine sees the volume of a claim.
func (w *world) path(namespace, claim string) string {
	w.Helper()
	c, err := w.Client.CoreV1().PersistentVolumeClaims(namespace).Get(w.Context(), claim, metav1.GetOptions{})
	w.ok(err)
	v, err := w.Client.CoreV1().PersistentVolumes().Get(w.Context(), c.Spec.VolumeName, metav1.GetOptions{})
	w.ok(err)
	return w.Volume(v.Spec.CSI.VolumeHandle)
}

var (
	snapshotObjects = schema.GroupVersionResource{Group: "snapshot.storage.k8s.io", Version: "v1", Resource: "volumesnapshots"}
	groupObjects    = schema.GroupVersionResource{Group: "groupsnapshot.storage.k8s.io", Version: "v1", Resource: "volumegroupsnapshots"}
	groupContents   = schema.GroupVersionResource{Group: "groupsnapshot.storage.k8s.io", Version: "v1", Resource: "volumegroupsnapshotcontents"}
	contentObjects  = schema.GroupVersionResource{Group: "snapshot.storage.k8s.io", Version: "v1", Resource: "volumesnapshotcontents"}
)

// The classes of snapshots, and of snapshots of groups.
var (
	snapshotClasses = schema.GroupVersionResource{Group: "snapshot.storage.k8s.io", Version: "v1", Resource: "volumesnapshotclasses"}
	groupClasses    = schema.GroupVersionResource{Group: "groupsnapshot.storage.k8s.io", Version: "v1", Resource: "volumegroupsnapshotclasses"}
)

// without takes all objects of a kind away until the end of the test, or until the function that it returns is called.
func (w *world) without(kind schema.GroupVersionResource) (back func()) {
	w.Helper()
	objects := w.Dynamic.Resource(kind)
	all, err := objects.List(w.Context(), metav1.ListOptions{})
	w.ok(err)
	for _, o := range all.Items {
		w.ok(objects.Delete(w.Context(), o.GetName(), metav1.DeleteOptions{}))
	}
	var once sync.Once
	back = func() {
		once.Do(func() {
			for _, o := range all.Items {
				o.SetResourceVersion("")
				o.SetUID("")
				_, err := objects.Create(context.Background(), &o, metav1.CreateOptions{})
				w.ok(err)
			}
		})
	}
	w.Cleanup(back)
	return back
}

// nothingLeft fails when anything that backups make is still there.
func (w *world) nothingLeft() {
	w.Helper()
	var left []string
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		left = nil
		pods, err := w.Client.CoreV1().Pods("").List(w.Context(), metav1.ListOptions{LabelSelector: "app.kubernetes.io/component=mover"})
		w.ok(err)
		for _, p := range pods.Items {
			left = append(left, "pod "+p.Name)
		}
		secrets, err := w.Client.CoreV1().Secrets("").List(w.Context(), metav1.ListOptions{LabelSelector: "app.kubernetes.io/component=mover"})
		w.ok(err)
		for _, s := range secrets.Items {
			left = append(left, "secret "+s.Name)
		}
		claims, err := w.Client.CoreV1().PersistentVolumeClaims("").List(w.Context(), metav1.ListOptions{LabelSelector: "tidemark.dev/volume"})
		w.ok(err)
		for _, c := range claims.Items {
			left = append(left, "claim "+c.Name)
		}
		pvs, err := w.Client.CoreV1().PersistentVolumes().List(w.Context(), metav1.ListOptions{})
		w.ok(err)
		for _, v := range pvs.Items {
			if v.Status.Phase != corev1.VolumeBound {
				left = append(left, "volume "+v.Name+" of claim "+v.Spec.ClaimRef.Name)
			}
		}
		for _, r := range []schema.GroupVersionResource{snapshotObjects, contentObjects, groupObjects, groupContents} {
			l, err := w.Dynamic.Resource(r).List(w.Context(), metav1.ListOptions{})
			w.ok(err)
			for _, u := range l.Items {
				left = append(left, r.Resource+" "+u.GetName())
			}
		}
		if len(left) == 0 {
			return
		}
	}
	w.Errorf("left over: %s", strings.Join(left, ", "))
}

// snapshotsAre fails unless the driver has these snapshots, and no others.
func (w *world) snapshotsAre(want ...string) {
	w.Helper()
	var have []string
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		have = w.Snapshots()
		if len(have) == len(want) {
			break
		}
	}
	if len(have) != len(want) {
		w.Errorf("the driver has %d snapshots: %v; want %v", len(have), have, want)
	}
	for _, h := range want {
		if !strings.Contains(strings.Join(have, " "), h) {
			w.Errorf("the driver has %v, and not %s", have, h)
		}
	}
}

// forget deletes all backups.
func (w *world) forget(all ...*volumes.Backup) {
	w.Helper()
	for _, b := range all {
		w.run("volumes", "delete", "--yes", b.Metadata.Name)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}
