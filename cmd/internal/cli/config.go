package cli

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/dustin/go-humanize/english"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.uber.org/zap"
	"go.yaml.in/yaml/v3"

	"github.com/tidemark-backup/tidemark/cmd/internal/config"
	"github.com/tidemark-backup/tidemark/cmd/internal/daemon"
	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/compactor/retention"
	"github.com/tidemark-backup/tidemark/replay/audit"
)

// notInFile are flags that say where the file is, or help.
var notInFile = []string{"config", "help"}

// readConfig reads the configuration file, and gives the flags that were not typed its values.
func (f *runFlags) readConfig(fs *pflag.FlagSet, path string) (*config.File, error) {
	if path == "" {
		return &config.File{}, nil
	}
	file, err := config.Read(path, func(name string) bool { return fs.Lookup(name) != nil && !slices.Contains(notInFile, name) })
	if err != nil {
		return nil, err
	}
	f.from = path
	for _, v := range file.Flags {
		flag := fs.Lookup(v.Name)
		if flag.Changed {
			continue
		}
		f.taken = append(f.taken, v)
		for _, text := range v.Values {
			if err := fs.Set(v.Name, text); err != nil {
				return nil, fmt.Errorf("%s: line %d: %s: %w", path, v.Line, config.Key(v.Name), err)
			}
		}
	}
	return file, nil
}

// fromFile makes the options that flags or the file can say: archives, schedules and retention.
func (f *runFlags) fromFile(fs *pflag.FlagSet, file *config.File) (err error) {
	if len(file.Archives) > 0 && fs.Changed("archive") {
		return usage("archives are given with --archive and under archives in the configuration: use one")
	}
	if len(file.Archives) > 0 {
		f.Archives, err = locationsOf(file.Archives)
	} else {
		f.Archives, err = f.archive.locations(f.DataDir)
	}
	if err != nil {
		return err
	}
	r, err := f.reloadable(file)
	if err != nil {
		return err
	}
	f.Retention, f.Schedules = r.Retention, r.Schedules
	if a := file.Audit; a != nil {
		if err := a.Check(); err != nil {
			return wrongAt(a.Line, err)
		}
		f.Audit = daemon.Audit{Off: a.Off, Every: time.Duration(a.Every), Limit: time.Duration(a.Limit), Page: a.Page, Rate: a.Rate}
	}
	f.Volumes, err = volumesOf(file.Volumes)
	f.Volumes.VolumesReload = r.Volumes
	return err
}

// reloadable is what a running daemon can take over.
func (f *runFlags) reloadable(file *config.File) (r daemon.Reloadable, err error) {
	if r.Retention, err = f.retention.read(); err != nil {
		return r, err
	}
	if file.Retention != nil {
		if !reflect.DeepEqual(r.Retention, retention.Policy{Location: time.UTC}) {
			return r, usage("retention is given with flags and under retention in the configuration: use one")
		}
		if r.Retention, err = file.Retention.Policy(); err != nil {
			return r, wrongAt(file.Retention.Line, err)
		}
	}
	names := map[string]bool{}
	for _, s := range file.Schedules {
		spec, err := s.Spec()
		if err != nil {
			return r, wrongAt(s.Line, err)
		}
		if names[s.Name] {
			return r, wrongAt(s.Line, fmt.Errorf("two schedules are called %q: give each a name of its own", s.Name))
		}
		names[s.Name] = true
		sc := daemon.Schedule{Spec: spec, TTL: time.Duration(s.TTL), Archives: s.Archives}
		if len(s.Namespaces)+len(s.Resources) > 0 || s.Selector != "" {
			sc.Scope = &archive.SnapshotScope{Namespaces: s.Namespaces, Resources: s.Resources, Selector: s.Selector}
			if err := daemon.CheckScope(sc.Scope); err != nil {
				return r, wrongAt(s.Line, fmt.Errorf("schedule %q: %w", s.Name, err))
			}
		}
		for _, name := range s.Archives {
			if !slices.ContainsFunc(f.Archives, func(a daemon.Archive) bool { return a.Name == name }) {
				return r, wrongAt(s.Line, fmt.Errorf("schedule %q: there is no archive %q", s.Name, name))
			}
		}
		r.Schedules = append(r.Schedules, sc)
	}
	if file.Volumes != nil {
		if r.Volumes, err = volumesReload(file.Volumes); err != nil {
			return r, err
		}
	}
	if len(r.Schedules) > 0 && len(f.Archives) == 0 {
		return r, usage("there are schedules, and no archive for their snapshots")
	}
	return r, nil
}

// inFile adds to a mistake in a setting where in the file it stands.
func (f *runFlags) inFile(err error) error {
	if f == nil || f.from == "" || !errors.Is(err, ErrUsage) {
		return err
	}
	text := err.Error()
	for _, v := range f.taken {
		if rest, ok := strings.CutPrefix(text, "--"+v.Name+" "); ok {
			return usage("%s: line %d: %s %s", f.from, v.Line, config.Key(v.Name), rest)
		}
	}
	if strings.HasPrefix(text, "line ") { // wrongAt
		return usage("%s: %s", f.from, text)
	}
	return err
}

