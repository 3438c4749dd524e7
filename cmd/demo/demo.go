package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/tidemark-backup/tidemark/deploy/localcluster"
	"github.com/tidemark-backup/tidemark/deploy/sample"
)

const (
	settleLimit = 60 * time.Second // for controllers to have done their work
	goneLimit   = 2 * time.Minute  // for a deleted namespace to be gone
)

// demo is one showing.
type demo struct {
	out      io.Writer
	began    time.Time
	step     int
	dir      string
	cluster  *localcluster.Cluster
	clients  *kubernetes.Clientset
	observer *observer
	tool     *tidemark
}

func newDemo(out io.Writer, program string) (*demo, error) {
	program, err := filepath.Abs(program)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(program); err != nil {
		return nil, fmt.Errorf("%w; run `make build` first, or `make demo`", err)
	}
	dir, err := os.MkdirTemp("", "tidemark-demo-")
	if err != nil {
		return nil, err
	}
	return &demo{out: out, began: time.Now(), dir: dir, tool: &tidemark{
		program: program, dataDir: filepath.Join(dir, "data"), logFile: filepath.Join(dir, "tidemark.log"),
	}}, nil
}

// show runs the whole demo.
func (d *demo) show(ctx context.Context) error {
	if err := d.record(ctx); err != nil {
		return err
	}
	if err := d.deploy(ctx); err != nil {
		return err
	}
	before, moment, err := d.remember(ctx)
	if err != nil {
		return err
	}
	if err := d.lose(ctx); err != nil {
		return err
	}
	if err := d.lookBack(ctx, moment); err != nil {
		return err
	}
	took, err := d.rewind(ctx, moment)
	if err != nil {
		return err
	}
	return d.prove(ctx, before, took)
}

// record starts a control plane and a daemon that records it.
func (d *demo) record(ctx context.Context) error {
	d.title("A real control plane: etcd, kube-apiserver and kube-controller-manager (no node: pods never run).")
	var err error
	d.cluster, err = localcluster.Start(ctx, localcluster.Options{Dir: filepath.Join(d.dir, "cluster"), Output: indent{d.out}})
	if err != nil {
		return err
	}
	d.tool.kubeconfig = d.cluster.Kubeconfig()
	if d.clients, err = kubernetes.NewForConfig(d.cluster.Config()); err != nil {
		return err
	}
	if d.observer, err = newObserver(d.cluster.Config()); err != nil {
		return err
	}
	d.title("Tidemark's daemon records every change of every object, from now on.")
	d.say("$ tidemark run --kubeconfig %s --data-dir %s &", d.tool.kubeconfig, d.tool.dataDir)
	began := time.Now()
	if err := d.tool.start(); err != nil {
		return err
	}
	if err := d.tool.awaitRecording(ctx, "deployments.apps", "secrets", "customresourcedefinitions.apiextensions.k8s.io"); err != nil {
		return err
	}
	d.say("recording everything after %.1fs", time.Since(began).Seconds())
	return d.command(ctx, lines{tail: 2}, "status")
}

// deploy installs the sample application and works with it for a while.
func (d *demo) deploy(ctx context.Context) error {
	objects, err := sample.Objects()
	if err != nil {
		return err
	}
	d.title("A web shop moves in: %d objects, most of them in namespace %s, two custom resource definitions among them.", len(objects), sample.Namespace)
	if err := sample.Apply(ctx, d.cluster.Config()); err != nil {
		return err
	}
	d.title("People work on it. Nobody tells Tidemark.")
	if err := d.work(ctx); err != nil {
		return err
	}
	return d.tool.awaitRecording(ctx, "promotions.shop.example.com", "vouchers.shop.example.com")
}

// remember takes the demo's own picture of the namespace, by plain lists, once the
// controllers have calmed down, and returns it with a moment at which it was true.
func (d *demo) remember(ctx context.Context) (*picture, time.Time, error) {
	d.title("The demo notes, by itself and by plain LISTs, what the namespace holds.")
	before, err := d.settled(ctx)
	if err != nil {
		return nil, time.Time{}, err
	}
	moment := time.Now().UTC()
	d.say("%d objects at %s, and %d that controllers and the cluster made", before.count(), stamp(moment), before.countMade())
	return before, moment, pause(ctx, time.Second)
}

// settled returns a picture of the namespace once the controllers have made all pods and
// nothing has changed for half a second.
func (d *demo) settled(ctx context.Context) (*picture, error) {
	deadline := time.Now().Add(settleLimit)
	last, err := d.observer.look(ctx, sample.Namespace)
	for err == nil {
		if err = pause(ctx, 500*time.Millisecond); err != nil {
			break
		}
		var now *picture
		if now, err = d.observer.look(ctx, sample.Namespace); err != nil {
			break
		}
		unfinished := now.unfinished()
		if unfinished == "" && now.versions == last.versions {
			return now, nil
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("namespace %s still changes after %s (%s)", sample.Namespace, settleLimit, unfinished)
		}
		last = now
	}
	return nil, err
}

// lose deletes the namespace and waits until it is gone.
func (d *demo) lose(ctx context.Context) error {
	d.title("The accident.")
	d.say("$ kubectl delete namespace %s", sample.Namespace)
	began := time.Now()
	if err := d.clients.CoreV1().Namespaces().Delete(ctx, sample.Namespace, metav1.DeleteOptions{}); err != nil {
		return fmt.Errorf("delete namespace: %w", err)
	}
	for {
		_, err := d.clients.CoreV1().Namespaces().Get(ctx, sample.Namespace, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			d.say("gone after %.1fs, and every object in it", time.Since(began).Seconds())
			return pause(ctx, time.Second)
		}
		if err != nil {
			return fmt.Errorf("wait for the namespace to go: %w", err)
		}
		if time.Since(began) > goneLimit {
			return fmt.Errorf("namespace %s is not gone after %s", sample.Namespace, goneLimit)
		}
		if err := pause(ctx, pollEvery); err != nil {
			return err
		}
	}
}

