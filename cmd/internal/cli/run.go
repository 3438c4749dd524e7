package cli

import (
	"errors"
	"fmt"
	"math"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/tidemark-backup/tidemark/cmd/internal/config"
	"github.com/tidemark-backup/tidemark/cmd/internal/daemon"
	"github.com/tidemark-backup/tidemark/replay"
)

// runFlags are the flags of run that need reading before they are options.
type runFlags struct {
	daemon.Options
	kube                     kubeFlags
	minFree, memory, window  string
	logLevel, logFormat      string
	include, exclude, spaces []string
	archive                  archiveFlags
	retention                retentionFlags
	config                   string
	from                     string        // the configuration file that was read
	taken                    []config.Flag // flags that have their values of it
}

func newRun(env Env) *cobra.Command {
	var f *runFlags
	return newRunWith(env, &f)
}

// newRunWith also gives the flags, for those who look at them without running anything.
func newRunWith(env Env, flags **runFlags) *cobra.Command {
	f := &runFlags{}
	*flags = f
	cmd := &cobra.Command{
		Use:     "run",
		GroupID: "operate",
		Short:   "Run the daemon: record a cluster until stopped",
		Long: `Run the daemon: record every change of a cluster until stopped (SIGTERM, SIGINT: a clean stop).

The journal, its key and the socket of the API live in the data directory; one daemon at a
time can use it. Every few seconds what is new goes to the archive, encrypted: give --archive a bucket, and
losing the machine loses seconds. Without --archive it is a directory in the data directory. Keep the
archive's key safe and apart: without it the archive cannot be read by anybody.
When the API server cannot be reached the daemon keeps trying and answers from what it has;
when the disk is full it pauses recording and 'tidemark status' says so.`,
		Example: `  tidemark run --kubeconfig ~/.kube/config --data-dir /var/lib/tidemark
  tidemark run --archive s3://backups/prod --recipient age1...
  tidemark run --exclude events,leases.coordination.k8s.io,'*.metrics.k8s.io'
  tidemark run --listen https://0.0.0.0:8443 --tls-cert tls.crt --tls-key tls.key --token-file token`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f.Version = env.Version
			return f.inFile(f.run(cmd))
		},
	}
	f.kube.add(cmd)
	fs := cmd.Flags()
	fs.StringVar(&f.DataDir, "data-dir", "", "directory of the journal (default: $TIDEMARK_DATA_DIR, else $XDG_DATA_HOME/tidemark, else ~/.local/share/tidemark)")
	fs.StringArrayVar(&f.Listen, "listen", nil, "serve the API here as well as on DATA-DIR/tidemark.sock: unix:///PATH or https://HOST:PORT; repeatable")
	fs.StringVar(&f.TLSCert, "tls-cert", "", "certificate for https listeners (PEM file)")
	fs.StringVar(&f.TLSKey, "tls-key", "", "key for https listeners (PEM file)")
	fs.StringVar(&f.TokenFile, "token-file", "", "file with the token that https clients must send")
	fs.StringVar(&f.MetricsListen, "metrics-listen", "", "serve /metrics, /healthz and /readyz over plain http on this loopback HOST:PORT")
	fs.StringVar(&f.window, "window", "30d", "keep this much history locally; the newest version of what lives is always kept; 0: everything")
	fs.StringVar(&f.KeyFile, "key-file", "", "key that seals Secrets in the journal (default: DATA-DIR/journal.key, made at the first start)")
	fs.StringVar(&f.minFree, "min-free", "256Mi", "pause recording while the disk has less free space than this")
	fs.StringSliceVar(&f.include, "include", nil, "record only these resources, such as deployments.apps or '*.example.com' (default: all)")
	fs.StringSliceVar(&f.exclude, "exclude", nil, "do not record these resources (default: events and leases)")
	fs.StringSliceVar(&f.spaces, "namespaces", nil, "record only these namespaces (default: all)")
	fs.StringVarP(&f.Selector, "selector", "l", "", "record only objects with these labels (default: all)")
	f.archive.add(fs)
	f.retention.add(fs)
	fs.StringVar(&f.config, "config", "", "configuration file (YAML); flags on the command line go first. SIGHUP has it read again: 'tidemark config --help'")
	fs.StringVar(&f.memory, "memory-limit", "80Mi", "memory that the garbage collector aims to stay below; 0: no limit")
	fs.StringVar(&f.logLevel, "log-level", "info", "debug, info, warn or error")
	fs.StringVar(&f.logFormat, "log-format", "console", "console or json")
	return cmd
}

