package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tidemark-backup/tidemark/deploy/localnode"
	"github.com/tidemark-backup/tidemark/volumes"
	"github.com/tidemark-backup/tidemark/volumes/kube"
)

// postgresRun keeps the data of PostgreSQL in its claim, and runs it.
const postgresRun = `
mkdir -p /var/run/postgresql; chown postgres /var/run/postgresql /data
[ -e /data/db/PG_VERSION ] || su postgres -c "/usr/lib/postgresql/15/bin/initdb -A trust -D /data/db"
exec su postgres -c "/usr/lib/postgresql/15/bin/postgres -D /data/db"`

// postgres makes a StatefulSet of PostgreSQL.
func (w *world) postgres(namespace string) {
	w.Helper()
	if _, err := postgresImage(); err != nil {
		w.Skipf("there is no image of PostgreSQL, which mmdebstrap makes of Debian's packages: %v", err)
	}
	w.namespace(namespace)
	replicas, late, labels := int32(1), localnode.Late, map[string]string{"app": "pg"}
	spec := w.podSpec("")
	c := &spec.Containers[0]
	c.Image, c.Command = postgresRef, []string{"sh", "-c", postgresRun}
	c.VolumeMounts = []corev1.VolumeMount{{Name: "data", MountPath: "/data"}}
	c.ReadinessProbe.Exec.Command = []string{"pg_isready", "-U", "postgres"}
	_, err := w.Client.AppsV1().StatefulSets(namespace).Create(w.Context(), &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Name: "pg"}, Spec: appsv1.StatefulSetSpec{
		Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: spec},
		VolumeClaimTemplates: []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: "data"}, Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, StorageClassName: &late,
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
		}}},
	}}, metav1.CreateOptions{})
	w.ok(err)
	w.await("PostgreSQL", func() bool { return w.ready(namespace, "app=pg") })
}

// exec runs a script in the container of a Pod.
func (w *world) exec(namespace, pod, script string) string {
	w.Helper()
	c, err := kube.New(w.Cluster.Config())
	w.ok(err)
	done, err := c.Exec(context.WithoutCancel(w.Context()), namespace, pod, "c", []string{"sh", "-c", script})
	if err != nil || done.Exit != 0 {
		w.Fatalf("%s: %v, exit status %d\n%s", script, err, done.Exit, done.Output)
	}
	return strings.TrimSpace(done.Output)
}

func (w *world) sql(namespace, text string) string {
	w.Helper()
	return w.exec(namespace, "pg-0", `psql -U postgres -At -v ON_ERROR_STOP=1 -c "`+text+`"`)
}

// TestPostgreSQL backs a database up while rows are written to it, deletes its namespace, and restores it in two ways: all rows that were committed
// before the backup are there, as they were.
func TestPostgreSQL(t *testing.T) {
	w := newWorld(t, "")
	w.postgres("pg")
	w.sql("pg", "create table t (id serial primary key, body text)")
	w.sql("pg", "insert into t (body) select md5(random()::text) from generate_series(1, 20000)")
	w.exec("pg", "pg-0", `cat > /tmp/load.sh <<'X'
while :; do psql -q -U postgres -c "insert into t (body) select md5(random()::text) from generate_series(1, 50)"; done
X
nohup sh /tmp/load.sh >/dev/null 2>&1 &`)
	w.await("rows to come", func() bool { n, _ := strconv.Atoi(w.sql("pg", "select count(*) from t")); return n > 20100 })
	committed := w.sql("pg", "select max(id) from t")
	const sum = "select md5(string_agg(id || body, ',' order by id)) from t where id <= "
	before := w.sql("pg", sum+committed)

	all := append(w.back("-n", "pg"), w.back("-n", "pg", "--action", "snapshot-then-kopia")...)
	for _, b := range all {
		if b.Status.Consistency != volumes.Application || len(b.Status.Hooks) != 1 || b.Status.Hooks[0].State != volumes.HookDone || b.Status.Hooks[0].Set != "postgresql" {
			t.Errorf("%s: %s, %+v", b.Spec.Action, b.Status.Consistency, b.Status.Hooks)
		}
	}
	if more, _ := strconv.Atoi(w.sql("pg", "select max(id) from t")); strconv.Itoa(more) == committed {
		t.Error("nothing was written meanwhile")
	}
	at := w.moment()
	w.deleteNamespace("pg")
	for _, b := range all {
		w.run("restore", "-n", "pg", "--at", at, "--volumes", b.Metadata.Name, "--yes")
		w.await("PostgreSQL to be back", func() bool { return w.ready("pg", "app=pg") })
		if after := w.sql("pg", sum+committed); after != before {
			t.Errorf("restored from %s, the rows differ", b.Spec.Action)
		}
		n, _ := strconv.Atoi(w.sql("pg", "select count(*) from t"))
		t.Logf("%s: %d rows", b.Spec.Action, n)
		if had, _ := strconv.Atoi(committed); n < had {
			t.Errorf("restored from %s, there are %d rows, and %d were committed before", b.Spec.Action, n, had)
		}
		w.deleteNamespace("pg")
	}
	w.nothingLeft()
	w.forget(all...)
	w.snapshotsAre()
}

