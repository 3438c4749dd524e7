package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/minio/minio-go/v7"
	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"github.com/tidemark-backup/tidemark/bench/mix"
	"github.com/tidemark-backup/tidemark/deploy/localcluster"
	"github.com/tidemark-backup/tidemark/deploy/locals3"
)

const (
	perNamespace = 1000 // objects
	writers      = 16
	pollEvery    = 20 * time.Millisecond

	// Who owns objects: some are applied by the API server (GitOps tools, kubectl apply --server-side), the others are created and updated by
	// their client (kubectl, Helm 3, Argo CD as it is installed).
	applier, updater = "kubectl", "helm"
	// appliedPercent is about the share of the former in a recorded cluster (190 of 870), apart from what controllers make.
	appliedPercent = 20
)

var namespaces = schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}

// programs are the paths of what is compared.
type programs struct {
	tidemark, recorder, velero, veleroPlugin, etcdctl, etcdutl string
}

// lab is one control plane, one S3 server, and so many objects.
type lab struct {
	programs
	dir     string
	out     io.Writer
	cluster *localcluster.Cluster
	s3      *locals3.Server
	client  *dynamic.DynamicClient
	// Processes of the cluster.
	apiserver, etcd int
	audit           *auditLog
	objects         []*unstructured.Unstructured
	kinds           []schema.GroupVersionResource // of objects
	applied         int                           // percent of the objects whose owner uses server-side apply
	turns           int                           // so far: each has a directory and a bucket of its own
	changes         int
	ended           map[string]time.Time // namespaces that were deleted
	command         atomic.Int64         // the process of run, while it lives
}

// openLab starts the servers and fills the cluster with n objects in namespaces of 1,000.
func openLab(ctx context.Context, p programs, dir string, n, applied int, out io.Writer) (l *lab, err error) {
	l = &lab{programs: p, dir: dir, applied: applied, out: out, ended: map[string]time.Time{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.close())
		}
	}()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return l, err
	}
	if l.audit, err = newAuditLog(dir); err != nil {
		return l, err
	}
	l.cluster, err = localcluster.Start(ctx, localcluster.Options{APIServerArgs: l.audit.flags(), Output: out})
	if err != nil {
		return l, err
	}
	if l.apiserver, err = childNamed("kube-apiserver"); err != nil {
		return l, err
	}
	if l.etcd, err = childNamed("etcd"); err != nil {
		return l, err
	}
	if l.s3, err = locals3.Start(ctx, locals3.Options{Output: out}); err != nil {
		return l, err
	}
	if l.client, err = dynamic.NewForConfig(l.cluster.Config()); err != nil {
		return l, err
	}
	for i := 0; len(l.objects) < n; i++ {
		objects, kinds := mix.Objects(namespaceName(i), min(perNamespace, n-len(l.objects)))
		l.objects, l.kinds = append(l.objects, objects...), append(l.kinds, kinds...)
	}
	began := time.Now()
	if err := l.fill(ctx, l.objects, l.kinds); err != nil {
		return l, err
	}
	l.say("%d objects made in %.0f s", len(l.objects), time.Since(began).Seconds())
	return l, l.awaitQuiet(ctx)
}

func namespaceName(i int) string { return fmt.Sprintf("shop-%d", i) }

func (l *lab) say(format string, args ...any) {
	fmt.Fprintf(l.out, "%s  %s\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
}

// close ends the servers.
func (l *lab) close() (err error) {
	if l.cluster != nil {
		err = l.cluster.Stop()
	}
	if l.s3 != nil {
		err = errors.Join(err, l.s3.Stop())
	}
	return err
}

// kubeconfig writes a kubeconfig of an administrator of that name, under which the audit log knows the program.
func (l *lab) kubeconfig(user string) (path string, err error) {
	config, err := l.cluster.ConfigFor(user, "system:masters")
	if err != nil {
		return "", err
	}
	path = filepath.Join(l.dir, user+".kubeconfig")
	return path, localcluster.WriteKubeconfig(config, path)
}

// turn makes the directory and the bucket of one program's turn.
func (l *lab) turn(ctx context.Context, what string) (dir, bucket string, err error) {
	l.turns++
	bucket = fmt.Sprintf("%s-%d", what, l.turns)
	dir = filepath.Join(l.dir, bucket)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", "", err
	}
	return dir, bucket, l.s3.MakeBucket(ctx, bucket, false)
}

