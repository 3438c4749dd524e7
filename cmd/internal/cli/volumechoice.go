package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/pflag"
	"go.uber.org/zap"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/cmd/internal/api"
	"github.com/tidemark-backup/tidemark/cmd/internal/daemon"
	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/replay"
	"github.com/tidemark-backup/tidemark/volumes"
	"github.com/tidemark-backup/tidemark/volumes/kube"
	"github.com/tidemark-backup/tidemark/volumes/mover"
	"github.com/tidemark-backup/tidemark/volumes/repository"
)

// volumeFlags say which content claims get back, and how it is written.
type volumeFlags struct {
	which   string
	nearest bool
	mover   moverFlags
}

// moverFlags say how movers are made from here.
type moverFlags struct {
	image, listen, address, pod string
}

func (f *volumeFlags) add(fs *pflag.FlagSet) {
	fs.StringVar(&f.which, "volumes", "before", "the content that claims get: before (the newest volume backup at or before the moment), nearest, none, or the NAME of a backup or run")
	fs.BoolVar(&f.nearest, "volumes-nearest", false, "the same as --volumes nearest")
	f.mover.add(fs)
}

func (f *moverFlags) add(fs *pflag.FlagSet) {
	fs.StringVar(&f.image, "mover-image", os.Getenv("TIDEMARK_IMAGE"), "with --archive: image with this program, for the Pods that write the content of volumes (default: $TIDEMARK_IMAGE)")
	fs.StringVar(&f.listen, "mover-listen", "", "with --archive: address to listen at for those Pods (default: a free port)")
	fs.StringVar(&f.address, "mover-address", "", "with --archive: this machine's address, as Pods see it (default: the one with which it reaches the API server)")
	fs.StringVar(&f.pod, "mover-pod", "", "with --archive: YAML file with what is to be merged into those Pods")
}

// choose picks the backup of each claim that belongs to the cut. The warning says which backups are not known.
func (f *volumeFlags) choose(ctx context.Context, src replay.Source, cut journal.Cut) (picked map[string]replay.Volume, warning string, err error) {
	if f.nearest {
		f.which = "nearest"
	}
	if f.which == "none" {
		return nil, "", nil
	}
	all, warning, err := newestRecords(ctx, src, cut)
	if err != nil {
		return nil, "", fmt.Errorf("read the records of volume backups (--volumes none does without): %w", err)
	}
	picked, err = f.pick(all, cut)
	return picked, warning, err
}

// newestRecords are the records of volume backups as they are now: one that was deleted since cannot be used. Where history has a hole
// before now, they are those of the newest moment at or after the cut that can be told.
func newestRecords(ctx context.Context, src replay.Source, cut journal.Cut) (all []*volumes.Backup, warning string, err error) {
	now, err := src.Resolve(ctx, replay.At{})
	if err == nil {
		// Records of backups have a counter of their own, and go by time; the clock may have gone on since.
		all, err = recordsAt(ctx, src, journal.Cut{Revision: now.Revision, Time: now.Time.Add(time.Hour)})
	}
	for last := (time.Time{}); ; {
		hole, ok := errors.AsType[*replay.RangeError](err)
		if !ok {
			return all, warning, err
		}
		at := hole.To
		if at.Time.Before(cut.Time) || at.Time.Equal(last) {
			at = cut
		}
		if at.Time.Equal(last) {
			return nil, "", err
		}
		last = at.Time
		warning = fmt.Sprintf("volume backups that were made or deleted after %s are not known: the history has a hole there, see 'tidemark verify'", stamp(at.Time))
		all, err = recordsAt(ctx, src, at)
	}
}

func recordsAt(ctx context.Context, src replay.Source, at journal.Cut) (all []*volumes.Backup, err error) {
	for e, err := range src.Fold(ctx, at, replay.Scope{Resources: []schema.GroupResource{volumes.Info.GroupResource()}}) {
		if err != nil {
			return nil, err
		}
		b, err := volumes.Parse(e.Object)
		if err != nil {
			return nil, err
		}
		all = append(all, b)
	}
	return all, nil
}

