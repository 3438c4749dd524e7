package e2e

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tidemark-backup/tidemark/deploy/localnode"
	"github.com/tidemark-backup/tidemark/volumes"
	"github.com/tidemark-backup/tidemark/volumes/kube"
)

// database is one kind, and how rows that are numbered are written to it and read. All texts are scripts for its container.
type database struct {
	image    string // its name says which hooks are run
	packages string // of Debian
	set      string // of hooks
	post     bool   // the set has a post hook
	run      string // keeps its data in /data/db
	ready    string
	fill     string // makes 20,000 rows
	load     string // makes some more
	highest  string // the number of the newest row
	count    string
	// sum is a checksum of all rows up to the number $1.
	sum string
	// whole writes nothing when all is as it was after the hooks, and not only as after a loss of power.
	whole string
}

var databases = map[string]database{
	"postgresql": {
		image: "postgres", packages: "postgresql-15", set: "postgresql",
		run: `mkdir -p /var/run/postgresql; chown postgres /var/run/postgresql /data
[ -e /data/db/PG_VERSION ] || su postgres -c "/usr/lib/postgresql/15/bin/initdb -A trust -D /data/db"
exec su postgres -c "/usr/lib/postgresql/15/bin/postgres -D /data/db"`,
		ready: `pg_isready -U postgres`,
		fill: `psql -U postgres -v ON_ERROR_STOP=1 -c "create table t (id serial primary key, body text)" &&
psql -U postgres -c "insert into t (body) select md5(random()::text) from generate_series(1, 20000)"`,
		load:    `psql -q -U postgres -c "insert into t (body) select md5(random()::text) from generate_series(1, 50)"`,
		highest: `psql -U postgres -At -c "select max(id) from t"`,
		count:   `psql -U postgres -At -c "select count(*) from t"`,
		sum:     `psql -U postgres -At -c "select md5(string_agg(id || body, ',' order by id)) from t where id <= $1"`,
		whole:   `true`, // a checkpoint only makes the start short
	},
	// Half of its rows are in a table of MyISAM, which is not whole in a snapshot unless it was locked: CHECK TABLE tells.
	"mariadb": {
		image: "mariadb", packages: "mariadb-server-core,mariadb-client-core", set: "mysql", post: true,
		run: `mkdir -p /run/mysqld
[ -e /data/db/made ] || { rm -rf /data/db; mariadb-install-db --no-defaults --force --user=root --datadir=/data/db --auth-root-authentication-method=normal --skip-test-db && touch /data/db/made; }
exec mariadbd --no-defaults --user=root --datadir=/data/db --socket=/run/mysqld/mysqld.sock --skip-networking --innodb-buffer-pool-size=64M`,
		ready: `mariadb -u root -e 'select 1'`,
		fill: `mariadb -u root -e "create database d; use d; create table t (id int auto_increment primary key, body char(32)) engine=innodb;
create table m (id int auto_increment primary key, body char(32), key (body)) engine=myisam;
insert into t (body) select md5(rand()) from seq_1_to_10000; insert into m (body) select md5(rand()) from seq_1_to_10000"`,
		load:    `mariadb -u root d -e "insert into t (body) values (md5(rand())); insert into m (body) values (md5(rand()))"`,
		highest: `mariadb -u root d -BNe "select least((select max(id) from t), (select max(id) from m))"`,
		count:   `mariadb -u root d -BNe "select (select count(*) from t) + (select count(*) from m)"`,
		sum: `mariadb -u root d -BNe "set session group_concat_max_len = 10000000;
select md5(concat((select group_concat(id, body order by id) from t where id <= $1), (select group_concat(id, body order by id) from m where id <= $1)))"`,
		whole: `mariadb -u root d -BNe "check table m" | grep -v "status.*OK"; true`,
	},
	// Nothing is written to its disk but what the hook has it save.
	"redis": {
		image: "redis", packages: "redis-server", set: "redis",
		run:     `mkdir -p /data/db; exec redis-server --dir /data/db --save "" --appendonly no --bind 127.0.0.1`,
		ready:   `[ "$(redis-cli ping)" = PONG ]`,
		fill:    `redis-cli eval 'for i = 1, 20000 do redis.call("rpush", "t", redis.sha1hex("a" .. i)) end' 0`,
		load:    `redis-cli eval 'local n = redis.call("llen", "t"); for i = n, n + 50 do redis.call("rpush", "t", redis.sha1hex("b" .. i)) end' 0`,
		highest: `redis-cli llen t`,
		count:   `redis-cli llen t`,
		sum:     `redis-cli lrange t 0 $(($1 - 1)) | md5sum`,
		whole:   `true`,
	},
}

