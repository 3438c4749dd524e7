package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"k8s.io/client-go/rest"

	"github.com/tidemark-backup/tidemark/bench/soak/checker"
	"github.com/tidemark-backup/tidemark/deploy/localcluster"
	"github.com/tidemark-backup/tidemark/deploy/localdisk"
	"github.com/tidemark-backup/tidemark/deploy/locals3"
	"github.com/tidemark-backup/tidemark/deploy/localserver"
)

const (
	bucket  = "soak"
	prefix  = "archive"
	minFree = 64 << 20 // of the daemon; a full disk leaves less
	window  = "4m"     // of the journal: short, so that a soak of minutes sees it trimmed
)

// rig is everything that runs: the recorded cluster and a scratch one, kwok, the object store and its proxy, the
// daemon and its disk.
type rig struct {
	dir, program string
	clock        bool // the program's clock can be set
	log          *actions

	cluster, scratch *localcluster.Cluster
	store            *locals3.Server
	proxy            *proxy
	disk             *localdisk.Disk // nil: this machine cannot
	kwokBin          string
	kwok             *localserver.Process

	mu     sync.Mutex // guards the daemon
	daemon *localserver.Process
	wanted bool // it is to run: when it does not, that is a bug
	fell   bool // it did not, once
	starts int
}

// newRig starts everything. What it started is in the rig also when it fails; close ends it.
func newRig(ctx context.Context, o options, clock bool, log *actions, out io.Writer) (*rig, error) {
	dir, seed := o.dir, o.seed
	r := &rig{dir: dir, program: o.program, clock: clock, log: log}
	err := r.setClock(0)
	if err != nil {
		return r, err
	}
	if r.kwokBin, err = kwokBinary(ctx, out); err != nil {
		return r, err
	}
	if r.cluster, err = localcluster.Start(ctx, localcluster.Options{Dir: filepath.Join(dir, "cluster"), Keep: true, Scheduler: true, Output: out}); err != nil {
		return r, err
	}
	if r.scratch, err = localcluster.Start(ctx, localcluster.Options{Dir: filepath.Join(dir, "scratch"), Keep: true, NoControllers: true, Output: out}); err != nil {
		return r, err
	}
	if r.store, err = locals3.Start(ctx, locals3.Options{Dir: filepath.Join(dir, "store"), Keep: true, Output: out}); err != nil {
		return r, err
	}
	if err := r.store.MakeBucket(ctx, bucket, false); err != nil {
		return r, err
	}
	if r.proxy, err = newProxy(r.store.Endpoint(), seed); err != nil {
		return r, err
	}
	if localdisk.Possible() {
		if r.disk, err = localdisk.New(ctx, filepath.Join(dir, "disk.img"), filepath.Join(dir, "disk")); err != nil {
			return r, fmt.Errorf("make a disk for the daemon: %w", err)
		}
	} else if err := os.Mkdir(filepath.Join(dir, "disk"), 0o700); err != nil {
		return r, err
	}
	if r.kwok, err = startKwok(r.kwokBin, dir, r.cluster); err != nil {
		return r, err
	}
	return r, r.startDaemon()
}

// data is the daemon's data directory.
func (r *rig) data() string { return filepath.Join(r.dir, "disk", "data") }

// archiveArgs name the archive, past the proxy or not.
func (r *rig) archiveArgs(proxied bool) []string {
	url := r.store.URL(bucket, prefix)
	if proxied {
		url = strings.Replace(url, strings.TrimPrefix(r.store.Endpoint(), "http://"), r.proxy.addr, 1)
		url = strings.Replace(url, strings.ReplaceAll(strings.TrimPrefix(r.store.Endpoint(), "http://"), ":", "%3A"), r.proxy.addr, 1)
	}
	return []string{"--archive", url, "--archive-credentials", r.store.CredentialsFile()}
}

// startDaemon starts the daemon unless it runs.
func (r *rig) startDaemon() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.look()
	r.wanted = true
	if r.daemon.Running() {
		return nil
	}
	args := append([]string{
		"run", "--kubeconfig", r.cluster.Kubeconfig(), "--data-dir", r.data(), "--seal-interval", "1s", "--window", window,
		"--min-free", fmt.Sprint(minFree), "--log-format", "json",
	}, r.archiveArgs(true)...)
	var err error
	r.daemon, err = localserver.Start(r.program, args, []string{"HOME=" + r.dir, "TZ=UTC", clockEnv + "=" + filepath.Join(r.dir, "clock")}, filepath.Join(r.dir, "daemon.log"))
	r.starts++
	return err
}