// isApplied tells whether the owner of the object with that number uses server-side apply. Neighbours are of one kind, so each kind has its share.
func (l *lab) isApplied(i int) bool { return i*37%100 < l.applied }

// fill makes the first objects, and their namespaces.
func (l *lab) fill(ctx context.Context, objects []*unstructured.Unstructured, kinds []schema.GroupVersionResource) error {
	options := metav1.ApplyOptions{FieldManager: applier, Force: true}
	for i, o := range objects {
		if ns := o.GetNamespace(); i == 0 || objects[i-1].GetNamespace() != ns {
			space := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": ns}}}
			if _, err := l.client.Resource(namespaces).Apply(ctx, ns, space, options); err != nil {
				return err
			}
			if err := l.await(ctx, "service account of "+ns, func() (bool, error) { // else pods are refused
				_, err := l.client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "serviceaccounts"}).Namespace(ns).Get(ctx, "default", metav1.GetOptions{})
				return err == nil, client404(err)
			}); err != nil {
				return err
			}
		}
	}
	return l.inParallel(ctx, len(objects), func(ctx context.Context, i int) (err error) {
		to := l.client.Resource(kinds[i]).Namespace(objects[i].GetNamespace())
		if l.isApplied(i) {
			_, err = to.Apply(ctx, objects[i].GetName(), objects[i], options)
		} else {
			_, err = to.Create(ctx, objects[i], metav1.CreateOptions{FieldManager: updater})
		}
		return err
	})
}

