package volumes

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	kubetesting "k8s.io/client-go/testing"

	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/volumes/hooks"
	"github.com/tidemark-backup/tidemark/volumes/kube"
	"github.com/tidemark-backup/tidemark/volumes/policy"
)

// TestWhatHooksMakeConsistent is the rule: pre hooks make a backup application-consistent if the application was held until its post hooks, or if all of its claims
// are of one instant.
func TestWhatHooksMakeConsistent(t *testing.T) {
	passes, holds := map[string]string{preHook + "command": "/checkpoint"}, map[string]string{preHook + "command": "/lock", postHook + "command": "/unlock"}
	mayFail := map[string]string{preHook + "command": "/lock", preHook + "on-error": "Continue", postHook + "command": "/unlock"}
	group := map[string]string{GroupLabels[0]: "all"}
	db := func(hooks map[string]string, claims ...string) runtime.Object {
		return user("shop", "db", hooks, claims...)
	}
	web := user("shop", "web", nil, "web")
	for _, c := range []struct {
		what   string
		labels map[string]string // of claims data and wal
		pods   []runtime.Object
		q      ClaimsRequest
		fails  string // a command
		loose  bool   // the backup of data says that its hooks do not count
		want   map[string]Consistency
	}{
		{"one claim", nil, []runtime.Object{db(passes, "data")}, ClaimsRequest{}, "", false, map[string]Consistency{"data": Application, "wal": Crash}},
		{"two claims, nothing held", nil, []runtime.Object{db(passes, "data", "wal")}, ClaimsRequest{}, "", true, map[string]Consistency{"data": Crash, "wal": Crash}},
		{"two claims, held", nil, []runtime.Object{db(holds, "data", "wal")}, ClaimsRequest{}, "", false, map[string]Consistency{"data": Application, "wal": Application}},
		{"a group, nothing held", group, []runtime.Object{db(passes, "data", "wal")}, ClaimsRequest{}, "", false, map[string]Consistency{"data": Application, "wal": Application}},
		{"a group by Pods", nil, []runtime.Object{db(passes, "data", "wal")}, ClaimsRequest{Group: policy.GroupPod}, "", false, map[string]Consistency{"data": Application, "wal": Application}},
		{"no hooks", group, []runtime.Object{db(nil, "data", "wal")}, ClaimsRequest{}, "", false, map[string]Consistency{"data": CrashGroup, "wal": CrashGroup}},
		{"read as it is, nothing held", nil, []runtime.Object{db(passes, "data")}, ClaimsRequest{Action: policy.Kopia}, "", true, map[string]Consistency{"data": Live, "wal": Crash}},
		{"read as it is, held", nil, []runtime.Object{db(holds, "data")}, ClaimsRequest{Action: policy.Kopia}, "", false, map[string]Consistency{"data": Application, "wal": Crash}},
		{"a pre hook that may fail", nil, []runtime.Object{db(mayFail, "data")}, ClaimsRequest{}, "/lock", false, map[string]Consistency{"data": Crash, "wal": Crash}},
		{"a post hook fails", group, []runtime.Object{db(holds, "data", "wal")}, ClaimsRequest{}, "/unlock", false, map[string]Consistency{"data": CrashGroup, "wal": CrashGroup}},
		{"a Pod without hooks in the group", group, []runtime.Object{db(holds, "data"), user("shop", "other", nil, "wal")}, ClaimsRequest{}, "", false, map[string]Consistency{"data": Application, "wal": CrashGroup}},
		{"two Pods with hooks", nil, []runtime.Object{db(passes, "data"), user("shop", "db-2", passes, "data", "wal")}, ClaimsRequest{}, "", true, map[string]Consistency{"data": Crash, "wal": Crash}},
	} {
		t.Run(c.what, func(t *testing.T) {
			w := newCluster(t, Cluster{}, slices.Concat(claim("shop", "data", c.labels), claim("shop", "wal", c.labels), claim("shop", "web", nil), c.pods, []runtime.Object{web})...)
			w.exec = func(_, command string) (kube.Executed, error) {
				if command == c.fails {
					return kube.Executed{Exit: 1}, nil
				}
				return kube.Executed{}, nil
			}
			by, err := w.back(c.q)
			ok(t, err)
			for name, want := range c.want {
				if s := w.recordOf(by[name]).Status; s.Consistency != want || s.Phase != Done {
					t.Errorf("%s is %s, want %s: %s", name, s.Consistency, want, s.Error)
				}
			}
			if told := slices.ContainsFunc(by["data"].Status.Notes, func(n string) bool { return strings.Contains(n, "has no post hook") }); told != c.loose {
				t.Errorf("notes %q", by["data"].Status.Notes)
			}
		})
	}
}

// heldGroup is a cluster with a Pod that is held while the group of its two claims is taken.
func heldGroup(t *testing.T) *cluster {
	group := map[string]string{GroupLabels[0]: "all"}
	return newCluster(t, Cluster{}, slices.Concat(claim("shop", "data", group), claim("shop", "wal", group),
		[]runtime.Object{user("shop", "db", map[string]string{preHook + "command": "/lock", postHook + "command": "/unlock"}, "data", "wal")})...)
}