// stopDaemon ends it; it stays down until startDaemon.
func (r *rig) stopDaemon(sig syscall.Signal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.look()
	r.wanted = false
	r.daemon.Stop(sig, 30*time.Second)
}

// losePower ends the daemon and loses what its disk has not synced. Where it has no disk of its own, it is only killed.
func (r *rig) losePower() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.look()
	r.wanted = false
	var err error
	if r.disk != nil && r.daemon.Running() {
		err = syscall.Kill(r.daemon.Pid(), syscall.SIGSTOP) // nothing is done between the cut and its end
	}
	if r.disk != nil {
		err = errors.Join(err, r.disk.CutPower())
	}
	r.daemon.Stop(syscall.SIGKILL, 30*time.Second)
	if r.disk != nil && err == nil {
		err = r.disk.Mount()
	}
	return err
}

func (r *rig) daemonPid() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.daemon.Running() {
		return 0
	}
	return r.daemon.Pid()
}

// daemonFell reports whether the daemon ended though nobody wanted it to.
func (r *rig) daemonFell() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.look()
	return r.fell
}

// look notes whether the daemon ended by itself: before anything starts or stops it, which would hide that. r.mu is held.
func (r *rig) look() { r.fell = r.fell || r.wanted && !r.daemon.Running() }

// listening reports whether the daemon takes questions.
func (r *rig) listening() error {
	c, err := net.DialTimeout("unix", r.socket(), 5*time.Second)
	if err != nil {
		return fmt.Errorf("the daemon does not listen: %w", err)
	}
	return c.Close()
}

func (r *rig) socket() string { return filepath.Join(r.data(), "tidemark.sock") }

// source is Tidemark as a user asks it.
func (r *rig) source(archive bool) *checker.Source {
	s := &checker.Source{
		Name: "the daemon", Binary: r.program, Dir: r.dir, Env: []string{"HOME=" + r.dir, "TZ=UTC", "KUBECONFIG=" + os.DevNull},
		Args: []string{"--server", "unix://" + r.socket()},
	}
	if archive {
		s.Name, s.Archive = "the archive alone", true
		s.Args = r.archiveArgs(false)
		s.Env = append(s.Env, "TIDEMARK_IDENTITY="+filepath.Join(r.dir, "archive.key"))
	}
	return s
}

// keepKey puts the archive's key where it should be kept: apart from the daemon's disk.
func (r *rig) keepKey() error {
	b, err := os.ReadFile(filepath.Join(r.data(), "archive.key"))
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(r.dir, "archive.key"), b, 0o600)
}

// client is the checker's way to a cluster.
func client(c *rest.Config) (*checker.Client, error) {
	return checker.NewClient(c.Host, c.CAData, c.CertData, c.KeyData)
}

// chainDir is the archive as the store keeps it on its disk.
func (r *rig) chainDir(clusterID string) string {
	return filepath.Join(r.store.Dir(), "data", bucket, prefix, clusterID)
}

// healthy reports whether the API server answers that it is ready.
func (r *rig) healthy(ctx context.Context) error {
	config := r.cluster.Config()
	config.Timeout = 5 * time.Second
	c, err := rest.HTTPClientFor(config)
	if err != nil {
		return err
	}
	defer c.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, config.Host+"/readyz", nil)
	if err != nil {
		return err
	}
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New("the API server is not ready: " + resp.Status)
	}
	return nil
}

// keep copies the journal and its key out of the disk, which goes with this process.
func (r *rig) keep() error {
	if err := os.Remove(r.socket()); err != nil && !errors.Is(err, fs.ErrNotExist) { // a socket cannot be copied
		return err
	}
	return os.CopyFS(filepath.Join(r.dir, "journal"), os.DirFS(filepath.Join(r.dir, "disk")))
}

// close ends everything. Files stay.
func (r *rig) close(kept bool) error {
	var errs []error
	r.stopDaemon(syscall.SIGKILL)
	r.kwok.Stop(syscall.SIGKILL, time.Second)
	if r.disk != nil {
		if kept {
			errs = append(errs, r.disk.Free(), r.keep())
		}
		errs = append(errs, r.disk.Close())
	}
	if r.proxy != nil {
		r.proxy.close()
	}
	if r.store != nil {
		errs = append(errs, r.store.Stop())
	}
	for _, c := range []*localcluster.Cluster{r.cluster, r.scratch} {
		if c != nil {
			errs = append(errs, c.Stop())
		}
	}
	return errors.Join(errs...)
}