// wrongAt is a mistake in the part of the file that begins at a line.
func wrongAt(line int, err error) error { return usage("line %d: %v", line, err) }

// locationsOf are the archives of the file.
func locationsOf(all []config.Archive) ([]daemon.Archive, error) {
	var out []daemon.Archive
	for _, a := range all {
		if a.URL == "" {
			return nil, wrongAt(a.Line, fmt.Errorf("archive %q: there is no url", a.Name))
		}
		lock, compliance, err := objectLock(a.ObjectLock)
		if err != nil {
			return nil, wrongAt(a.Line, err)
		}
		l := daemon.Archive{
			Name: a.Name, URL: a.URL, Recipients: a.Recipients, RecipientFiles: a.RecipientFiles, IdentityFile: a.Identity,
			Store:        archive.StoreOptions{CredentialsFile: a.Credentials, Profile: a.Profile, CAFile: a.CA},
			SealInterval: time.Duration(a.SealInterval), Lock: lock, Compliance: compliance, Shared: a.Shared,
		}
		if l.Name == "" {
			l.Name = "main"
		}
		if a.SealSize != "" {
			bytes, err := size("sealSize", a.SealSize)
			if err != nil {
				return nil, wrongAt(a.Line, err)
			}
			l.SealBytes = int64(bytes)
		}
		out = append(out, l)
	}
	return out, nil
}

// onHangup reads the configuration again at each SIGHUP. One that is wrong changes nothing.
func (f *runFlags) onHangup(cmd *cobra.Command, log *zap.Logger, reloads chan<- daemon.Reloadable) {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	for {
		select {
		case <-hangup:
		case <-cmd.Context().Done():
			return
		}
		fresh := runFlags{}
		fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
		fresh.retention.add(fs)
		typed := cmd.Flags()
		file, err := config.Read(f.config, func(name string) bool { return typed.Lookup(name) != nil })
		if err == nil {
			fresh.retention, fresh.Archives = f.retention, f.Archives
			var r daemon.Reloadable
			if r, err = fresh.reloadable(file); err == nil {
				f.tellUnchanged(typed, file, log)
				select {
				case reloads <- r:
				case <-cmd.Context().Done():
					return
				}
				continue
			}
		}
		log.Error("the configuration cannot be read again; the daemon goes on with what it has", zap.Error(f.inFile(err)))
	}
}

// tellUnchanged names settings of the file that need a restart.
func (f *runFlags) tellUnchanged(fs *pflag.FlagSet, file *config.File, log *zap.Logger) {
	for _, v := range file.Flags {
		now := fs.Lookup(v.Name).Value.String()
		if want := strings.Join(v.Values, ","); now != want && now != "["+want+"]" {
			log.Warn("this setting was changed, or goes behind a flag; it takes a restart", zap.String("setting", config.Key(v.Name)))
		}
	}
}