// debian makes an image of Debian's packages, once per machine.
func debian(name, packages string) (localnode.Image, error) {
	i := localnode.Image{Ref: "docker.io/library/" + name + ":test"}
	cache, err := os.UserCacheDir()
	if err != nil {
		return i, err
	}
	i.Layer = filepath.Join(cache, "tidemark", "images", name+".tar")
	if _, err := os.Stat(i.Layer); err == nil {
		return i, nil
	}
	if err := os.MkdirAll(filepath.Dir(i.Layer), 0o755); err != nil {
		return i, err
	}
	cmd := exec.Command("mmdebstrap", "--variant=minbase", "--include="+packages, "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/locale/*", "bookworm", i.Layer+".tmp.tar")
	if out, err := cmd.CombinedOutput(); err != nil {
		_ = os.WriteFile(i.Layer+".log", out, 0o600)
		return i, err
	}
	return i, os.Rename(i.Layer+".tmp.tar", i.Layer)
}

// database makes a StatefulSet of one.
func (w *world) database(namespace string, db *database) {
	w.Helper()
	image, err := debian(db.image, db.packages)
	if err != nil {
		w.Skipf("there is no image of %s, which mmdebstrap makes of Debian's packages: %v", db.image, err)
	}
	w.ok(w.Load(image))
	w.namespace(namespace)
	replicas, late, labels := int32(1), localnode.Late, map[string]string{"app": "db"}
	spec := w.podSpec("")
	c := &spec.Containers[0]
	c.Image, c.Command = image.Ref, []string{"sh", "-c", db.run}
	c.VolumeMounts = []corev1.VolumeMount{{Name: "data", MountPath: "/data"}}
	c.ReadinessProbe.Exec.Command, c.ReadinessProbe.TimeoutSeconds = []string{"sh", "-c", db.ready}, 5
	_, err = w.Client.AppsV1().StatefulSets(namespace).Create(w.Context(), &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Name: "db"}, Spec: appsv1.StatefulSetSpec{
		Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: spec},
		VolumeClaimTemplates: []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: "data"}, Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, StorageClassName: &late,
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
		}}},
	}}, metav1.CreateOptions{})
	w.ok(err)
	w.await(db.image, func() bool { return w.ready(namespace, "app=db") })
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

// sameObjects compares the objects of a namespace with those of a moment. Claims have other volumes.
func (w *world) sameObjects(namespace, at string) {
	w.Helper()
	out, trouble, _ := w.try("diff", "-n", namespace, "--at", at)
	if !strings.Contains(trouble, "# + live") { // it did compare
		w.Errorf("diff says:\n%s%s", out, trouble)
	}
	for line := range strings.Lines(out) {
		mark, what, _ := strings.Cut(line, " ")
		if strings.ContainsAny(mark, "~+-") && !strings.HasPrefix(what, ".") && !strings.HasPrefix(what, " ") && !strings.HasPrefix(what, "persistentvolumeclaims ") {
			w.Errorf("other objects than those of %s: %s\n%s", at, line, out)
			return
		}
	}
}

