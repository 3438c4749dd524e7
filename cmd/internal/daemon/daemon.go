package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"

	"github.com/tidemark-backup/tidemark/cmd/internal/api"
	"github.com/tidemark-backup/tidemark/compactor"
	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/journal/capture"
	"github.com/tidemark-backup/tidemark/journal/durable"
	"github.com/tidemark-backup/tidemark/replay"
	"github.com/tidemark-backup/tidemark/replay/audit"
	"github.com/tidemark-backup/tidemark/volumes"
	"github.com/tidemark-backup/tidemark/volumes/mover"
)

// SocketName is the name of the socket in the data directory.
const SocketName = "tidemark.sock"

const (
	trimEvery = time.Hour // at most
	// stopTimeout bounds a clean stop: flushing the journal and ending open answers.
	stopTimeout = 20 * time.Second
)

// Run runs a daemon until the context ends, which is a clean stop and returns nil, or until
// it cannot go on.
func Run(ctx context.Context, o Options) error {
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if err := o.Check(ctx); err != nil {
		return err
	}
	cfg, err := LoadConfig(o.Kubeconfig, o.Context)
	if err != nil {
		return err
	}
	tlsConf, token, err := o.https()
	if err != nil {
		return err
	}
	if o.DataDir, err = filepath.Abs(o.DataDir); err != nil {
		return fmt.Errorf("find the data directory: %w", err)
	}
	if err := durable.MkdirAll(o.DataDir); err != nil {
		return dataDirTrouble(err)
	}
	if info, err := os.Stat(o.DataDir); err == nil && info.Mode().Perm()&0o077 != 0 {
		o.Logger.Warn("others may look into the data directory; journal and socket are private all the same",
			zap.String("dataDir", o.DataDir), zap.Stringer("mode", info.Mode().Perm()), zap.String("fix", "chmod 700 "+o.DataDir))
	}
	j, err := journal.Open(o.DataDir, journal.Options{
		KeyFile: o.KeyFile, Window: o.Window, MinFree: o.MinFree, Clock: o.Clock, Logger: o.Logger,
	})
	if errors.Is(err, journal.ErrLocked) {
		return fmt.Errorf("%w; to ask that daemon: tidemark status --server unix://%s", err, filepath.Join(o.DataDir, SocketName))
	}
	if err != nil {
		return fmt.Errorf("open the journal in %s: %w", o.DataDir, err)
	}
	c, err := capture.New(capture.Options{
		Config: cfg, Journal: j, Logger: o.Logger, Include: o.Include, Exclude: o.Exclude, Namespaces: o.Namespaces, Selector: o.Selector,
	})
	if err != nil {
		return errors.Join(err, j.Close())
	}
	local := replay.NewLocal(j)
	d := &daemon{o: o, journal: j, capture: c, local: local, source: local, server: cfg.Host, started: o.Clock(), retainNow: make(chan struct{}, 1)}
	d.cluster = cfg
	if a := o.Audit; !a.Off {
		d.audit = audit.New(audit.Options{
			Journal: j, Cluster: c, Every: a.Every, Limit: a.Limit, Page: a.Page, Rate: a.Rate, Logger: o.Logger, Clock: o.Clock,
		})
	}
	d.schedules = newSchedules(d)
	if len(o.Archives) > 0 {
		j.KeepAfter(time.Time{})
		err = d.openArchives(ctx)
	}
	if err == nil {
		err = d.run(ctx, tlsConf, token)
	}
	return errors.Join(err, d.close())
}

func dataDirTrouble(err error) error {
	return fmt.Errorf("make the data directory: %w; choose one that you may write to with --data-dir", err)
}

// daemon is a running daemon's parts.
type daemon struct {
	o       Options
	journal *journal.Journal
	capture *capture.Capture
	local   *replay.Local
	source  replay.Source // local, with the archive behind it
	server  string        // the API server's address
	cluster *rest.Config
	started time.Time
	audit   *audit.Auditor // nil: off

	shippers   []*compactor.Shipper
	ownKeyPath string        // the identity in the data directory; empty: archives have other keys
	retainNow  chan struct{} // asks for a round of retention
	schedules  *schedules
	volumes    *volumes.Keeper // in the first archive that the daemon can read; nil: in none
	broker     *mover.Broker
	policies   atomic.Pointer[[]VolumePolicy]
}

func (d *daemon) run(ctx context.Context, tlsConf *tls.Config, token string) error {
	listeners, err := d.listen(tlsConf, token)
	if err != nil {
		return err
	}
	parent := ctx
	g, ctx := errgroup.WithContext(ctx)
	for _, l := range listeners {
		g.Go(func() error { return d.serve(ctx, l) })
	}
	g.Go(func() error {
		if err := d.capture.Run(ctx); err != nil && ctx.Err() == nil {
			return fmt.Errorf("record the cluster: %w", err)
		}
		return nil
	})
	g.Go(func() error { return d.trim(ctx) })
	if d.audit != nil {
		g.Go(func() error { return d.audit.Run(ctx) })
	}
	for _, s := range d.shippers {
		g.Go(func() error { return d.ship(ctx, s) })
	}
	if len(d.shippers) > 0 {
		g.Go(func() error { return d.schedules.run(ctx) })
	}
	if d.volumes != nil {
		g.Go(func() error { return d.keepVolumes(ctx) })
	}
	g.Go(func() error { return d.reload(ctx) })
	g.Go(func() error {
		select {
		case <-d.journal.Failed():
			return fmt.Errorf("the journal cannot go on: %w; everything acknowledged is safe, start the daemon again when the cause is gone", d.journal.Err())
		case <-ctx.Done():
			return nil
		}
	})
	d.o.Logger.Info("running", zap.String("dataDir", d.o.DataDir), zap.String("apiServer", d.server), zap.String("version", d.o.Version))
	err = g.Wait()
	if parent.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
		d.o.Logger.Info("stopping")
		return nil
	}
	return err
}