// TestNobodyIsHeldUntilAGroupIsReady runs post hooks as soon as the group is cut; some storage copies for half an hour until it can be used.
func TestNobodyIsHeldUntilAGroupIsReady(t *testing.T) {
	c := heldGroup(t)
	c.ready = func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return slices.Contains(c.calls, "exec /unlock")
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), 20*time.Second, errors.New("the application is held until the group is ready"))
	defer cancel()
	m, err := c.k.BackClaims(ctx, ClaimsRequest{}, nil)
	ok(t, err)
	for _, b := range m.Backups {
		if s := c.recordOf(b).Status; s.Phase != Done || s.Snapshot == nil || s.Snapshot.Group == "" || s.Taken.IsZero() || s.Consistency != Application {
			t.Errorf("%+v", s)
		}
	}
}

// TestPostHooksAreRecordedWhenTheyWereRun and not when the snapshots are ready, or the content has been moved: the next daemon is not to run them again.
func TestPostHooksAreRecordedWhenTheyWereRun(t *testing.T) {
	c := heldGroup(t)
	asked := false
	c.ready = func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		if !slices.Contains(c.calls, "exec /unlock") {
			return false
		}
		for e, err := range c.recorded(t.Context()) {
			ok(t, err)
			b, err := Parse(e.Object)
			ok(t, err)
			if h := b.Status.Hooks; len(h) != 2 || h[1].State != HookDone {
				t.Errorf("%s: %+v", b.Spec.Claim, h)
			}
		}
		asked = true
		return true
	}
	_, err := c.back(ClaimsRequest{})
	ok(t, err)
	if !asked {
		t.Error("the group was ready from the start")
	}
}

// TestOwedHooksAreRecordedFirst has the daemon die within a pre hook: by then history knows the post hooks, of all of them, that the next one runs, each once.
func TestOwedHooksAreRecordedFirst(t *testing.T) {
	c := heldGroup(t)
	rules, err := hooks.Parse([]byte(`
resources:
- name: two
  pre: [{exec: {command: [/lock-a]}}, {exec: {command: [/lock-b]}}]
  post: [{exec: {command: [/unlock-b]}}, {exec: {command: [/unlock-a]}}]
`))
	ok(t, err)
	c.k.SetPolicies(Policies{Hooks: *rules})
	p, err := c.Resource(kube.Pods).Namespace("shop").Get(t.Context(), "db", metav1.GetOptions{})
	ok(t, err)
	p.SetAnnotations(nil)
	_, err = c.Resource(kube.Pods).Namespace("shop").Update(t.Context(), p, metav1.UpdateOptions{})
	ok(t, err)
	var died []journal.Event
	c.exec = func(_, command string) (kube.Executed, error) {
		if command == "/lock-b" {
			c.mu.Lock()
			died = slices.Clone(c.events)
			c.mu.Unlock()
		}
		return kube.Executed{}, nil
	}
	_, err = c.back(ClaimsRequest{})
	ok(t, err)
	if want := "[exec /lock-a exec /lock-b group exec /unlock-b exec /unlock-a]"; fmt.Sprint(c.calls) != want {
		t.Errorf("done: %v, want %s", c.calls, want)
	}
	if len(died) != 2 {
		t.Fatalf("%d records when the daemon dies", len(died))
	}

	c.events, c.calls = died, nil
	next := New(c.o)
	ok(t, next.Settle(t.Context()))
	if want := "[exec /unlock-b exec /unlock-a]"; fmt.Sprint(c.calls) != want {
		t.Errorf("the next daemon did %v, want %s", c.calls, want)
	}
	all, err := next.List(t.Context())
	ok(t, err)
	for _, b := range all {
		if h := b.Status.Hooks; b.Status.Phase != Failed || len(h) != 4 || h[0].State != HookLeftOut || h[2].State != HookDone || h[3].State != HookDone {
			t.Errorf("%+v", b.Status)
		}
	}
}

// TestHooksThatWereRunAreNotOwed has the daemon die between the records of two claims: what one of them has of a post hook counts for both.
func TestHooksThatWereRunAreNotOwed(t *testing.T) {
	c := heldGroup(t)
	_, err := c.back(ClaimsRequest{})
	ok(t, err)
	for i, e := range c.events {
		b, err := Parse(e.Object)
		ok(t, err)
		if len(b.Status.Hooks) == 2 && b.Status.Hooks[1].State == HookDone {
			c.events, c.calls = c.events[:i+1], nil
			break
		}
	}
	ok(t, New(c.o).Settle(t.Context()))
	if len(c.calls) > 0 {
		t.Errorf("done again: %v", c.calls)
	}
}

// TestCancelLetsTheApplicationGo cancels a run within a pre hook, and after it: the post hooks are run all the same.
func TestCancelLetsTheApplicationGo(t *testing.T) {
	for _, at := range []string{"/lock", "group"} {
		c := heldGroup(t)
		ctx, cancel := context.WithCancelCause(t.Context())
		gone := errors.New("cancelled")
		c.exec = func(_, command string) (kube.Executed, error) {
			if command == at {
				cancel(gone)
				return kube.Executed{}, gone
			}
			return kube.Executed{}, nil
		}
		c.PrependReactor("create", groupGVR.Resource, func(kubetesting.Action) (bool, runtime.Object, error) {
			if at == "group" {
				cancel(gone)
			}
			return false, nil, nil
		})
		m, err := c.k.BackClaims(ctx, ClaimsRequest{}, nil)
		if !errors.Is(err, gone) || c.calls[len(c.calls)-1] != "exec /unlock" {
			t.Errorf("cancelled at %s: %v, %v", at, c.calls, err)
		}
		for _, b := range m.Backups {
			if s := c.recordOf(b).Status; s.Phase != Failed || s.Snapshot != nil || s.Hooks[1].State != HookDone {
				t.Errorf("cancelled at %s: %+v", at, s)
			}
		}
	}
}
