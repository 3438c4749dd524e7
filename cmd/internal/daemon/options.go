package daemon

import (
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/tidemark-backup/tidemark/compactor/retention"
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
	// Reload brings what is to be different from now on. Nil: nothing ever.
	Reload <-chan Reloadable
	// Version is told in the status.
	Version string
	Logger  *zap.Logger // nil: none
	// Clock tells the time. Default: time.Now.
	Clock func() time.Time
}

// check finds what contradicts itself before anything is opened.
func (o *Options) check() error {
	if o.DataDir == "" {
		return fmt.Errorf("no data directory: give one with --data-dir DIR")
	}
	return nil
}
