package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"github.com/tidemark-backup/tidemark/cmd/internal/api"
	"github.com/tidemark-backup/tidemark/deploy/localcluster"
)

// TestClusterScripts runs the real binary against a real control plane: what changes a
// cluster is only proven by a cluster.
func TestClusterScripts(t *testing.T) {
	c, err := localcluster.Start(t.Context(), localcluster.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	client, err := dynamic.NewForConfig(c.Config())
	if err != nil {
		t.Fatal(err)
	}
	k := &kube{client: client}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/cluster",
		Setup: func(env *testscript.Env) error {
			if err := setup(env); err != nil {
				return err
			}
			b, err := os.ReadFile(c.Kubeconfig())
			if err != nil {
				return err
			}
			tenant, err := c.ConfigFor("tenant")
			if err != nil {
				return err
			}
			if err := localcluster.WriteKubeconfig(tenant, env.WorkDir+"/tenant"); err != nil {
				return err
			}
			return os.WriteFile(env.Getenv("KUBECONFIG"), b, 0o600)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"recording": recording, "code": code, "kube": k.run, "sync": k.sync, "undo": undo, "until": until,
			"many": k.many, "killed": k.killed,
			"await": await, "story": tellStory, "archived": archived,
			"terminate": func(ts *testscript.TestScript, _ bool, _ []string) {
				for _, c := range ts.BackgroundCmds() {
					ts.Check(c.Process.Signal(os.Interrupt))
				}
			},
		},
		RequireExplicitExec: true,
	})
}

// kube does to the cluster what a user does with kubectl.
type kube struct{ client dynamic.Interface }

func (k *kube) resource(name, namespace string) dynamic.ResourceInterface {
	gvr := schema.GroupVersionResource{Version: "v1", Resource: name}
	switch {
	case strings.Contains(name, "role"):
		gvr.Group = "rbac.authorization.k8s.io"
	case name == "deployments":
		gvr.Group = "apps"
	}
	return k.client.Resource(gvr).Namespace(namespace)
}

// run is "kube create|update RESOURCE FILE", "kube delete RESOURCE NAMESPACE NAME" (it waits
// until the object is gone), "kube gone RESOURCE NAMESPACE NAME", "kube list RESOURCE NAMESPACE" and "[!] kube get RESOURCE NAMESPACE NAME".
func (k *kube) run(ts *testscript.TestScript, neg bool, args []string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	switch args[0] {
	case "create", "update":
		var u unstructured.Unstructured
		ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[2])), &u.Object))
		r := k.resource(args[1], u.GetNamespace())
		var err error
		if args[0] == "create" {
			_, err = r.Create(ctx, &u, metav1.CreateOptions{})
		} else {
			_, err = r.Update(ctx, &u, metav1.UpdateOptions{})
		}
		ts.Check(err)
		if args[0] == "create" && args[1] == "namespaces" { // what a controller makes in it is not to come in the middle of what follows
			accounts := k.resource("serviceaccounts", u.GetName())
			poll(ctx, ts, func() bool { _, err := accounts.Get(ctx, "default", metav1.GetOptions{}); return err == nil })
		}
	case "delete":
		r := k.resource(args[1], args[2])
		ts.Check(r.Delete(ctx, args[3], metav1.DeleteOptions{}))
		gone(ctx, ts, r, args[3])
	case "gone":
		gone(ctx, ts, k.resource(args[1], args[2]), args[3])
	case "list":
		list, err := k.resource(args[1], args[2]).List(ctx, metav1.ListOptions{})
		ts.Check(err)
		b, err := json.Marshal(list)
		ts.Check(err)
		fmt.Fprintf(ts.Stdout(), "%s\n", b)
	case "get":
		u, err := k.resource(args[1], args[2]).Get(ctx, args[3], metav1.GetOptions{})
		if neg != apierrors.IsNotFound(err) {
			ts.Fatalf("%s: %v", strings.Join(args, " "), err)
		}
		if err == nil {
			ts.Check(json.NewEncoder(ts.Stdout()).Encode(u.Object))
		}
	default:
		ts.Fatalf("kube %s?", args[0])
	}
}

func gone(ctx context.Context, ts *testscript.TestScript, r dynamic.ResourceInterface, name string) {
	poll(ctx, ts, func() bool {
		_, err := r.Get(ctx, name, metav1.GetOptions{})
		if !apierrors.IsNotFound(err) {
			ts.Check(err)
		}
		return err != nil
	})
}

// sync waits until the daemon has recorded everything that happened until now, and sets $NOW
// to the --at of this moment.
func (k *kube) sync(ts *testscript.TestScript, _ bool, _ []string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := api.NewClient(api.ClientOptions{Server: ts.Getenv("TIDEMARK_SERVER")})
	ts.Check(err)
	defer c.Close()
	u := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"generateName": "sync-"}}}
	u, err = k.resource("configmaps", "default").Create(ctx, u, metav1.CreateOptions{})
	ts.Check(err)
	want, err := strconv.ParseUint(u.GetResourceVersion(), 10, 64)
	ts.Check(err)
	poll(ctx, ts, func() bool {
		catalog, err := c.Ledgers(ctx)
		ts.Check(err)
		return catalog.To.RV >= want
	})
	ts.Setenv("NOW", fmt.Sprint("rv:", want))
}

// recording waits until the first lists are done and the restorable range has its beginning.
func recording(ts *testscript.TestScript, _ bool, _ []string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := api.NewClient(api.ClientOptions{Server: ts.Getenv("TIDEMARK_SERVER")})
	ts.Check(err)
	defer c.Close()
	poll(ctx, ts, func() bool {
		st, err := c.Status(ctx)
		return err == nil && !st.Catalog.From.Time.IsZero() && len(st.Capture.Resources) >= 30 &&
			!slices.ContainsFunc(st.Capture.Resources, func(r api.ResourceStatus) bool { return r.State != "watching" })
	})
}

func poll(ctx context.Context, ts *testscript.TestScript, done func() bool) {
	for !done() {
		ts.Check(ctx.Err())
		time.Sleep(5 * time.Millisecond)
	}
}

var undoLine = regexp.MustCompile(`(?m)^to undo: tidemark (.*)$`)

// undo runs what the last restore said would undo it, or the one whose output is in a file: "undo [FILE]".
func undo(ts *testscript.TestScript, _ bool, args []string) {
	all := undoLine.FindAllStringSubmatch(ts.ReadFile(append(args, "stdout")[0]), -1)
	if len(all) == 0 {
		ts.Fatalf("the restore did not say how to undo it")
	}
	for _, m := range all {
		ts.Check(ts.Exec("tidemark", append(strings.Fields(m[1]), "--yes")...))
	}
}

// until waits until a file that is being written has the text: "until FILE REGEXP".
func until(ts *testscript.TestScript, _ bool, args []string) {
	re := regexp.MustCompile(args[1])
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		b, err := os.ReadFile(ts.MkAbs(args[0]))
		if err == nil && re.Match(b) {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s does not have %q: %v\n%s", args[0], args[1], err, b)
		}
	}
}
