package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/tidemark-backup/tidemark/deploy/localserver"
)

// informer is the turn of the naive alternative, bench/peers/recorder, or of a part of it.
type informer struct {
	*lab
	tool, mode string
	dir        string
	kubeconfig string
	process    *localserver.Process
}

// informerModes are what bench/peers/recorder can do, by the tool's name in the results.
var informerModes = map[string]string{"recorder": "record", "informer": "inform", "reader": "read"}

func (l *lab) newInformer(ctx context.Context, tool string) (r *informer, err error) {
	r = &informer{lab: l, tool: tool, mode: informerModes[tool]}
	if r.dir, _, err = l.turn(ctx, tool); err != nil {
		return nil, err
	}
	r.kubeconfig, err = l.kubeconfig(tool)
	return r, err
}

func (r *informer) file() string { return filepath.Join(r.dir, "objects.jsonl") }
func (r *informer) log() string  { return filepath.Join(r.dir, "recorder.log") }

func (r *informer) start() (err error) {
	r.process, err = localserver.Start(r.recorder, []string{"--kubeconfig", r.kubeconfig, "--file", r.file(), "--mode", r.mode}, nil, r.log())
	return err
}

func (r *informer) stop() {
	r.process.Stop(syscall.SIGTERM, time.Second)
	r.process = nil
}

func (r *informer) subject() subject {
	return subject{tool: r.tool, user: r.tool, pid: r.process.Pid()}
}

// synced is what the recorder says after each fsync.
type synced struct {
	listed   bool // all first lists are there
	objects  int
	revision uint64
	at       time.Time
}

func (r *informer) said() (all []synced, err error) {
	f, err := os.Open(r.log())
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readSaid(f)
}

func readSaid(log io.Reader) (all []synced, err error) {
	var last synced
	for in := bufio.NewScanner(log); in.Scan(); {
		var nanoseconds int64
		if strings.HasPrefix(in.Text(), "listed") { // nothing need come after it
			last.listed = true
		} else if _, err := fmt.Sscanf(in.Text(), "synced %d %d %d", &last.objects, &last.revision, &nanoseconds); err != nil {
			continue // what the client library complains about
		} else {
			last.at = time.Unix(0, nanoseconds)
		}
		all = append(all, last)
	}
	return all, nil
}

// awaitListed waits until all that the cluster has is in the file.
func (r *informer) awaitListed(ctx context.Context) error {
	return r.await(ctx, "the recorder's first lists", func() (bool, error) {
		if _, err := tree(r.process.Pid()); err != nil {
			return false, fmt.Errorf("%w; see %s", err, r.log())
		}
		all, err := r.said()
		return len(all) > 0 && all[len(all)-1].listed && all[len(all)-1].objects >= len(r.objects), err
	})
}

// written is how many objects it has written, and in how many bytes.
func (r *informer) written() (objects int, bytes int64, err error) {
	all, err := r.said()
	if err != nil || len(all) == 0 {
		return 0, 0, err
	}
	for _, s := range all {
		objects = max(objects, s.objects)
	}
	if r.mode != "record" {
		return objects, 0, nil
	}
	info, err := os.Stat(r.file())
	if err != nil {
		return 0, 0, err
	}
	return objects, info.Size(), nil
}
