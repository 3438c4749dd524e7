package cli

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/tidemark-backup/tidemark/cmd/internal/daemon"
	"github.com/tidemark-backup/tidemark/replay"
	"github.com/tidemark-backup/tidemark/volumes/hooks"
	"github.com/tidemark-backup/tidemark/volumes/kube"
)

// runPostHooks runs what Velero's annotations on restored Pods ask for, with the rights of the kubeconfig, tells what became of each, and
// records it.
func (e *execution) runPostHooks(ctx context.Context) error {
	wanted := e.plan.PostHooks()
	if e.record != nil {
		wanted = e.record.HooksOwed()
	}
	if len(wanted) == 0 {
		return nil
	}
	note := func(h *replay.Hooked, failed error) error {
		if e.record == nil {
			return nil
		}
		return e.record.NoteHook(h, !e.flags.hooks, failed)
	}
	if !e.flags.hooks {
		var err error
		for _, h := range wanted {
			err = errors.Join(err, note(&h, nil))
		}
		return err
	}
	cfg, err := daemon.LoadConfig(e.kube.kubeconfig, e.kube.context)
	if err != nil {
		return err
	}
	client, err := kube.New(cfg)
	if err != nil {
		return err
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	failed := 0
	var unrecorded error
	for _, h := range wanted {
		wg.Go(func() {
			var trouble error
			err := postHook(ctx, client, &h, func(pod string, done kube.Executed, err error) {
				mu.Lock()
				defer mu.Unlock()
				fmt.Fprintf(e.cmd.ErrOrStderr(), "hook in Pod %s/%s: %s\n", h.Namespace, pod, hookOutcome(done, err))
				switch {
				case err != nil:
					trouble = errors.Join(trouble, fmt.Errorf("in Pod %s: %w", pod, err))
				case done.Exit != 0: // its output may hold secrets, and is not kept
					trouble = errors.Join(trouble, fmt.Errorf("in Pod %s: exit status %d", pod, done.Exit))
				}
			})
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				fmt.Fprintf(e.cmd.ErrOrStderr(), "hook of %s: %v\n", &h, err)
			}
			if trouble = errors.Join(trouble, err); trouble != nil {
				failed++
			}
			unrecorded = errors.Join(unrecorded, note(&h, trouble))
		})
	}
	wg.Wait()
	if failed == 0 || unrecorded != nil {
		return unrecorded
	}
	if e.record == nil {
		return failure(ErrPartly, "everything is restored, and the hooks of %s failed", count(failed, "object"))
	}
	return failure(ErrPartly, "everything is restored, and the hooks of %s failed: '%s' runs them again", count(failed, "object"), e.command("restores", "resume"))
}

func hookOutcome(done kube.Executed, err error) string {
	switch {
	case err != nil:
		return "failed: " + err.Error()
	case done.Exit != 0:
		return fmt.Sprintf("failed: exit status %d: %s", done.Exit, text(done.Output))
	}
	return "done"
}

// postHook runs the hook in each Pod of an object, once its container runs.
func postHook(ctx context.Context, c *kube.Client, h *replay.Hooked, tell func(pod string, done kube.Executed, err error)) error {
	ran := map[string]bool{}
	wait := hooks.DefaultWait
	for end := time.Now().Add(wait); len(ran) < h.Replicas; {
		if time.Now().After(end) {
			return fmt.Errorf("after %s, %d of %d Pods run", wait, len(ran), h.Replicas)
		}
		pods, err := kube.List[corev1.Pod](ctx, c, kube.Pods, h.Namespace, labels.Set(h.Labels).String())
		if err != nil && ctx.Err() == nil {
			return err
		}
		for _, p := range pods {
			if h.Labels == nil && p.Name != h.Name || p.Labels["tidemark.dev/volume"] != "" {
				continue
			}
			hook, err := hooks.AfterRestore(p)
			if err != nil {
				return err
			}
			if hook == nil || ran[p.Name] || !runs(p, hook) {
				continue
			}
			if hook.Wait != wait {
				wait, end = hook.Wait, time.Now().Add(hook.Wait)
			}
			ran[p.Name] = true
			limited, cancel := context.WithTimeout(ctx, time.Duration(hook.Timeout))
			done, err := c.Exec(limited, p.Namespace, p.Name, hook.Container, hook.Command)
			cancel()
			tell(p.Name, done, err)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(500 * time.Millisecond):
		}
	}
	return nil
}

// runs reports whether the hook's container runs, and is ready if that is wanted.
func runs(p *corev1.Pod, h *hooks.Restored) bool {
	for _, s := range p.Status.ContainerStatuses {
		if s.Name == h.Container {
			return s.State.Running != nil && (!h.Ready || s.Ready)
		}
	}
	return false
}