func newConfig(env Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "config",
		GroupID: "operate",
		Short:   "The daemon's configuration file: check and show it",
		Long: `The daemon's configuration file, for 'tidemark run --config FILE': one YAML, in which every flag of
run has its place (dataDir for --data-dir), and archives, schedules, retention and others besides:

  dataDir: /var/lib/tidemark
  window: 7d
  archives:
  - name: main
    url: s3://backups/prod?region=eu-central-1
    recipients: [age1...]
    objectLock: governance:30d
  - name: second
    url: dir:///mnt/nas/tidemark
    recipients: [age1...]
  schedules:
  - name: nightly
    cron: "0 3 * * *"
    timeZone: Europe/Berlin
    ttl: 30d
    startingDeadline: 1h
    concurrencyPolicy: Forbid
    namespaces: [shop, team-*]    # and resources: [deploy, secrets], selector: app=web
    archives: [main]
  retention:
    window: 30d
    daily: 30
    monthly: 12
    timeZone: Europe/Berlin
  audit:                          # history is compared with the cluster, all the time
    every: 1h                     # each resource once in this time
    limit: 3h                     # older proofs count for nothing (default: 3 times every)
    rate: 500                     # objects per second, and page: 500 per request; off: true: no audit
  volumes:                        # see 'tidemark volumes backup --help'
    image: registry.example/tidemark:v1
    namespace: tidemark           # where snapshots are mounted to be read (default: the claim's namespace)
    listen: ":8466"               # for movers; address: where Pods reach it (default: $POD_IP)
    concurrency: 4                # movers at once, of backups and restores, and units of claims that are backed up together
    perNode: 2                    # movers at once on one node, of those that have to run there: volumes that are read or filled in use
    readyTimeout: 30m             # how long a snapshot may take until it can be used
    startTimeout: 10m             # how long a mover's Pod may take until it begins: for nodes that are made when they are wanted
    checkpoint: 5m                # of a mover that is killed, no more than that is read again
    changedBlocks:                # of block devices, where the driver tells them (SnapshotMetadataService)
      serviceAccount: tidemark/tidemark # whose token the driver is shown (default: the daemon's own)
      auditEvery: 20              # backups that may rely on the driver before all is read and compared; off: true
    upload: 50Mi                  # per second, of all movers together, which then send through the daemon; download: likewise
    throughDaemon: true           # also without such a limit (default: movers go to a store in S3 themselves, if they reach it)
    pod: {spec: {containers: [{name: mover, resources: {limits: {memory: 1Gi}}}]}}
    policies:                     # the first that covers a claim counts
    - name: databases
      namespaces: [shop]
      selector: app=db
      storageClasses: [fast]
      action: snapshot-then-kopia # auto, skip, snapshot, kopia
      keepSnapshots: true
      group: pod                  # snapshots of the claims of one Pod at one instant (default: label)
      cron: "0 */6 * * *"
      retention: {window: 2d, daily: 14}
    veleroPolicies: [volume-policies.yaml]
    hooks: {resources: [...]}     # as spec.hooks of Velero's Backup; sets: more ready sets

What it does not know is refused, with the line. SIGHUP has the daemon read it again: schedules,
retention, and the policies and hooks of volumes change at once; the rest takes a restart.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newConfigCheck(env), newConfigShow(env))
	return cmd
}

// loadConfig reads a file as run would.
func loadConfig(env Env, path string) (*runFlags, *pflag.FlagSet, *config.File, error) {
	var f *runFlags
	run := newRunWith(env, &f)
	file, err := f.readConfig(run.Flags(), path)
	if err != nil {
		return nil, nil, nil, usage("%v", err)
	}
	if f.DataDir == "" {
		if f.DataDir, err = defaultDataDir(); err != nil {
			return nil, nil, nil, usage("%v; give one with dataDir", err)
		}
	}
	return f, run.Flags(), file, f.inFile(f.fromFile(run.Flags(), file))
}

// checkSizes checks what run reads only when it runs.
func (f *runFlags) checkSizes() error {
	if _, err := f.logger(); err != nil {
		return err
	}
	if _, err := size("--min-free", f.minFree); err != nil {
		return err
	}
	if _, err := f.memoryLimit(); err != nil {
		return err
	}
	_, err := window(f.window)
	return err
}

func newConfigCheck(env Env) *cobra.Command {
	return &cobra.Command{
		Use:   "check FILE",
		Short: "Check a configuration file as run does, with the keys, certificates and URLs that it names; nothing is started",
		Args:  someArgs(1, 1, "a configuration file"),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, _, _, err := loadConfig(env, args[0])
			if err != nil {
				return err
			}
			if err := f.checkSizes(); err != nil {
				return f.inFile(err)
			}
			f.take()
			if err := f.Check(cmd.Context()); err != nil {
				return usage("%s: %v", args[0], err)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: good; %s, %s\n", filepath.Base(args[0]), english.Plural(len(f.Archives), "archive", ""), english.Plural(len(f.Schedules), "schedule", ""))
			return err
		},
	}
}

func newConfigShow(env Env) *cobra.Command {
	return &cobra.Command{
		Use:   "show [FILE]",
		Short: "Show every setting, as a configuration file: those of FILE, and the defaults of the others",
		Args:  someArgs(0, 1, "at most one configuration file"),
		RunE: func(cmd *cobra.Command, args []string) error {
			path := ""
			if len(args) > 0 {
				path = args[0]
			}
			f, fs, file, err := loadConfig(env, path)
			if err != nil {
				return err
			}
			out := map[string]any{}
			fs.VisitAll(func(flag *pflag.Flag) {
				if !slices.Contains(notInFile, flag.Name) {
					out[config.Key(flag.Name)] = valueOf(flag)
				}
			})
			out["dataDir"] = f.DataDir
			if len(file.Archives) > 0 {
				out["archives"] = file.Archives
				delete(out, "archive")
			}
			if len(file.Schedules) > 0 {
				out["schedules"] = file.Schedules
			}
			out["audit"] = auditShown(file.Audit)
			out["volumes"] = volumesShown(file.Volumes)
			if file.Retention != nil {
				out["retention"] = file.Retention
			}
			b, err := yaml.Marshal(out)
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(b)
			return err
		},
	}
}

// auditShown is the audit's part of the configuration, with its defaults.
func auditShown(c *config.Audit) config.Audit {
	a := config.Audit{}
	if c != nil {
		a = *c
	}
	o := audit.Options{Every: time.Duration(a.Every), Limit: time.Duration(a.Limit), Page: a.Page, Rate: a.Rate}.WithDefaults()
	a.Every, a.Limit, a.Page, a.Rate = config.Duration(o.Every), config.Duration(o.Limit), o.Page, o.Rate
	return a
}

// valueOf is a flag's value as YAML has it.
func valueOf(flag *pflag.Flag) any {
	if list, ok := flag.Value.(pflag.SliceValue); ok {
		return list.GetSlice()
	}
	switch flag.Value.Type() {
	case "bool":
		return flag.Value.String() == "true"
	case "int":
		var n int
		if _, err := fmt.Sscan(flag.Value.String(), &n); err == nil {
			return n
		}
	}
	return flag.Value.String()
}