// TestHooks runs Velero's annotations: the post hook is run after a failed backup, and by the next daemon after one that was killed; a pre hook that fails
// fails its volumes.
func TestHooks(t *testing.T) {
	w := newWorld(t, slow)
	w.big("hooks")
	annotate := func(pre, post string) {
		p, err := w.Client.CoreV1().Pods("hooks").Get(w.Context(), "app", metav1.GetOptions{})
		w.ok(err)
		p.Annotations = map[string]string{
			"pre.hook.backup.velero.io/command": `["sh", "-c", "` + pre + `"]`, "post.hook.backup.velero.io/command": `["sh", "-c", "` + post + `"]`,
		}
		_, err = w.Client.CoreV1().Pods("hooks").Update(w.Context(), p, metav1.UpdateOptions{})
		w.ok(err)
	}
	calls := func() string { return w.exec("hooks", "app", "cat /tmp/calls 2>/dev/null; true") }
	annotate("echo pre >> /tmp/calls; echo spoken", "echo post >> /tmp/calls")
	b := w.back("-n", "hooks")[0]
	if b.Status.Consistency != volumes.Application || calls() != "pre\npost" || b.Status.Hooks[0].Output != "spoken\n" {
		t.Errorf("%+v; calls %q", b.Status, calls())
	}
	w.forget(b)

	annotate("echo pre >> /tmp/calls; exit 7", "echo post >> /tmp/calls")
	if _, trouble, err := w.try("volumes", "backup", "-n", "hooks"); err == nil {
		t.Errorf("a failed hook fails nothing: %s", trouble)
	}
	if out := w.run("volumes", "describe", w.newest()); !strings.Contains(out, "exit status 7") || calls() != "pre\npost\npre\npost" {
		t.Errorf("%s; calls %q", out, calls())
	}

	annotate("echo pre >> /tmp/calls", "echo paid >> /tmp/calls")
	end := w.begin("-n", "hooks", "--action", "kopia")
	w.mover("hooks")
	w.daemon.Stop(9, time.Second)
	w.daemon = nil
	_, _ = end()
	if strings.HasSuffix(calls(), "paid") {
		t.Fatal("the post hook was run by a dead daemon")
	}
	w.startDaemon()
	w.await("the post hook that is owed", func() bool { return strings.HasSuffix(calls(), "pre\npaid") })
	w.nothingLeft()
	w.snapshotsAre()
}