// scheduled has a schedule take snapshots of a namespace's claims once.
func (w *world) scheduled(namespace string) (all []*volumes.Backup) {
	w.Helper()
	without := w.config
	w.stopDaemon(syscall.SIGTERM)
	w.config += "  policies:\n  - name: nightly\n    namespaces: [" + namespace + "]\n    action: snapshot\n    cron: \"* * * * *\"\n"
	w.startDaemon()
	w.awaitLong("the schedule", func() bool {
		w.ok(json.Unmarshal([]byte(w.run("volumes", "list", "-o", "json")), &all))
		return len(all) > 0 && !slices.ContainsFunc(all, func(b *volumes.Backup) bool { return b.Status.Phase != volumes.Done })
	})
	w.stopDaemon(syscall.SIGTERM) // before its next run
	w.config = without
	w.startDaemon()
	return all
}

// TestPostgreSQL, TestMariaDB and TestRedis back a database up while rows are written to it.
func TestPostgreSQL(t *testing.T) { backDatabase(t, "postgresql") }

// TestMariaDB is one of them.
func TestMariaDB(t *testing.T) { backDatabase(t, "mariadb") }

// TestRedis is one of them.
func TestRedis(t *testing.T) { backDatabase(t, "redis") }

// backDatabase backs a database up while rows are written to it, deletes its namespace, and restores it in two ways: all rows that were written before the backup
// are there, as they were.
func backDatabase(t *testing.T, name string) {
	w := newWorld(t, "")
	db, ns := databases[name], name
	w.database(ns, &db)
	script := func(text string) string { w.Helper(); return w.exec(ns, "db-0", text) }
	number := func(text string) int {
		w.Helper()
		n, err := strconv.Atoi(script(text))
		w.ok(err)
		return n
	}
	script(db.fill)
	script("cat > /tmp/load.sh <<'X'\nwhile :; do " + db.load + "; done\nX\nnohup sh /tmp/load.sh >/dev/null 2>&1 &")
	begun := number(db.count)
	w.await("rows to come", func() bool { return number(db.count) > begun+20 })
	written, had := number(db.highest), number(db.count)
	sum := "set -- " + strconv.Itoa(written) + "\n" + db.sum
	before := script(sum)

	var all []*volumes.Backup
	if name == "postgresql" { // one is enough, for it takes a minute
		all = w.scheduled(ns)
	} else {
		all = w.back("-n", ns)
	}
	all = append(all, w.back("-n", ns, "--action", "snapshot-then-kopia")...)
	for _, b := range all {
		if b.Status.Consistency != volumes.Application || (len(b.Status.Hooks) == 2) != db.post {
			t.Errorf("%s: %s, %+v", b.Spec.Action, b.Status.Consistency, b.Status.Hooks)
		}
		for _, h := range b.Status.Hooks {
			if h.State != volumes.HookDone || h.Set != db.set {
				t.Errorf("%s: %+v", b.Spec.Action, h)
			}
		}
	}
	w.await("rows to be written again", func() bool { return number(db.highest) > written })
	at := w.moment()
	w.deleteNamespace(ns)
	for _, b := range all {
		w.run("restore", "-n", ns, "--at", at, "--volumes", b.Metadata.Name, "--yes")
		w.await(name+" to be back", func() bool { return w.ready(ns, "app=db") })
		w.sameObjects(ns, at)
		if trouble := script(db.whole); trouble != "" {
			t.Errorf("restored from %s: %s", b.Spec.Action, trouble)
		}
		if after := script(sum); after != before {
			t.Errorf("restored from %s, the rows differ", b.Spec.Action)
		}
		n := number(db.count)
		t.Logf("%s: %d rows", b.Spec.Action, n)
		if n < had {
			t.Errorf("restored from %s, there are %d rows, and %d were written before", b.Spec.Action, n, had)
		}
		w.deleteNamespace(ns)
	}
	w.nothingLeft()
	w.forget(all...)
	w.snapshotsAre()
}
