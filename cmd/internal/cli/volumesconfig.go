package cli

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/tidemark-backup/tidemark/cmd/internal/config"
	"github.com/tidemark-backup/tidemark/cmd/internal/daemon"
	"github.com/tidemark-backup/tidemark/compactor/schedule"
	"github.com/tidemark-backup/tidemark/volumes"
	"github.com/tidemark-backup/tidemark/volumes/hooks"
	"github.com/tidemark-backup/tidemark/volumes/mover"
	"github.com/tidemark-backup/tidemark/volumes/policy"
	"github.com/tidemark-backup/tidemark/volumes/repository"
)

// volumesOf is what the configuration says of volumes and cannot be changed while the daemon runs.
func volumesOf(c *config.Volumes) (v daemon.Volumes, err error) {
	if c == nil {
		return v, nil
	}
	defer func() {
		if err != nil {
			err = wrongAt(c.Line, fmt.Errorf("volumes: %w", err))
		}
	}()
	v = daemon.Volumes{Image: c.Image, Namespace: c.Namespace, Listen: c.Listen, Address: c.Address, Concurrency: c.Concurrency, PerNode: c.PerNode, ReadyTime: time.Duration(c.ReadyTimeout), StartTime: time.Duration(c.StartTimeout), Checkpoint: time.Duration(c.Checkpoint), Through: c.ThroughDaemon}
	v.Blocks = volumes.BlockOptions{Off: c.ChangedBlocks.Off, Account: c.ChangedBlocks.ServiceAccount, AuditEvery: c.ChangedBlocks.AuditEvery}
	if a := v.Blocks.Account; v.Blocks.AuditEvery < 0 || a != "" && strings.Count(a, "/") != 1 {
		return v, errors.New("changedBlocks: want serviceAccount: NAMESPACE/NAME, and auditEvery from 1 on")
	}
	if c.Concurrency < 0 || c.PerNode < 0 {
		return v, errors.New("concurrency and perNode: want numbers from 1 on, or nothing for the defaults")
	}
	if c.Listen != "" {
		_, port, err := net.SplitHostPort(c.Listen)
		if err == nil {
			_, err = strconv.ParseUint(port, 10, 16)
		}
		if err != nil {
			return v, fmt.Errorf("listen: %q: want HOST:PORT, or :PORT", c.Listen)
		}
	}
	for name, rate := range map[string]struct {
		text string
		into *int64
	}{"upload": {c.Upload, &v.Upload}, "download": {c.Download, &v.Download}} {
		if rate.text == "" {
			continue
		}
		bytes, err := size(name, rate.text)
		if err != nil {
			return v, err
		}
		*rate.into = int64(bytes)
	}
	if c.Pod != nil {
		text, err := yaml.Marshal(c.Pod)
		if err == nil {
			v.Pod, err = mover.ParsePod(text)
		}
		if err != nil {
			return v, fmt.Errorf("pod: %w", err)
		}
	}
	return v, nil
}

// volumesShown is the volumes' part of the configuration, with its defaults.
func volumesShown(c *config.Volumes) config.Volumes {
	v := config.Volumes{}
	if c != nil {
		v = *c
	}
	v.Concurrency, v.PerNode = cmp.Or(v.Concurrency, volumes.DefaultConcurrency), cmp.Or(v.PerNode, volumes.DefaultPerNode)
	v.ReadyTimeout, v.StartTimeout = cmp.Or(v.ReadyTimeout, config.Duration(volumes.DefaultReadyTime)), cmp.Or(v.StartTimeout, config.Duration(mover.DefaultStartTime))
	v.Checkpoint = cmp.Or(v.Checkpoint, config.Duration(repository.DefaultCheckpoint))
	v.ChangedBlocks.AuditEvery = cmp.Or(v.ChangedBlocks.AuditEvery, volumes.DefaultAuditEvery)
	return v
}

// volumesReload is what can be changed while it runs.
func volumesReload(c *config.Volumes) (r daemon.VolumesReload, err error) {
	names := map[string]bool{}
	velero := len(c.VeleroPolicies) > 0 // they may choose another action
	for i := range c.Policies {
		p, err := volumePolicy(&c.Policies[i])
		if err != nil {
			return r, wrongAt(c.Policies[i].Line, fmt.Errorf("volumes: policy %q: %w", c.Policies[i].Name, err))
		}
		if p.Name == "" || names[p.Name] {
			return r, wrongAt(c.Policies[i].Line, fmt.Errorf("volumes: every policy needs a name of its own, and %q is not one", p.Name))
		}
		if c := &c.Policies[i]; !velero && c.Group != "" && c.Group != string(policy.GroupLabel) && (p.Action == policy.Kopia || p.Action == policy.Skip) {
			return r, wrongAt(c.Line, fmt.Errorf("volumes: policy %q: group: %s: it is for snapshots, and action: %s takes none", c.Name, c.Group, c.Action))
		}
		names[p.Name] = true
		r.Policies = append(r.Policies, p)
	}
	for _, path := range c.VeleroPolicies {
		text, err := os.ReadFile(path)
		if err != nil {
			return r, usage("volumes: veleroPolicies: %v", err)
		}
		v, err := policy.ParseVelero(text)
		if err != nil {
			return r, usage("volumes: %s: %v", path, err)
		}
		r.Velero = append(r.Velero, v)
	}
	if c.Hooks != nil {
		text, err := yaml.Marshal(c.Hooks)
		if err != nil {
			return r, err
		}
		rules, err := hooks.Parse(text)
		if err != nil {
			return r, usage("volumes: %v", err)
		}
		r.Hooks = *rules
	}
	return r, nil
}

func volumePolicy(c *config.VolumePolicy) (p daemon.VolumePolicy, err error) {
	p.Policy = policy.Policy{Name: c.Name, Namespaces: c.Namespaces, StorageClasses: c.StorageClasses, KeepSnapshots: c.KeepSnapshots, SnapshotClass: c.SnapshotClass}
	if p.Action, err = policy.ParseAction(c.Action); err != nil {
		return p, err
	}
	if p.Group, err = policy.ParseGroup(c.Group); err != nil {
		return p, fmt.Errorf("group: %w", err)
	}
	if c.Selector != "" {
		if p.Selector, err = labels.Parse(c.Selector); err != nil {
			return p, err
		}
	}
	if c.Cron != "" {
		p.Spec = schedule.Spec{Name: c.Name, Cron: c.Cron, TimeZone: c.TimeZone, StartingDeadline: time.Duration(c.StartingDeadline), Suspend: c.Suspend}
		if _, err := schedule.Parse(p.Spec); err != nil {
			return p, err
		}
	}
	if c.Retention != nil {
		p.Retention, err = c.Retention.Policy()
	}
	return p, err
}