func (f *volumeFlags) pick(all []*volumes.Backup, cut journal.Cut) (map[string]replay.Volume, error) {
	volumes.Sort(all)
	q := volumes.PickRequest{At: cut.Time, Nearest: f.which == "nearest"}
	if f.which != "before" && f.which != "nearest" {
		q.Name = f.which
	}
	picked := volumes.Pick(all, q)
	if q.Name != "" && len(picked) == 0 {
		return nil, usage("--volumes: there is no volume backup or run %q whose content is whole: 'tidemark volumes list' shows what there is", q.Name)
	}
	out := map[string]replay.Volume{}
	for key, b := range picked {
		v := replay.Volume{Backup: b.Metadata.Name, Taken: b.Read(), Off: cut.Time.Sub(b.Read()), Files: b.Status.Content != nil}
		if b.Spec.Source != nil {
			v.Size = b.Spec.Source.Capacity
		}
		if h := b.Status.Snapshot; h != nil {
			v.Snapshot = &replay.VolumeSnapshot{Driver: h.Driver, Handle: h.ID, Size: h.Size, Class: h.Class, Secret: h.Secret, Mode: h.Mode, Group: h.Group, GroupClass: h.GroupClass, Members: h.Members}
		}
		out[key] = v
	}
	return out, nil
}

// fills reports whether a plan writes the content of volumes, and whether it might have to: where a snapshot is lost whose backup has files.
func fills(plan *replay.Plan) (does, might bool) {
	for _, it := range plan.Items {
		might = might || it.Action == replay.ActionRelease && it.Volume.Files
	}
	return plan.Count(replay.ActionFill) > 0, might
}

// filler is what writes the content of claims for a plan: the daemon, if it is the one of the target, or this process.
func (f *volumeFlags) filler(ctx context.Context, plan *replay.Plan, server *serverFlags, k *kubeFlags) (fill func(context.Context, replay.Filling, func(string)) error, done func(), err error) {
	var v api.Volumes
	if server.archive.url == "" {
		c, err := server.connect()
		if err != nil {
			return nil, nil, err
		}
		catalog, err := c.Ledgers(ctx)
		if err == nil && catalog.ClusterID != plan.Cluster {
			err = usage("the daemon writes the content of volumes in its own cluster, and this is another one: give --archive and --identity, and it is done from here; or --volumes none")
		}
		if err != nil {
			c.Close()
			return nil, nil, err
		}
		v, done = c, c.Close
	} else {
		var broker *mover.Broker
		if v, broker, err = f.mover.keeper(ctx, server, k); err != nil {
			return nil, nil, err
		}
		done = func() { _ = broker.Close() } // nobody is served any more
	}
	return func(ctx context.Context, q replay.Filling, tell func(string)) error {
		done, err := v.Fill(ctx, volumes.FillRequest{Backup: q.Volume.Backup, Namespace: q.Namespace, Claim: q.Claim, DeleteExtra: true, Used: q.Volume.Existing}, func(p repository.Progress) {
			if p.Waiting != "" {
				tell(text(p.Waiting))
				return
			}
			tell(fmt.Sprintf("%s, %s", counted(p.Files, "file"), humanize.IBytes(uint64(p.Bytes))))
		})
		if done.Missed > 0 {
			tell(fmt.Sprintf("%s owners or attributes could not be set, such as %s", humanize.Comma(done.Missed), done.MissedFirst[0]))
		}
		return err
	}, done, nil
}

// keeper writes content into claims from here, with the rights of the kubeconfig.
func (f *moverFlags) keeper(ctx context.Context, server *serverFlags, k *kubeFlags) (api.Volumes, *mover.Broker, error) {
	if f.image == "" {
		return nil, nil, usage("the content of volumes is written by a Pod with this program: name its image with --mover-image; or leave it out with --volumes none")
	}
	o, err := server.repository(ctx)
	if err != nil {
		return nil, nil, err
	}
	cfg, err := daemon.LoadConfig(k.kubeconfig, k.context)
	if err != nil {
		return nil, nil, err
	}
	client, err := kube.New(cfg)
	if err != nil {
		return nil, nil, err
	}
	settings := mover.Settings{Image: f.image, Owner: "cli"}
	if f.pod != "" {
		text, err := os.ReadFile(f.pod)
		if err == nil {
			settings.Pod, err = mover.ParsePod(text)
		}
		if err != nil {
			return nil, nil, usage("--mover-pod: %v", err)
		}
	}
	broker := mover.NewBroker(mover.BrokerOptions{Listen: f.listen, Host: daemon.MoverHost(f.address, cfg.Host)})
	return volumes.New(volumes.Options{
		Open: func(ctx context.Context, create bool) (*repository.Repository, error) {
			if create {
				return nil, errors.New("nothing is backed up from here")
			}
			return repository.Open(ctx, o)
		},
		Cluster: &volumes.Cluster{Client: client, Mover: &mover.Runner{Client: client, Broker: broker, Settings: settings, Logger: zap.NewNop()}},
	}), broker, nil
}
