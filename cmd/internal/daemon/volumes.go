package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"filippo.io/age"
	"go.uber.org/zap"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/cmd/internal/api"
	"github.com/tidemark-backup/tidemark/compactor"
	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/compactor/retention"
	"github.com/tidemark-backup/tidemark/compactor/schedule"
	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/replay"
	"github.com/tidemark-backup/tidemark/volumes"
	"github.com/tidemark-backup/tidemark/volumes/kube"
	"github.com/tidemark-backup/tidemark/volumes/mover"
	"github.com/tidemark-backup/tidemark/volumes/repository"
)

// volumesCache is the directory in the data directory that keeps indexes of the repository.
const volumesCache = "volumes.cache"

// maintainEvery is how often the repository of volumes is asked what is due.
const maintainEvery = time.Hour

// settleAgain is the longest time until what a daemon before this one left is looked at again.
const settleAgain = time.Minute

// newKeeper keeps the content of volumes beside the archive of a shipper, with the archive's keys.
func (d *daemon) newKeeper(l Archive, s *compactor.Shipper, recipients []age.Recipient, identities []age.Identity) (*volumes.Keeper, error) {
	lock, compliance := l.Lock, l.Compliance
	open := sync.OnceValues(func() (archive.Store, error) {
		store, err := archive.OpenStore(context.Background(), l.URL, l.Store)
		if err != nil {
			return nil, err
		}
		return repository.Limited(store, d.o.Volumes.Upload, d.o.Volumes.Download), nil
	})
	cache := filepath.Join(d.o.DataDir, volumesCache)
	if err := repository.CleanCache(cache); err != nil {
		d.o.Logger.Warn("what a daemon before this one left in the cache of volume backups cannot be removed", zap.Error(err))
	}
	cluster, err := d.movers()
	if err != nil {
		return nil, err
	}
	k := volumes.New(volumes.Options{
		Cluster: cluster,
		Open: func(ctx context.Context, create bool) (*repository.Repository, error) {
			store, err := open()
			if err != nil {
				return nil, err
			}
			id := d.journal.ClusterID()
			if id == "" {
				return nil, errors.New("the daemon has not reached its cluster yet: see 'tidemark status'")
			}
			o := repository.Options{
				Store: store, Cluster: id, Identities: identities, Recipients: recipients, Lock: lock, Compliance: compliance,
				CacheDir: cache,
			}
			if create {
				return repository.Create(ctx, o)
			}
			return repository.Open(ctx, o)
		},
		Record: func(ctx context.Context, e journal.Event) error { return d.journal.Record(ctx, volumes.Info, e) },
		Recorded: func(ctx context.Context) iter.Seq2[journal.Event, error] {
			now := journal.Cut{Revision: d.journal.Newest().Revision, Time: d.o.Clock().Add(time.Hour)} // the journal's clock may be a little ahead
			return d.local.Fold(ctx, now, replay.Scope{Resources: []schema.GroupResource{volumes.Info.GroupResource()}})
		},
		Age: func() (time.Duration, error) {
			if a := s.Archive(); a != nil {
				return a.Age(), nil
			}
			return 0, fmt.Errorf("archive %s, which counts it, is not open: see 'tidemark status'", l.Name)
		},
		Fence: d.capture.Fence, Clock: d.o.Clock, Logger: d.o.Logger,
	})
	d.volumes = k
	d.setPolicies(d.o.Volumes.VolumesReload)
	return k, nil
}

// movers is what claims are backed up with.
func (d *daemon) movers() (*volumes.Cluster, error) {
	v := &d.o.Volumes
	client, err := kube.New(d.cluster)
	if err != nil {
		return nil, err
	}
	d.broker = mover.NewBroker(mover.BrokerOptions{Listen: v.Listen, Host: MoverHost(v.Address, d.cluster.Host), Spool: d.o.DataDir, Through: v.Through, Logger: d.o.Logger.Named("movers")})
	image := cmp.Or(v.Image, os.Getenv("TIDEMARK_IMAGE"))
	return &volumes.Cluster{
		Client: client, Namespace: v.Namespace, Concurrency: v.Concurrency, PerNode: v.PerNode, ReadyTime: v.ReadyTime, Blocks: v.Blocks,
		Mover: &mover.Runner{Client: client, Broker: d.broker, Settings: mover.Settings{Image: image, Pod: v.Pod, Owner: "daemon", StartTimeout: v.StartTime, Checkpoint: v.Checkpoint}, Logger: d.o.Logger.Named("movers")},
	}, nil
}

// MoverHost is where Pods reach this process: as it was told, or the address of the Pod that it runs in, or the one with which it
// reaches the API server.
func MoverHost(told, server string) string {
	if told = cmp.Or(told, os.Getenv("POD_IP")); told != "" {
		return told
	}
	u, err := url.Parse(server)
	if err != nil {
		return ""
	}
	c, err := net.Dial("udp", net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "443"))) // nothing is sent by this
	if err != nil {
		return ""
	}
	defer c.Close()
	host, _, _ := net.SplitHostPort(c.LocalAddr().String())
	return host
}

// setPolicies says what is done with volumes from now on.
func (d *daemon) setPolicies(r VolumesReload) {
	d.policies.Store(&r.Policies)
	if d.volumes == nil {
		return
	}
	p := volumes.Policies{Velero: r.Velero, Hooks: r.Hooks}
	for _, v := range r.Policies {
		p.Policies = append(p.Policies, v.Policy)
	}
	d.volumes.SetPolicies(p)
}