// lookBack asks Tidemark about what is no longer there.
func (d *demo) lookBack(ctx context.Context, moment time.Time) error {
	d.title("What happened? Every change is in the log, with what changed and by whom.")
	if err := d.command(ctx, lines{head: 8, tail: 2}, "log", "deployment/web", "-n", sample.Namespace, "--since", "10m"); err != nil {
		return err
	}
	if err := d.command(ctx, lines{tail: 5}, "log", "-n", sample.Namespace, "--since", "10m"); err != nil {
		return err
	}
	d.title("Any moment can be read, as with kubectl get.")
	return d.command(ctx, lines{head: 12}, "get", "deployments", "-n", sample.Namespace, "--at", stamp(moment))
}

// rewind has the namespace put back, and returns how long that took.
func (d *demo) rewind(ctx context.Context, moment time.Time) (time.Duration, error) {
	d.title("Back to the moment before. (`tidemark undelete ns/%s` finds that moment by itself.)", sample.Namespace)
	began := time.Now()
	err := d.command(ctx, lines{head: 4, tail: 4}, "restore", "-n", sample.Namespace, "--at", stamp(moment), "--yes")
	return time.Since(began), err
}

// prove compares what is there now with what was there, and fails when anything differs.
func (d *demo) prove(ctx context.Context, before *picture, took time.Duration) error {
	d.title("Is it the same? Compared object by object, by plain LISTs.")
	now, err := d.settled(ctx)
	if err != nil {
		return err
	}
	c := compare(before, now)
	c.write(indent{d.out})
	if n := len(c.differences); n > 0 {
		return fmt.Errorf("%d objects are not what they were", n)
	}
	d.say("Every object is what it was. %d objects in %.1fs: %.0f a second.", before.count(), took.Seconds(), float64(before.count())/took.Seconds())
	d.say("Labels, annotations, specs, data and owner references were compared; what the server sets")
	d.say("(uids, times, cluster IPs) and status were not. The whole demo took %.0fs.", time.Since(d.began).Seconds())
	return nil
}

// lookAround tells how to go on by hand.
func (d *demo) lookAround() {
	d.title("Look around, in another terminal:")
	for _, line := range []string{
		"export KUBECONFIG=" + d.tool.kubeconfig,
		"export TIDEMARK_SERVER=" + d.tool.server(),
		"export XDG_STATE_HOME=" + d.tool.stateDir(),
		"export PATH=" + filepath.Dir(d.tool.program) + ":$PATH",
		"tidemark status",
		"tidemark log -n " + sample.Namespace + " --follow",
		"tidemark get all -n " + sample.Namespace + " --at 1m",
		"tidemark diff -n " + sample.Namespace + " --at 1m",
		"kubectl delete deployment/web -n " + sample.Namespace,
		"tidemark undelete deployment/web -n " + sample.Namespace + " --dry-run",
	} {
		d.say("%s", line)
	}
	d.say("Everything lives in %s; the daemon's log is %s.", d.dir, d.tool.logFile)
}

// stop ends the daemon and the control plane and removes what they wrote.
func (d *demo) stop() error {
	errs := []error{d.tool.stop()}
	if d.cluster != nil {
		errs = append(errs, d.cluster.Stop())
	}
	return errors.Join(append(errs, os.RemoveAll(d.dir))...)
}

// title announces a step.
func (d *demo) title(format string, args ...any) {
	d.step++
	fmt.Fprintf(d.out, "\n%d. %s\n", d.step, fmt.Sprintf(format, args...))
}

// say prints a line below the title.
func (d *demo) say(format string, args ...any) {
	fmt.Fprintf(d.out, "   "+format+"\n", args...)
}

// lines says how much of a command's output is shown; zero shows nothing of that end.
type lines struct{ head, tail int }

// command shows a command of tidemark, runs it and shows the ends of what it prints.
func (d *demo) command(ctx context.Context, show lines, args ...string) error {
	d.say("$ tidemark %s", strings.Join(args, " "))
	out, err := d.tool.command(ctx, args...).CombinedOutput()
	text := strings.Split(strings.TrimRight(string(out), "\n"), "\n")
	if err != nil {
		d.print(text)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("tidemark %s: %w", args[0], err)
	}
	if left := len(text) - show.head - show.tail; left > 1 {
		d.print(text[:show.head])
		d.say("  ... %d more lines", left)
		text = text[len(text)-show.tail:]
	}
	d.print(text)
	return nil
}

func (d *demo) print(text []string) {
	for _, line := range text {
		d.say("  %s", line)
	}
}

// indent writes lines below the title. It is given whole lines.
type indent struct{ out io.Writer }

func (i indent) Write(p []byte) (int, error) {
	text := strings.TrimSuffix(string(p), "\n")
	_, err := io.WriteString(i.out, "   "+strings.ReplaceAll(text, "\n", "\n   ")+"\n")
	return len(p), err
}

// stamp writes a moment as --at reads it.
func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z07:00") }

// pause waits, or returns the error of a context that ends meanwhile.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
