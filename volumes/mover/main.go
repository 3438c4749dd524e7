package mover

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/tidemark-backup/tidemark/volumes/repository"
)

// Main is a mover, in its Pod: it asks the broker for the job, does it, and tells what became of it. kind is what
// the Pod was made for.
func Main(ctx context.Context, kind Kind) error {
	var text [3]string
	for i, name := range []string{urlFile, tokenFile, caFile} {
		b, err := os.ReadFile(filepath.Join(secretPath, name))
		if err != nil {
			return fmt.Errorf("a mover is started by Tidemark in a Pod of its own, and finds in %s where its job is: %w", secretPath, err)
		}
		text[i] = strings.TrimSpace(string(b))
	}
	s, err := newRemote(text[0], text[1], []byte(text[2]))
	if err != nil {
		return err
	}
	path := volumePath
	if _, err := os.Stat(devicePath); err == nil {
		path = devicePath
	}
	return run(ctx, s, kind, path, cachePath)
}

// run does the job of a broker.
func run(ctx context.Context, s *remote, kind Kind, path, cache string) error {
	job, err := ask[Job](ctx, s, "/job")
	if err != nil {
		return fmt.Errorf("ask for the job: %w", err)
	}
	if job.Kind != kind {
		return fmt.Errorf("the job is a %s, and this Pod was made for a %s", job.Kind, kind)
	}
	if err := s.goDirect(job.Direct); err != nil {
		return err
	}
	o, err := do(ctx, s, &job, path, cache)
	if errors.Is(err, errOver) {
		return err
	}
	if ctx.Err() != nil { // the Pod was deleted, or its node is drained: the job is not over, and another Pod goes on with it
		return context.Cause(ctx)
	}
	if err != nil {
		o.Error = err.Error()
	}
	return errors.Join(err, tell(ctx, s, "/done", o))
}

func do(ctx context.Context, s *remote, job *Job, path, cache string) (o Outcome, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go s.direct.tellMoves(ctx, time.Tick(aliveEvery), cancel)
	r, err := repository.Open(ctx, repository.Options{Store: s, Cluster: job.Cluster, Password: job.Password, CacheDir: cache, ReadOnly: job.Kind == Restore})
	if err != nil {
		return o, err
	}
	defer func() {
		if closeErr := r.Close(context.WithoutCancel(ctx)); err == nil {
			err = closeErr
		}
	}()
	progress := func(p repository.Progress) {
		if err := tell(ctx, s, "/progress", p); errors.Is(err, errOver) {
			cancel(err)
		}
	}
	if job.Kind == Restore {
		o.Restored, err = r.Restore(ctx, job.ID, path, repository.RestoreOptions{Path: job.Path, DeleteExtra: job.DeleteExtra, Parallel: job.Parallel, Progress: progress})
		return o, err
	}
	o.Result, err = r.Back(ctx, job.Source, path, repository.BackupOptions{
		Description: job.Description, Parallel: job.Parallel, Checkpoint: job.Checkpoint, Progress: progress, Blocks: job.Blocks, ReadAll: job.ReadAll,
		Tags: func() (map[string]string, error) { return ask[map[string]string](ctx, s, "/tags") },
	})
	return o, err
}
