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

// hooksHeld reports whether all pre hooks were run without an error, of which there is at least one.
func (k *Keeper) hooksHeld(u *unit) bool {
	n := 0
	for _, h := range u.tasks[0].backup.Status.Hooks {
		if h.When != "pre" {
			continue
		}
		if h.State != HookDone {
			return false
		}
		n++
	}
	return n > 0
}

// hasPost reports whether the Pods of a claim have post hooks: then something is held between them and the pre hooks.
func (k *Keeper) hasPost(t *task) bool {
	return slices.ContainsFunc(t.backup.Status.Hooks, func(h Hook) bool {
		return h.When == "post" && slices.ContainsFunc(t.Pods, func(p *corev1.Pod) bool { return p.Name == h.Pod })
	})
}

// payHooks runs the post hooks that a process which died owes, those of a run once. Only of Pods that are the same as then.
func (k *Keeper) payHooks(ctx context.Context, all []*Backup) error {
	type key struct{ run, namespace, pod, container, command string }
	paid := map[key]Hook{}
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
			at := key{b.Spec.Run, b.Metadata.Namespace, h.Pod, h.Container, fmt.Sprint(h.Command)}
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
