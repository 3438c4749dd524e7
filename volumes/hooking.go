package volumes

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"

	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/volumes/hooks"
	"github.com/tidemark-backup/tidemark/volumes/kube"
	"github.com/tidemark-backup/tidemark/volumes/policy"
)

// ErrHook is returned when a hook failed that must not.
var ErrHook = errors.New("a hook failed")

// owedHooks are the hooks of a unit, none of them run yet. They are recorded before the first is run, so that a daemon that starts after
// one which died knows what is owed.
func (k *Keeper) owedHooks(u *unit) (all []Hook) {
	for _, h := range u.pods {
		for _, hook := range h.plan.Pre {
			all = append(all, Hook{Hook: hook, Pod: h.pod.Name, UID: string(h.pod.UID), When: "pre", State: HookPending})
		}
		for _, hook := range h.plan.Post {
			all = append(all, Hook{Hook: hook, Pod: h.pod.Name, UID: string(h.pod.UID), When: "post", State: HookPending})
		}
	}
	return all
}

// runHooks runs the hooks of one kind, one after another. After a pre hook that failed, those after it are left out; post hooks are all run.
func (k *Keeper) runHooks(ctx context.Context, u *unit, when string, report *report) error {
	var failed error
	all := slices.Clone(u.tasks[0].backup.Status.Hooks)
	for i := range all {
		h := &all[i]
		if h.When != when || h.State != HookPending {
			continue
		}
		if failed != nil && when == "pre" {
			h.State = HookLeftOut
			continue
		}
		report.step(u.tasks[0], fmt.Sprintf("%s hook in Pod %s", when, h.Pod))
		k.runHook(ctx, u.tasks[0].Claim.Namespace, h)
		if h.State == HookFailed && h.OnError != hooks.Continue {
			failed = errors.Join(failed, fmt.Errorf("%w: %s hook in container %s of Pod %s: %s", ErrHook, when, h.Container, h.Pod, h.Error))
		}
	}
	for _, t := range u.tasks {
		t.backup.Status.Hooks = all
		if when == "post" && failed != nil {
			t.backup.Status.Notes = append(t.backup.Status.Notes, failed.Error()+": see to it that the application is not held")
		}
	}
	return failed
}

// runHook runs one hook.
func (k *Keeper) runHook(ctx context.Context, namespace string, h *Hook) {
	limit := time.Duration(h.Timeout)
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("it took longer than %s", limit))
	defer cancel()
	began := time.Now()
	exec := k.o.Cluster.Exec
	if exec == nil {
		exec = k.o.Cluster.Client.Exec
	}
	done, err := exec(ctx, namespace, h.Pod, h.Container, h.Command)
	h.Exit, h.Output, h.Duration = done.Exit, done.Output, time.Since(began).Round(time.Millisecond).String()
	h.State = HookDone
	switch {
	case err != nil:
		h.State, h.Error = HookFailed, err.Error()
	case done.Exit != 0:
		h.State, h.Error = HookFailed, fmt.Sprintf("exit status %d", done.Exit)
	}
	if h.State == HookFailed { // what it wrote may hold secrets; the record has it, the log has not
		k.o.Logger.Warn("a hook failed", zap.String("pod", namespace+"/"+h.Pod), zap.String("container", h.Container), zap.String("when", h.When), zap.String("error", h.Error))
	}
}

// ordered reports whether the application of a claim had brought its files into order, and they are so in the backup: the pre hooks of the Pods that use the claim
// were all run without an error, of which there is at least one; and each of these Pods was held until its post hooks, or all of it is of one
// instant. A hook that holds nothing, such as a checkpoint, has passed by when the second of several volumes is taken.
// If only that is missing, loose says so.
func (u *unit) ordered(t *task) (is bool, loose string) {
	for _, p := range t.Pods {
		pre, held := 0, false
		for _, h := range t.backup.Status.Hooks {
			switch {
			case h.Pod != p.Name:
			case h.When == "post":
				held = true
			case h.State != HookDone:
				return false, ""
			default:
				pre++
			}
		}
		if pre > 0 && !held && !u.instant(p) {
			loose = fmt.Sprintf("its hooks do not count: Pod %s has no post hook, so it was not held, and not all that it uses is of one snapshot: a policy with 'group: pod' makes one", p.Name)
		}
		is = is || pre > 0
	}
	return is && loose == "", loose
}

// tell has a backup count as application-consistent if it is.
func (u *unit) tell(t *task) {
	is, loose := u.ordered(t)
	if is {
		t.unhooked, t.backup.Status.Consistency = t.backup.Status.Consistency, Application
	} else if loose != "" {
		t.backup.note("%s", loose)
	}
}

// instant reports whether all claims of a Pod that the unit has are of one instant: there is one snapshot, of one volume or of a group.
func (u *unit) instant(p *corev1.Pod) bool {
	var first *task
	for _, t := range u.tasks {
		switch {
		case !slices.Contains(t.Pods, p):
		case t.choice.Action == policy.Kopia:
			return false
		case first == nil:
			first = t
		case t.cut == nil || t.cut != first.cut:
			return false
		}
	}
	return true
}

// payHooks runs the post hooks that a process which died owes, those of a run once. Only of Pods that are the same as then.
func (k *Keeper) payHooks(ctx context.Context, all []*Backup) error {
	type key struct {
		run, namespace, pod, container, command string
		i                                       int // the hooks of a unit are in all of its records, in one order
	}
	keyOf := func(b *Backup, i int) key {
		h := &b.Status.Hooks[i]
		return key{b.Spec.Run, b.Metadata.Namespace, h.Pod, h.Container, fmt.Sprint(h.Command), i}
	}
	paid := map[key]Hook{}
	for _, b := range all {
		for i, h := range b.Status.Hooks {
			if h.When == "post" && h.State != HookPending { // it died between the records
				paid[keyOf(b, i)] = h
			}
		}
	}
	for _, b := range all {
		owed := slices.ContainsFunc(b.Status.Hooks, func(h Hook) bool { return h.State == HookPending })
		if !owed {
			continue
		}
		for i := range b.Status.Hooks {
			h := &b.Status.Hooks[i]
			if h.State != HookPending {
				continue
			}
			at := keyOf(b, i)
			if was, ok := paid[at]; ok && h.When == "post" {
				*h = was
				continue
			}
			h.State = HookLeftOut
			if h.When == "post" {
				p, err := kube.Get[corev1.Pod](ctx, k.o.Cluster.Client, kube.Pods, b.Metadata.Namespace, h.Pod)
				if err != nil && kube.Lasting(err) == nil {
					h.State = HookPending
					return err // it stays owed
				}
				if err != nil {
					h.Error = err.Error()
				}
				if p != nil && string(p.UID) == h.UID && p.Status.Phase == corev1.PodRunning {
					k.o.Logger.Warn("a post hook is run that a daemon which ended owed", zap.String("pod", b.Metadata.Namespace+"/"+h.Pod), zap.String("backup", b.Metadata.Name))
					k.runHook(ctx, b.Metadata.Namespace, h)
				}
				paid[at] = *h
			}
		}
		if err := k.record(ctx, b, journal.Modified); err != nil {
			return err
		}
	}
	return nil
}