// close makes durable what is queued, and lets go of the journal.
func (d *daemon) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	if d.broker != nil {
		if err := d.broker.Close(); err != nil {
			d.o.Logger.Warn("closing the listener of movers failed", zap.Error(err))
		}
	}
	var flushed error
	if d.journal.Err() == nil && d.journal.Condition() == "" {
		if err := d.journal.Flush(ctx); err != nil {
			flushed = fmt.Errorf("flush the journal: %w", err)
		}
	}
	if err := d.journal.Close(); err != nil {
		return errors.Join(flushed, fmt.Errorf("close the journal: %w", err))
	}
	return flushed
}

// trim takes a round at once, for a daemon that is restarted often, and then every hour.
func (d *daemon) trim(ctx context.Context) error {
	every := trimEvery
	if d.o.Window > 0 { // the journal counts its age in rounds, at most an eighth of the window each
		every = min(every, max(d.o.Window/8, time.Second))
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		d.keepUnarchived()
		if _, err := d.journal.Trim(ctx); err != nil && ctx.Err() == nil {
			d.o.Logger.Warn("trimming the journal failed; it will be tried again", zap.Error(err), zap.Duration("in", every))
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// listener is an open listener and what is served on it.
type listener struct {
	net.Listener
	handler http.Handler
	tls     *tls.Config
}

// listen opens all listeners, or none.
func (d *daemon) listen(tlsConf *tls.Config, token string) (out []listener, err error) {
	defer func() {
		if err != nil {
			for _, l := range out {
				err = errors.Join(err, l.Close())
			}
			out = nil
		}
	}()
	so := api.ServerOptions{Source: d.source, Status: d.status, Registry: api.NewRegistry(d.status), Logger: d.o.Logger.Named("api")}
	if len(d.shippers) > 0 {
		so.Archives = archives{d}
	}
	if d.volumes != nil {
		so.Volumes = d.volumes
	}
	server := api.NewServer(so)
	open := func(l net.Listener, err error, h http.Handler, t *tls.Config) error {
		if err == nil {
			out = append(out, listener{l, h, t})
		}
		return err
	}
	l, err := api.ListenUnix(filepath.Join(d.o.DataDir, SocketName))
	if err := open(l, err, server.Handler(), nil); err != nil {
		return out, err
	}
	for _, text := range d.o.Listen {
		a, err := api.ParseAddress(text)
		if err != nil {
			return out, err
		}
		if a.Unix != "" {
			l, err := api.ListenUnix(a.Unix)
			if err := open(l, err, server.Handler(), nil); err != nil {
				return out, err
			}
			continue
		}
		l, err := net.Listen("tcp", a.TCP)
		if err := open(l, err, server.TokenHandler(token), tlsConf); err != nil {
			return out, fmt.Errorf("listen on %s: %w", text, err)
		}
	}
	if d.o.MetricsListen != "" {
		l, err := api.ListenLoopback(d.o.MetricsListen)
		if err := open(l, err, server.MachineHandler(), nil); err != nil {
			return out, err
		}
	}
	return out, nil
}

// serve serves one listener until the context ends. Open answers end with it. There is no
// ReadTimeout: net/http would end the context of a follower with it.
func (d *daemon) serve(ctx context.Context, l listener) error {
	srv := &http.Server{
		Handler: l.handler, TLSConfig: l.tls, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    zap.NewStdLog(d.o.Logger.Named("api")),
	}
	served := make(chan error, 1)
	go func() {
		if l.tls != nil {
			served <- srv.ServeTLS(l.Listener, "", "")
			return
		}
		served <- srv.Serve(l.Listener)
	}()
	d.o.Logger.Info("serving the API", zap.String("address", l.Addr().String()))
	select {
	case err := <-served:
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := srv.Shutdown(stop); err != nil {
		_ = srv.Close()
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	return nil
}

// https reads what https listeners need, before anything is opened.
func (o *Options) https() (*tls.Config, string, error) {
	needed := false
	for _, text := range o.Listen {
		a, err := api.ParseAddress(text)
		if err != nil {
			return nil, "", err
		}
		needed = needed || a.TCP != ""
	}
	if !needed {
		return nil, "", nil
	}
	if o.TLSCert == "" || o.TLSKey == "" || o.TokenFile == "" {
		return nil, "", errors.New("an https listener needs --tls-cert, --tls-key and --token-file")
	}
	cert, err := tls.LoadX509KeyPair(o.TLSCert, o.TLSKey)
	if err != nil {
		return nil, "", fmt.Errorf("read --tls-cert and --tls-key: %w", err)
	}
	b, err := os.ReadFile(o.TokenFile) // first: a directory is none
	if err != nil {
		return nil, "", fmt.Errorf("read --token-file: %w", err)
	}
	if info, err := os.Stat(o.TokenFile); err == nil && info.Mode().Perm()&0o007 != 0 {
		return nil, "", fmt.Errorf("--token-file %s can be read by everybody on this machine: chmod 600 it (for a mounted Secret, set defaultMode: 0440)", o.TokenFile)
	}
	token := strings.TrimSpace(string(b))
	if len(token) < 16 {
		return nil, "", fmt.Errorf("--token-file %s holds fewer than 16 characters; make one with 'head -c 32 /dev/urandom | base64'", o.TokenFile)
	}
	return &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}, token, nil
}
