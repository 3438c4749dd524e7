package daemon

import (
	"time"

	"go.uber.org/zap"

	"github.com/tidemark-backup/tidemark/compactor/retention"
	"github.com/tidemark-backup/tidemark/compactor/schedule"
	"github.com/tidemark-backup/tidemark/volumes"
	"github.com/tidemark-backup/tidemark/volumes/hooks"
	"github.com/tidemark-backup/tidemark/volumes/policy"
)

// Options configure a daemon. DataDir must be set.
type Options struct {
	// Kubeconfig is the file to use; empty means KUBECONFIG, ~/.kube/config, or the
	// service account of the pod it runs in.
	Kubeconfig string
	// Context is the kubeconfig's context; empty means its current one.
	Context string
	// DataDir holds the journal, its key and the socket. It is made with mode 0700.
	DataDir string
	// Listen are addresses besides DataDir/tidemark.sock: unix:///path or https://host:port.
	Listen []string
	// TLSCert, TLSKey and TokenFile are files that https listeners need.
	TLSCert, TLSKey, TokenFile string
	// MetricsListen is a loopback host:port for /metrics, /healthz and /readyz over plain http.
	MetricsListen string
	// Window is how long history is kept locally. Zero: for ever.
	Window time.Duration
	// KeyFile seals Secrets at rest. Default: in DataDir, made at the first start.
	KeyFile string
	// MinFree is the free disk space, in bytes, below which recording pauses. Zero: the journal's default.
	MinFree uint64
	// Include and Exclude are resource patterns such as "events" or "*.example.com".
	Include, Exclude []string
	// Namespaces limits recording to these. Nil: all.
	Namespaces []string
	// Selector limits recording to objects with these labels. Empty: all.
	Selector string
	// Archives are where history is archived.
	Archives []Archive
	// Retention says what archives keep. The zero Policy keeps everything.
	Retention retention.Policy
	// Schedules are snapshots that are taken at times.
	Schedules []Schedule
	// Volumes says how the content of volumes is backed up.
	Volumes Volumes
	// Audit says how history is compared with the cluster.
	Audit Audit
	// Reload brings what is to be different from now on. Nil: nothing ever.
	Reload <-chan Reloadable
	// Version is told in the status.
	Version string
	Logger  *zap.Logger // nil: none
	// Clock tells the time. Default: time.Now.
	Clock func() time.Time
}

// Audit says how history is compared with the cluster; see audit.Options for what zero means.
type Audit struct {
	Off   bool
	Every time.Duration
	Limit time.Duration
	Page  int64
	Rate  int
}

// Volumes says how the content of volumes is backed up.
type Volumes struct {
	Image         string // of movers
	Namespace     string // where claims that are made of snapshots are mounted; empty: the claim's own
	Listen        string // where movers are served; empty: a free port
	Address       string // where Pods reach that; empty: see MoverHost
	Concurrency   int
	PerNode       int
	ReadyTime     time.Duration // see volumes.Cluster
	StartTime     time.Duration // of movers' Pods, see mover.Settings
	Checkpoint    time.Duration // see mover.Settings
	Blocks        volumes.BlockOptions
	Upload        int64  // bytes per second; 0: no limit
	Download      int64  // bytes per second; 0: no limit
	Through       bool   // movers do not go to the store themselves
	Pod           []byte // patch of movers' Pods
	VolumesReload        // what can be changed while it runs
}

// VolumesReload is what can be changed of Volumes while the daemon runs.
type VolumesReload struct {
	Policies []VolumePolicy
	Velero   []*policy.Velero
	Hooks    hooks.Rules
}

// VolumePolicy is a policy with its schedule and what is kept of its backups.
type VolumePolicy struct {
	policy.Policy
	Spec      schedule.Spec // no Cron: it has no schedule
	Retention retention.Policy
}
