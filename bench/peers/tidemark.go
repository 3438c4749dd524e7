package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"syscall"
	"time"

	"github.com/tidemark-backup/tidemark/compactor"
	"github.com/tidemark-backup/tidemark/deploy/localserver"
)

// tidemark is one daemon's turn.
type tidemark struct {
	*lab
	dir, bucket string
	kubeconfig  string
	process     *localserver.Process
	api         *http.Client
	profiles    profiles
}

func (l *lab) newTidemark(ctx context.Context, profileDir string) (t *tidemark, err error) {
	t = &tidemark{lab: l}
	if t.dir, t.bucket, err = l.turn(ctx, "tidemark"); err != nil {
		return nil, err
	}
	if t.kubeconfig, err = l.kubeconfig("tidemark"); err != nil {
		return nil, err
	}
	t.profiles = newProfiles(profileDir, fmt.Sprintf("%d-%d", len(l.objects), l.turns), filepath.Join(t.dir, "profile.sock"))
	socket := t.socket()
	t.api = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	return t, nil
}

func (t *tidemark) socket() string { return filepath.Join(t.dir, "tidemark.sock") }

// start starts the daemon with its default options and the S3 server as its archive.
func (t *tidemark) start() (err error) {
	args := []string{
		"run", "--kubeconfig", t.kubeconfig, "--data-dir", t.dir,
		"--archive", t.s3.URL(t.bucket, "bench"), "--archive-credentials", t.s3.CredentialsFile(),
	}
	t.process, err = localserver.Start(t.lab.tidemark, args, t.profiles.env(), filepath.Join(t.dir, "tidemark.log"))
	return err
}

func (t *tidemark) stop() {
	t.process.Stop(syscall.SIGTERM, 30*time.Second)
	t.process = nil
	t.api.CloseIdleConnections()
}

func (t *tidemark) subject() subject {
	return subject{tool: "tidemark", user: "tidemark", pid: t.process.Pid(), bucket: t.bucket}
}

// tidemarkStatus is what is used here of the daemon's answer to `tidemark status -o json`.
type tidemarkStatus struct {
	Totals struct {
		Events    float64
		DiskBytes float64
	}
	Catalog struct {
		From, To  struct{ Revision uint64 }
		Resources []struct {
			Group, Resource string
			Watermark       struct{ Revision uint64 }
		}
	}
	Archives []struct {
		ArchivedTo    struct{ Revision, Count uint64 }
		From          struct{ Revision uint64 }
		PendingEvents uint64
		Bytes         float64 // of all files, without those that were merged into others
		Error         string
	}
}

func (t *tidemark) status(ctx context.Context) (s tidemarkStatus, err error) {
	text, err := fetch(ctx, t.api, "http://tidemark/v1/status")
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal(text, &s)
}

// awaitArchived waits until all that the cluster has is in the archive. It asks seldom: the answers are work for
// the daemon that it has of nobody else.
func (t *tidemark) awaitArchived(ctx context.Context) error {
	return t.awaitEvery(ctx, 500*time.Millisecond, "the archive to have everything", func() (bool, error) {
		if _, err := tree(t.process.Pid()); err != nil {
			return false, fmt.Errorf("%w; see %s", err, filepath.Join(t.dir, "tidemark.log"))
		}
		s, err := t.status(ctx)
		if err != nil {
			return false, nil //nolint:nilerror // it does not answer yet
		}
		if s.Catalog.From.Revision == 0 || len(s.Archives) != 1 {
			return false, nil
		}
		a := s.Archives[0]
		return a.From.Revision > 0 && a.PendingEvents == 0, nil
	})
}

// awaitMerged waits until what was archived before is merged, which makes it smaller: the archive's growth is then of what comes after. Segments
// are merged after the stretch of time that they lie in, and when another comes.
func (t *tidemark) awaitMerged(ctx context.Context) error {
	if err := t.awaitArchived(ctx); err != nil {
		return err
	}
	before, err := t.retained(ctx)
	if err != nil {
		return err
	}
	stretch := compactor.Levels[1]
	over := time.Now().Truncate(stretch).Add(stretch + time.Second)
	if err := t.await(ctx, "the next stretch of time", func() (bool, error) { return time.Now().After(over), nil }); err != nil {
		return err
	}
	t.changes++
	if _, err := t.change(ctx, 0, t.changes<<20); err != nil {
		return err
	}
	if err := t.awaitArchived(ctx); err != nil {
		return err
	}
	var last float64
	since := time.Now()
	err = t.awaitEvery(ctx, 500*time.Millisecond, "the archive to be merged", func() (bool, error) {
		now, err := t.retained(ctx)
		if now != last {
			last, since = now, time.Now()
		}
		return time.Since(since) > 5*time.Second, err
	})
	t.say("%-14s %-18s from %.1f to %.1f KB", "tidemark", "merged", before/kilo, last/kilo)
	return err
}

// retained is how many bytes the archive takes. The bucket also has, for a while, what was merged into other files.
func (t *tidemark) retained(ctx context.Context) (float64, error) {
	s, err := t.status(ctx)
	if err != nil {
		return 0, err
	}
	if len(s.Archives) != 1 {
		return 0, fmt.Errorf("the daemon tells of %d archives", len(s.Archives))
	}
	return s.Archives[0].Bytes, nil
}

// snapshot takes a full snapshot. What it stores is counted from before on.
func (t *tidemark) snapshot(ctx context.Context, before float64) (map[string]float64, error) {
	r, err := t.run(ctx, nil, t.lab.tidemark, "snapshot", "create", "--server", "unix://"+t.socket())
	if err != nil {
		return nil, err
	}
	now, err := t.retained(ctx)
	if err != nil {
		return nil, err
	}
	values := r.values()
	values["stored_bytes"] = now - before
	return values, nil
}

// daemonFlags ask the running daemon for what is restored; bucketFlags take it out of the bucket alone, which is encrypted for the key
// that the daemon made at its first start.
func (t *tidemark) daemonFlags() []string { return []string{"--server", "unix://" + t.socket()} }

func (t *tidemark) bucketFlags() []string {
	return []string{"--archive", t.s3.URL(t.bucket, "bench"), "--archive-credentials", t.s3.CredentialsFile(), "--identity", filepath.Join(t.dir, "archive.key")}
}

// restore restores a namespace as it was at a revision, under the name to.
func (t *tidemark) restore(ctx context.Context, revision uint64, from, to string, source []string) (map[string]float64, error) {
	args := append([]string{
		"restore", "-n", from, "--at", fmt.Sprintf("rv:%d", revision), "--yes",
		"--kubeconfig", t.kubeconfig, "--records", filepath.Join(t.dir, "restores"),
	}, source...)
	if from != to {
		args = append(args, "--namespace-mappings", from+":"+to)
	}
	r, err := t.run(ctx, nil, t.lab.tidemark, args...)
	return r.values(), err
}