// volumePolicies are those that hold now.
func (d *daemon) volumePolicies() []VolumePolicy {
	if p := d.policies.Load(); p != nil {
		return *p
	}
	return d.o.Volumes.Policies
}

// backVolumes backs up the claims of a policy, and lets go of backups that it does not keep.
func (d *daemon) backVolumes(ctx context.Context, policy string, at time.Time) {
	log := d.o.Logger.Named("schedules").With(zap.String("policy", policy))
	if d.volumes == nil {
		log.Error("volumes are not backed up: " + noKeeper)
		return
	}
	m, err := d.volumes.BackClaims(ctx, volumes.ClaimsRequest{
		Policy: policy, Run: policy + "-" + at.UTC().Format("20060102150405"), Origin: volumes.Scheduled(policy),
	}, nil)
	if err != nil {
		log.Error("a scheduled volume backup failed, as a whole or in part; the next run makes another", zap.Error(err))
	}
	if m != nil {
		log.Info("volumes were backed up", zap.Int("backups", len(m.Backups)), zap.Int("skipped", len(m.Skipped)))
	}
	if err := d.retainVolumes(ctx); err != nil && ctx.Err() == nil {
		log.Warn("old volume backups could not all be deleted; it will be tried again", zap.Error(err))
	}
}

// retainVolumes deletes the backups whose TTL is over, and those that the retention of their policies does not keep.
func (d *daemon) retainVolumes(ctx context.Context) error {
	rules := map[string]retention.Policy{}
	for _, p := range d.volumePolicies() {
		rules[p.Name] = p.Retention
	}
	_, err := d.volumes.Retain(ctx, rules)
	return err
}

// volumeStatus tells how the backups of volumes fare: by policy and driver, and of each policy with a schedule at least that there is none.
func (d *daemon) volumeStatus(ctx context.Context) (all []api.VolumesStatus, err error) {
	var figures []volumes.Figures
	if d.volumes != nil {
		if figures, err = d.volumes.Figures(ctx); err != nil {
			return nil, err
		}
	}
	policies := d.volumePolicies()
	for _, p := range policies {
		if p.Spec.Cron != "" && !slices.ContainsFunc(figures, func(f volumes.Figures) bool { return f.Policy == p.Name }) {
			figures = append(figures, volumes.Figures{Policy: p.Name})
		}
	}
	for _, f := range figures {
		s := api.VolumesStatus{Figures: f}
		for _, p := range policies {
			if p.Name == f.Policy {
				s.Limit = ageLimit(p.Spec, f)
			}
		}
		all = append(all, s)
	}
	return all, nil
}

// ageLimit is how old a claim's newest backup may be: two runs of the schedule, and as a run takes its time, and the next one may have to wait for it, twice what
// the last one took. Zero: there is no schedule, so nothing is promised.
func ageLimit(s schedule.Spec, f volumes.Figures) time.Duration {
	if s.Cron == "" || s.Suspend || f.Newest.IsZero() {
		return 0
	}
	parsed, err := schedule.Parse(s)
	if err != nil { // it was refused when the configuration was read
		return 0
	}
	return parsed.Next(parsed.Next(f.Newest)).Sub(f.Newest) + 2*f.LastDuration
}

// volumeWarnings tell of policies that cannot do anything.
func (d *daemon) volumeWarnings() (warnings []string) {
	if d.volumes != nil {
		return nil
	}
	for _, p := range d.volumePolicies() {
		if p.Spec.Cron != "" {
			warnings = append(warnings, "policy "+p.Name+" backs no volumes up: "+noKeeper)
		}
	}
	return warnings
}

// noKeeper is why there is none.
const noKeeper = "no archive can be read by the daemon, and their content is kept beside one"

// keepVolumes ends what a daemon before this one left, and lets the repository do what is due.
func (d *daemon) keepVolumes(ctx context.Context) error {
	for wait := time.Second; ; wait = min(2*wait, settleAgain) {
		err := d.volumes.Settle(ctx)
		if err == nil {
			break
		}
		if ctx.Err() == nil {
			level := zap.WarnLevel
			if !d.capture.Status().Connected { // that is the cause, and it has been told
				level = zap.DebugLevel
			}
			d.o.Logger.Log(level, "volume backups that were cut off cannot be looked at; it will be tried again", zap.Error(err), zap.Duration("in", wait))
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil
		}
	}
	d.finishDeletes(ctx)
	tick := time.NewTicker(maintainEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		if err := d.retainVolumes(ctx); err != nil && ctx.Err() == nil {
			d.o.Logger.Warn("old volume backups could not all be deleted; it will be tried again", zap.Error(err), zap.Duration("in", maintainEvery))
		}
		d.finishDeletes(ctx)
		if _, err := d.volumes.Maintain(ctx, repository.Maintenance{}); err != nil && ctx.Err() == nil {
			d.o.Logger.Warn("the repository of volumes could not be maintained; it will be tried again", zap.Error(err), zap.Duration("in", maintainEvery))
		}
	}
}

// finishDeletes removes what is left of backups that were being deleted.
func (d *daemon) finishDeletes(ctx context.Context) {
	if err := d.volumes.FinishDeletes(ctx); err != nil && ctx.Err() == nil {
		d.o.Logger.Warn("volume backups whose deletion was cut off could not all be deleted; it will be tried again", zap.Error(err), zap.Duration("in", maintainEvery))
	}
}