// TestGroup takes two claims with the same label at one instant, and restores them.
func TestGroup(t *testing.T) {
	w := newWorld(t, "")
	w.namespace("group")
	labelled := func(c *corev1.PersistentVolumeClaim) { c.Labels = map[string]string{"velero.io/volume-group": "both"} }
	w.claim("group", "left", localnode.StorageClass, labelled)
	w.claim("group", "right", localnode.StorageClass, labelled)
	// The same number is written to one and then to the other, as fast as it goes.
	w.shell("group", "app", "(i=0; while :; do i=$((i+1)); echo $i > /data/left/n; echo $i > /data/right/n; done) &\nsleep 1", "left", "right")
	all := w.back("-n", "group")
	for _, b := range all {
		if b.Status.Consistency != volumes.CrashGroup || b.Status.Snapshot == nil || b.Status.Snapshot.Group == "" || b.Status.Snapshot.Group != all[0].Status.Snapshot.Group || len(b.Status.Notes) > 0 {
			t.Errorf("%+v", b.Status)
		}
	}
	w.nothingLeft()
	moved := w.back("-n", "group", "--action", "snapshot-then-kopia")
	w.nothingLeft()
	for name, b := range map[string]*volumes.Backup{"from-snapshots": all[0], "from-files": moved[0]} {
		w.run("restore", "pvc", "-n", "group", "--at", "now", "--volumes", b.Spec.Run, "--namespace-mappings", "group:"+name, "--yes")
		w.Cleanup(func() { _ = w.Client.CoreV1().Namespaces().Delete(context.Background(), name, metav1.DeleteOptions{}) })
		n := map[string]int{}
		for _, claim := range []string{"left", "right"} {
			w.await("claim "+claim, func() bool {
				c, err := w.Client.CoreV1().PersistentVolumeClaims(name).Get(w.Context(), claim, metav1.GetOptions{})
				return err == nil && c.Status.Phase == corev1.ClaimBound
			})
			n[claim], _ = strconv.Atoi(strings.TrimSpace(read(t, filepath.Join(w.path(name, claim), "n"))))
		}
		// A file that was opened and not written yet is empty; else they are of one instant.
		if l, r := n["left"], n["right"]; l != 0 && r != 0 && l != r && l != r+1 {
			t.Errorf("%s: left has %d, right %d", name, l, r)
		}
	}
	w.forget(append(all, moved...)...)
	w.snapshotsAre()
}

// TestBlockVolume backs a raw device up as a stream, and restores it.
func TestBlockVolume(t *testing.T) {
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skip("this machine has no loop devices")
	}
	w := newWorld(t, "")
	w.namespace("block")
	raw := corev1.PersistentVolumeBlock
	w.claim("block", "raw", localnode.StorageClass, func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeMode = &raw })
	spec := w.podSpec("dd if=/dev/urandom of=/dev/raw bs=1M count=4; sync")
	spec.Containers[0].VolumeDevices = []corev1.VolumeDevice{{Name: "raw", DevicePath: "/dev/raw"}}
	spec.Volumes = []corev1.Volume{{Name: "raw", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "raw"}}}}
	_, err := w.Client.CoreV1().Pods("block").Create(w.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "app", Labels: map[string]string{"app": "app"}}, Spec: spec}, metav1.CreateOptions{})
	w.ok(err)
	w.await("the Pod", func() bool { return w.ready("block", "app=app") })
	b := w.back("-n", "block", "--action", "snapshot-then-kopia")[0]
	if b.Status.Phase != volumes.Done || b.Status.Content.Bytes != 16<<20 || len(b.Status.Notes) == 0 || b.Status.Base != nil {
		t.Errorf("%+v, %+v", b.Status, b.Status.Content)
	}
	w.run("restore", "pvc", "-n", "block", "--at", "now", "--namespace-mappings", "block:block-copy", "--yes")
	w.Cleanup(func() {
		_ = w.Client.CoreV1().Namespaces().Delete(context.Background(), "block-copy", metav1.DeleteOptions{})
	})
	if read(t, w.path("block", "raw")) != read(t, w.path("block-copy", "raw")) {
		t.Error("the devices differ")
	}
	w.nothingLeft()
}
