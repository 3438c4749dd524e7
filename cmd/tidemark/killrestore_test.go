package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/tidemark-backup/tidemark/replay"
)

// many is "many NAMESPACE N": it makes so many ConfigMaps.
func (k *kube) many(ts *testscript.TestScript, _ bool, args []string) {
	var n int
	_, err := fmt.Sscan(args[1], &n)
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for i := range n {
		u := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": fmt.Sprint("o", i), "namespace": args[0]}, "data": map[string]any{"i": fmt.Sprint(i)}}}
		g.Go(func() error {
			_, err := k.resource("configmaps", args[0]).Create(ctx, u, metav1.CreateOptions{})
			return err
		})
	}
	ts.Check(g.Wait())
}

// made are the uids of a namespace's ConfigMaps, by name.
func (k *kube) made(ctx context.Context, ts *testscript.TestScript, namespace string) map[string]string {
	list, err := k.resource("configmaps", namespace).List(ctx, metav1.ListOptions{})
	ts.Check(err)
	out := map[string]string{}
	for _, u := range list.Items {
		out[u.GetName()] = string(u.GetUID())
	}
	return out
}

// killed is "killed NAMESPACE N": time and again it restores the deleted namespace with its N ConfigMaps
// from $THEN, kills the process (SIGKILL) at some moment, goes on, looks that all is there and nothing
// was made twice, and undoes it. It ends after 3 kills in the middle, or TIDEMARK_KILLS.
func (k *kube) killed(ts *testscript.TestScript, _ bool, args []string) {
	var n int
	_, err := fmt.Sscan(args[1], &n)
	ts.Check(err)
	kills := 3
	if n, err := strconv.Atoi(os.Getenv("TIDEMARK_KILLS")); err == nil {
		kills = n
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(kills)*time.Minute)
	defer cancel()
	for inTheMiddle := 0; inTheMiddle < kills; {
		ts.Check(ctx.Err())
		p := tidemarkProcess(ctx, ts, "restore", "-n", args[0], "--at", ts.Getenv("THEN"), "--yes")
		ts.Check(p.Start())
		after := rand.IntN(n / 2)
		for written(ts) < after && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
		ts.Check(p.Process.Kill())
		_ = p.Wait() // it was killed, or done before
		rec := newestRecord(ctx, ts)
		if rec == nil {
			continue // it had not begun
		}
		if rec.Ended.IsZero() && rec.Items.Done > 0 {
			inTheMiddle++
		}
		before := k.made(ctx, ts, args[0])
		out, err := tidemarkProcess(ctx, ts, "restores", "resume", rec.ID, "--yes").CombinedOutput()
		if err != nil {
			ts.Fatalf("resume after %d objects, with %+v: %v\n%s", after, rec.Items, err, out)
		}
		there := k.made(ctx, ts, args[0])
		missing, twice := 0, 0
		for i := range n {
			name := fmt.Sprint("o", i)
			if there[name] == "" {
				missing++
			}
			if before[name] != "" && before[name] != there[name] {
				twice++
			}
		}
		if missing+twice > 0 {
			ts.Fatalf("killed with %+v: after going on %d of %d objects are missing, %d were made twice", rec.Items, missing, n, twice)
		}
		if out, err := tidemarkProcess(ctx, ts, "undo", rec.ID, "--yes").CombinedOutput(); err != nil {
			ts.Fatalf("undo: %v\n%s", err, out)
		}
		gone(ctx, ts, k.resource("namespaces", ""), args[0])
		ts.Check(os.RemoveAll(ts.MkAbs(".local")))
	}
}

// written counts the objects that the only restore on record has written.
func written(ts *testscript.TestScript) int {
	files, err := filepath.Glob(filepath.Join(ts.MkAbs(".local"), "state", "tidemark", "restores", "*", "progress.jsonl"))
	ts.Check(err)
	n := 0
	for _, f := range files {
		b, err := os.ReadFile(f)
		ts.Check(err)
		n += bytes.Count(b, []byte(`"s":"done"`))
	}
	return n
}

// tidemarkProcess is the program under test, in the script's environment.
func tidemarkProcess(ctx context.Context, ts *testscript.TestScript, args ...string) *exec.Cmd {
	for _, dir := range filepath.SplitList(ts.Getenv("PATH")) {
		path := filepath.Join(dir, "tidemark")
		if _, err := os.Stat(path); err != nil {
			continue
		}
		p := exec.CommandContext(ctx, path, args...)
		p.Dir = ts.MkAbs(".")
		for _, name := range []string{"PATH", "HOME", "KUBECONFIG", "TIDEMARK_SERVER", "TZ"} {
			p.Env = append(p.Env, name+"="+ts.Getenv(name))
		}
		return p
	}
	ts.Fatalf("there is no tidemark in $PATH")
	return nil
}

func newestRecord(ctx context.Context, ts *testscript.TestScript) *replay.RecordInfo {
	out, err := tidemarkProcess(ctx, ts, "restores", "list", "-o", "json").Output()
	ts.Check(err)
	var all []replay.RecordInfo
	ts.Check(json.Unmarshal(out, &all))
	if len(all) == 0 {
		return nil
	}
	return &all[0]
}