// client404 is err unless it says that there is no such object.
func client404(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

func (l *lab) inParallel(ctx context.Context, n int, f func(ctx context.Context, i int) error) error {
	g, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	for range writers {
		g.Go(func() error {
			for i := next.Add(1) - 1; i < int64(n); i = next.Add(1) - 1 {
				if err := f(ctx, int(i)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// change makes a small change to an object, and returns its new revision. Its owner does so; one object of ten is
// changed by somebody else, so that two managers own parts of it.
func (l *lab) change(ctx context.Context, i, number int) (revision string, err error) {
	const key = "example.com/config-digest"
	digest := fmt.Sprintf("%08x", uint32(number)*2654435761)
	o, to := l.objects[i], l.client.Resource(l.kinds[i]).Namespace(l.objects[i].GetNamespace())
	var now *unstructured.Unstructured
	manager := updater
	if i%10 == 7 {
		manager = "kubectl-edit"
	}
	if i%10 == 7 || !l.isApplied(i) {
		patch := fmt.Appendf(nil, `{"metadata":{"annotations":{%q:%q}}}`, key, digest)
		now, err = to.Patch(ctx, o.GetName(), types.MergePatchType, patch, metav1.PatchOptions{FieldManager: manager})
	} else {
		o = o.DeepCopy()
		annotations := o.GetAnnotations()
		if annotations == nil {
			annotations = map[string]string{}
		}
		annotations[key] = digest
		o.SetAnnotations(annotations)
		now, err = to.Apply(ctx, o.GetName(), o, metav1.ApplyOptions{FieldManager: applier, Force: true})
	}
	if err != nil {
		return "", err
	}
	return now.GetResourceVersion(), nil
}

// changeSome changes one object of a hundred.
func (l *lab) changeSome(ctx context.Context) error {
	l.changes++
	return l.inParallel(ctx, max(1, len(l.objects)/100), func(ctx context.Context, i int) error {
		_, err := l.change(ctx, i*100%len(l.objects), l.changes)
		return err
	})
}

// count counts the objects of the mix that a namespace holds.
func (l *lab) count(ctx context.Context, ns string) (n int, err error) {
	for _, r := range mix.Resources() {
		list, err := l.client.Resource(r).Namespace(ns).List(ctx, metav1.ListOptions{LabelSelector: "app=web,tier"})
		if err != nil {
			return 0, err
		}
		n += len(list.Items)
	}
	return n, nil
}

// deleteNamespace returns when the namespace is gone with all that was in it.
func (l *lab) deleteNamespace(ctx context.Context, ns string) error {
	err := l.client.Resource(namespaces).Delete(ctx, ns, metav1.DeleteOptions{})
	if err != nil {
		return client404(err)
	}
	err = l.await(ctx, "end of namespace "+ns, func() (bool, error) {
		_, err := l.client.Resource(namespaces).Get(ctx, ns, metav1.GetOptions{})
		return apierrors.IsNotFound(err), client404(err)
	})
	l.ended[ns] = time.Now()
	return err
}

// forgetsAfter is how long the API server remembers that a namespace was deleted, and asks etcd at each creation whether one of that
// name is there (forceLiveLookupTTL of the admission plug-in NamespaceLifecycle, 30 s), and a second more.
const forgetsAfter = 31 * time.Second

// awaitForgotten waits until objects in a namespace of that name cost the API server no more than in any other.
func (l *lab) awaitForgotten(ctx context.Context, ns string) error {
	until := l.ended[ns].Add(forgetsAfter)
	return l.await(ctx, "the API server to forget namespace "+ns, func() (bool, error) { return time.Now().After(until), nil })
}

// awaitQuiet waits until controllers have nothing more to do: no new revision for two seconds.
func (l *lab) awaitQuiet(ctx context.Context) error {
	var last string
	since := time.Now()
	return l.await(ctx, "quiet", func() (bool, error) {
		// Of all resources of the server's etcd, which has one counter.
		list, err := l.client.Resource(namespaces).List(ctx, metav1.ListOptions{Limit: 1})
		if err != nil {
			return false, err
		}
		if now := list.GetResourceVersion(); now != last {
			last, since = now, time.Now()
		}
		return time.Since(since) > 2*time.Second, nil
	})
}

// deleteEvents deletes what the turn before left: Velero backs Events up, the others do not record them.
func (l *lab) deleteEvents(ctx context.Context) error {
	spaces, err := l.client.Resource(namespaces).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	events := l.client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "events"})
	for _, ns := range spaces.Items {
		if err := events.Namespace(ns.GetName()).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
			return fmt.Errorf("delete events of %s: %w", ns.GetName(), err)
		}
	}
	return nil
}

const awaitLimit = 15 * time.Minute

func (l *lab) await(ctx context.Context, what string, ready func() (bool, error)) error {
	return l.awaitEvery(ctx, pollEvery, what, ready)
}

func (l *lab) awaitEvery(ctx context.Context, every time.Duration, what string, ready func() (bool, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, awaitLimit, fmt.Errorf("not within %s: %s", awaitLimit, what))
	defer cancel()
	for {
		ok, err := ready()
		if err != nil {
			return fmt.Errorf("wait for %s: %w", what, err)
		}
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(every):
		}
	}
}

// stored lists a bucket: each file's version and size.
func (l *lab) stored(ctx context.Context, bucket string) (map[string]int64, error) {
	if bucket == "" {
		return nil, nil
	}
	all := map[string]int64{}
	for o := range l.s3.Client().ListObjects(ctx, bucket, minio.ListObjectsOptions{Recursive: true}) {
		if o.Err != nil {
			return nil, fmt.Errorf("list bucket %s: %w", bucket, o.Err)
		}
		all[o.Key+" "+o.ETag] = o.Size
	}
	return all, nil
}

// added is how many bytes now has that before has not.
func added(before, now map[string]int64) (bytes int64) {
	for name, size := range now {
		if _, ok := before[name]; !ok {
			bytes += size
		}
	}
	return bytes
}

// ran is what one run of a program took.
type ran struct {
	out       []byte
	wall, cpu time.Duration
	peak      int64 // bytes
}

// values are those of a sample in which the program is the command that a user waits for.
func (r ran) values() map[string]float64 {
	return map[string]float64{"seconds": r.wall.Seconds(), "cli_cpu_seconds": r.cpu.Seconds(), "cli_peak_bytes": float64(r.peak)}
}

func (l *lab) run(ctx context.Context, env []string, name string, args ...string) (ran, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	var text bytes.Buffer
	cmd.Stdout, cmd.Stderr = &text, &text
	began := time.Now()
	err := cmd.Start()
	var peak int64
	if err == nil {
		l.command.Store(int64(cmd.Process.Pid))
		most := highWater(cmd.Process.Pid)
		err = cmd.Wait()
		l.command.Store(0)
		peak = most()
	}
	out := text.Bytes()
	if err != nil {
		return ran{}, fmt.Errorf("%s %s: %w\n%s", filepath.Base(name), args[0], err, out)
	}
	s := cmd.ProcessState
	return ran{out, time.Since(began), s.UserTime() + s.SystemTime(), peak}, nil
}