func (f *runFlags) run(cmd *cobra.Command) error {
	file, err := f.readConfig(cmd.Flags(), f.config)
	if err != nil {
		return usage("%v", err)
	}
	logger, err := f.logger()
	if err != nil {
		return err
	}
	defer func() { _ = logger.Sync() }() // terminals cannot sync, and there is nothing to do about it
	daemon.BridgeKlog(logger)
	f.Logger = logger
	if f.DataDir == "" {
		if f.DataDir, err = defaultDataDir(); err != nil {
			return usage("%v; give one with --data-dir", err)
		}
	}
	if f.MinFree, err = size("--min-free", f.minFree); err != nil {
		return err
	}
	if f.Window, err = window(f.window); err != nil {
		return err
	}
	if err := f.limitMemory(); err != nil {
		return err
	}
	if err := f.fromFile(cmd.Flags(), file); err != nil {
		return err
	}
	if f.config != "" {
		reloads := make(chan daemon.Reloadable)
		f.Reload = reloads
		go f.onHangup(cmd, logger, reloads)
	}
	f.take()
	err = daemon.Run(cmd.Context(), f.Options)
	if wrong, ok := errors.AsType[*daemon.OptionsError](err); ok {
		return usage("%v", wrong)
	}
	return err
}

// take makes options of the flags that are not theirs.
func (f *runFlags) take() {
	f.Kubeconfig, f.Context = f.kube.kubeconfig, f.kube.context
	f.Include, f.Exclude, f.Namespaces = f.include, f.exclude, f.spaces
}

// window reads a duration as --at does; 0 is for ever.
func window(s string) (time.Duration, error) {
	at, err := replay.ParseAt(s)
	if err != nil || at != (replay.At{Ago: at.Ago}) || at.Ago == 0 && !strings.HasPrefix(s, "0") {
		return 0, usage("--window %s: want a duration such as 30d or 12h, or 0 for everything", s)
	}
	return at.Ago, nil
}

// limitMemory keeps the heap small: the daemon lives beside what people pay for. What the
// environment says (GOMEMLIMIT, GOGC) goes first.
func (f *runFlags) limitMemory() error {
	limit, err := f.memoryLimit()
	if err != nil {
		return err
	}
	if limit > 0 && limit < math.MaxInt64 && os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(int64(limit))
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
	return nil
}

func (f *runFlags) memoryLimit() (uint64, error) {
	limit, err := size("--memory-limit", f.memory)
	if err == nil && limit > 0 && limit < 32<<20 {
		err = usage("--memory-limit %s is too little to work with: want at least 32Mi", f.memory)
	}
	return limit, err
}

// size reads bytes as Kubernetes writes them: 512Mi, 10Gi, 1000000.
func size(flag, text string) (uint64, error) {
	q, err := resource.ParseQuantity(strings.TrimSpace(text))
	if err != nil || q.Sign() < 0 {
		return 0, usage("%s %q: want a size such as 256Mi or 10Gi", flag, text)
	}
	return uint64(q.Value()), nil
}

func (f *runFlags) logger() (*zap.Logger, error) {
	level, err := zapcore.ParseLevel(f.logLevel)
	if err != nil {
		return nil, usage("--log-level %s: want debug, info, warn or error", f.logLevel)
	}
	cfg := zap.NewProductionConfig()
	cfg.Level = zap.NewAtomicLevelAt(level)
	cfg.DisableStacktrace = true
	cfg.DisableCaller = true
	cfg.EncoderConfig.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	switch f.logFormat {
	case "console", "json":
		cfg.Encoding = f.logFormat
	default:
		return nil, usage("--log-format %s: want console or json", f.logFormat)
	}
	logger, err := cfg.Build()
	if err != nil {
		return nil, fmt.Errorf("make the logger: %w", err)
	}
	return logger, nil
}
