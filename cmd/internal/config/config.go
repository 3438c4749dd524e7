// Package config reads the daemon's configuration file: one YAML, in which every flag of 'tidemark
// run' has its place under its own name, and what flags cannot say besides: archives, schedules,
// retention, volumes and the audit.
//
// It is strict: what it does not know, or finds twice, is an error that names the line.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"
	"unicode"

	"go.yaml.in/yaml/v3"

	"github.com/tidemark-backup/tidemark/compactor/retention"
	"github.com/tidemark-backup/tidemark/compactor/schedule"
	"github.com/tidemark-backup/tidemark/replay"
)

// Duration is a time such as 30d, 12h or 5s.
type Duration time.Duration

// UnmarshalYAML implements yaml.Unmarshaler.
func (d *Duration) UnmarshalYAML(n *yaml.Node) error {
	if zero, err := time.ParseDuration(n.Value); err == nil && zero == 0 { // as if it were not there
		return nil
	}
	at, err := replay.ParseAt(n.Value)
	if err != nil || at != (replay.At{Ago: at.Ago}) || at.Ago <= 0 {
		return fmt.Errorf("line %d: %q is not a duration: want something like 30d, 12h or 5s", n.Line, n.Value)
	}
	*d = Duration(at.Ago)
	return nil
}

// MarshalYAML implements yaml.Marshaler.
func (d Duration) MarshalYAML() (any, error) { return time.Duration(d).String(), nil }

// Archive is a location, under "archives".
type Archive struct {
	Line int `yaml:"-"` // in the file

	Name           string   `yaml:"name,omitempty"`
	URL            string   `yaml:"url,omitempty"`
	Recipients     []string `yaml:"recipients,omitempty"`
	RecipientFiles []string `yaml:"recipientsFiles,omitempty"`
	Identity       string   `yaml:"identity,omitempty"` // a file
	Credentials    string   `yaml:"credentials,omitempty"`
	Profile        string   `yaml:"profile,omitempty"`
	CA             string   `yaml:"ca,omitempty"`
	SealInterval   Duration `yaml:"sealInterval,omitempty"`
	SealSize       string   `yaml:"sealSize,omitempty"`
	ObjectLock     string   `yaml:"objectLock,omitempty"` // MODE:TIME
	Shared         bool     `yaml:"shared,omitempty"`
}

// Schedule is a snapshot that is taken at times, under "schedules".
type Schedule struct {
	Line int `yaml:"-"` // in the file

	Name              string   `yaml:"name,omitempty"`
	Cron              string   `yaml:"cron,omitempty"`
	TimeZone          string   `yaml:"timeZone,omitempty"`
	StartingDeadline  Duration `yaml:"startingDeadline,omitempty"`
	ConcurrencyPolicy string   `yaml:"concurrencyPolicy,omitempty"`
	Suspend           bool     `yaml:"suspend,omitempty"`
	Namespaces        []string `yaml:"namespaces,omitempty"`
	Resources         []string `yaml:"resources,omitempty"`
	Selector          string   `yaml:"selector,omitempty"`
	TTL               Duration `yaml:"ttl,omitempty"`
	Archives          []string `yaml:"archives,omitempty"`
}

// Spec is the schedule's own part of it.
func (s *Schedule) Spec() (schedule.Spec, error) {
	spec := schedule.Spec{Name: s.Name, Cron: s.Cron, TimeZone: s.TimeZone, StartingDeadline: time.Duration(s.StartingDeadline), Suspend: s.Suspend}
	if s.ConcurrencyPolicy != "" {
		var err error
		if spec.Concurrency, err = schedule.ParseConcurrency(s.ConcurrencyPolicy); err != nil {
			return spec, fmt.Errorf("schedule %q: %w", s.Name, err)
		}
	}
	_, err := schedule.Parse(spec)
	return spec, err
}

// Retention is a policy, under "retention".
type Retention struct {
	Line int `yaml:"-"` // in the file

	Window   Duration `yaml:"window,omitempty"`
	Hourly   int      `yaml:"hourly,omitempty"`
	Daily    int      `yaml:"daily,omitempty"`
	Weekly   int      `yaml:"weekly,omitempty"`
	Monthly  int      `yaml:"monthly,omitempty"`
	Yearly   int      `yaml:"yearly,omitempty"`
	TimeZone string   `yaml:"timeZone,omitempty"`
}

// Policy is the policy itself.
func (r *Retention) Policy() (retention.Policy, error) {
	p := retention.Policy{Window: time.Duration(r.Window), Hourly: r.Hourly, Daily: r.Daily, Weekly: r.Weekly, Monthly: r.Monthly, Yearly: r.Yearly}
	if r.TimeZone != "" {
		var err error
		if p.Location, err = time.LoadLocation(r.TimeZone); err != nil {
			return p, fmt.Errorf("retention: time zone %q: %w", r.TimeZone, err)
		}
	}
	return p, p.Check()
}

// Volumes says how the content of volumes is backed up, under "volumes".
type Volumes struct {
	Line int `yaml:"-"` // in the file

	Image        string         `yaml:"image,omitempty"`     // of movers
	Namespace    string         `yaml:"namespace,omitempty"` // where claims that are made of snapshots are mounted
	Listen       string         `yaml:"listen,omitempty"`    // for movers
	Address      string         `yaml:"address,omitempty"`   // where Pods reach that
	Concurrency  int            `yaml:"concurrency,omitempty"`
	PerNode      int            `yaml:"perNode,omitempty"`
	ReadyTimeout Duration       `yaml:"readyTimeout,omitempty"` // of snapshots
	StartTimeout Duration       `yaml:"startTimeout,omitempty"` // of movers' Pods
	Checkpoint   Duration       `yaml:"checkpoint,omitempty"`   // of movers
	Upload       string         `yaml:"upload,omitempty"`       // bytes per second
	Download     string         `yaml:"download,omitempty"`     // bytes per second
	Pod          map[string]any `yaml:"pod,omitempty"`
	Policies     []VolumePolicy `yaml:"policies,omitempty"`
	// VeleroPolicies are files of Velero's volume policies.
	VeleroPolicies []string       `yaml:"veleroPolicies,omitempty"`
	Hooks          map[string]any `yaml:"hooks,omitempty"`
	ChangedBlocks  ChangedBlocks  `yaml:"changedBlocks,omitempty"`
	ThroughDaemon  bool           `yaml:"throughDaemon,omitempty"` // movers do not go to the store themselves
}

// ChangedBlocks says how drivers' lists of changed blocks are used for block devices.
type ChangedBlocks struct {
	Off            bool   `yaml:"off,omitempty"`
	ServiceAccount string `yaml:"serviceAccount,omitempty"` // "namespace/name"; whose tokens drivers are shown
	AuditEvery     int    `yaml:"auditEvery,omitempty"`     // backups that may rely on lists before all is read
}

// VolumePolicy says what is done with some volumes, and when.
type VolumePolicy struct {
	Line int `yaml:"-"` // in the file

	Name             string     `yaml:"name,omitempty"`
	Namespaces       []string   `yaml:"namespaces,omitempty"`
	Selector         string     `yaml:"selector,omitempty"`
	StorageClasses   []string   `yaml:"storageClasses,omitempty"`
	Action           string     `yaml:"action,omitempty"`
	KeepSnapshots    bool       `yaml:"keepSnapshots,omitempty"`
	SnapshotClass    string     `yaml:"snapshotClass,omitempty"`
	Group            string     `yaml:"group,omitempty"`
	Cron             string     `yaml:"cron,omitempty"`
	TimeZone         string     `yaml:"timeZone,omitempty"`
	StartingDeadline Duration   `yaml:"startingDeadline,omitempty"`
	Suspend          bool       `yaml:"suspend,omitempty"`
	Retention        *Retention `yaml:"retention,omitempty"`
}

// Audit says how history is compared with the cluster, under "audit".
type Audit struct {
	Line int `yaml:"-"` // in the file

	Off   bool     `yaml:"off,omitempty"`
	Every Duration `yaml:"every,omitempty"`
	Limit Duration `yaml:"limit,omitempty"`
	Page  int64    `yaml:"page,omitempty"`
	Rate  int      `yaml:"rate,omitempty"`
}

// Check finds what cannot work.
func (a *Audit) Check() error {
	switch {
	case a.Page < 0 || a.Page > 5000:
		return errors.New("audit: page: want 1 to 5000 objects per request")
	case a.Rate < 0:
		return errors.New("audit: rate: want objects per second")
	case a.Limit > 0 && a.Every > 0 && a.Limit < a.Every:
		return errors.New("audit: limit: it is shorter than the time from one audit to the next; want at least what every says")
	case a.Limit > 0 && a.Every == 0 && time.Duration(a.Limit) < time.Hour:
		return errors.New("audit: limit: want at least 1h, which is what every is without being set")
	}
	return nil
}

// Flag is the value of one of the daemon's flags.
type Flag struct {
	Name   string // "data-dir"
	Values []string
	Line   int
}

// File is a configuration that was read.
type File struct {
	Flags     []Flag
	Archives  []Archive
	Schedules []Schedule
	Retention *Retention
	Volumes   *Volumes
	Audit     *Audit
}

// Read reads a file. known are the names of the flags.
func Read(path string, known func(flag string) bool) (*File, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	f, err := Parse(b, known)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return f, nil
}

// Parse reads the text of a file.
func Parse(text []byte, known func(flag string) bool) (*File, error) {
	f := &File{}
	dec := yaml.NewDecoder(bytes.NewReader(text))
	var doc yaml.Node
	err := dec.Decode(&doc)
	if errors.Is(err, io.EOF) {
		return f, nil
	}
	if err != nil {
		return nil, err
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("there is more than one document in it")
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("line %d: want keys with values, such as dataDir: /var/lib/tidemark", root.Line)
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, value := root.Content[i], root.Content[i+1]
		if seen[key.Value] {
			return nil, fmt.Errorf("line %d: %s is there twice", key.Line, key.Value)
		}
		seen[key.Value] = true
		if err := f.take(key, value, known); err != nil {
			return nil, err
		}
	}
	return f, nil
}

func (f *File) take(key, value *yaml.Node, known func(string) bool) error {
	switch key.Value {
	case "archives":
		return decode(value, &f.Archives)
	case "schedules":
		return decode(value, &f.Schedules)
	case "volumes":
		f.Volumes = &Volumes{}
		return decode(value, f.Volumes)
	case "audit":
		f.Audit = &Audit{}
		return decode(value, f.Audit)
	case "retention":
		f.Retention = &Retention{}
		return decode(value, f.Retention)
	}
	flag := Flag{Name: kebab(key.Value), Line: key.Line}
	if !known(flag.Name) || key.Value != camel(flag.Name) {
		return fmt.Errorf("line %d: there is no setting %q: 'tidemark config show' lists them all", key.Line, key.Value)
	}
	switch value.Kind {
	case yaml.ScalarNode:
		flag.Values = []string{value.Value}
	case yaml.SequenceNode:
		for _, n := range value.Content {
			if n.Kind != yaml.ScalarNode {
				return fmt.Errorf("line %d: %s wants plain values", n.Line, key.Value)
			}
			flag.Values = append(flag.Values, n.Value)
		}
	default:
		return fmt.Errorf("line %d: %s wants a value or a list of values", value.Line, key.Value)
	}
	f.Flags = append(f.Flags, flag)
	return nil
}

// decode is node.Decode that refuses keys which the type does not have.
func decode(n *yaml.Node, into any) error {
	if err := knows(n, reflect.TypeOf(into)); err != nil {
		return err
	}
	if err := n.Decode(into); err != nil {
		return err
	}
	place(n, reflect.ValueOf(into))
	return nil
}

// place notes the lines of all structs that want theirs, so that what is wrong with their values can be told with it.
func place(n *yaml.Node, v reflect.Value) {
	for v.Kind() == reflect.Pointer && !v.IsNil() {
		v = v.Elem()
	}
	switch {
	case v.Kind() == reflect.Slice && n.Kind == yaml.SequenceNode:
		for i := range min(v.Len(), len(n.Content)) {
			place(n.Content[i], v.Index(i))
		}
	case v.Kind() == reflect.Struct && n.Kind == yaml.MappingNode:
		if line := v.FieldByName("Line"); line.IsValid() {
			line.SetInt(int64(n.Line))
		}
		names := fieldNames(v.Type())
		for i := 0; i+1 < len(n.Content); i += 2 {
			if j := slices.Index(names, n.Content[i].Value); j >= 0 {
				place(n.Content[i+1], v.Field(j))
			}
		}
	}
}

// fieldNames are the keys of a struct's fields; "-" is none.
func fieldNames(t reflect.Type) []string {
	var names []string
	for field := range t.Fields() {
		name, _, _ := strings.Cut(field.Tag.Get("yaml"), ",")
		names = append(names, name)
	}
	return names
}

func knows(n *yaml.Node, t reflect.Type) error {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch {
	case t.Kind() == reflect.Slice && n.Kind == yaml.SequenceNode:
		for _, c := range n.Content {
			if err := knows(c, t.Elem()); err != nil {
				return err
			}
		}
	case t.Kind() == reflect.Struct && n.Kind == yaml.MappingNode:
		names := fieldNames(t)
		for i := 0; i+1 < len(n.Content); i += 2 {
			j := slices.Index(names, n.Content[i].Value)
			if j < 0 || names[j] == "-" {
				names = slices.DeleteFunc(names, func(name string) bool { return name == "-" })
				return fmt.Errorf("line %d: there is no setting %q here: there are %s", n.Content[i].Line, n.Content[i].Value, strings.Join(names, ", "))
			}
			if err := knows(n.Content[i+1], t.Field(j).Type); err != nil {
				return err
			}
		}
	case t.Kind() == reflect.Struct, t.Kind() == reflect.Slice:
		return fmt.Errorf("line %d: want a %s here", n.Line, map[reflect.Kind]string{reflect.Struct: "mapping", reflect.Slice: "list"}[t.Kind()])
	}
	return nil
}

// kebab makes "dataDir" "data-dir"; camel is its inverse.
func kebab(s string) string {
	var b strings.Builder
	for _, r := range s {
		if unicode.IsUpper(r) {
			b.WriteByte('-')
			r = unicode.ToLower(r)
		}
		b.WriteRune(r)
	}
	return b.String()
}

func camel(s string) string {
	parts := strings.Split(s, "-")
	for i := 1; i < len(parts); i++ {
		if parts[i] != "" {
			parts[i] = strings.ToUpper(parts[i][:1]) + parts[i][1:]
		}
	}
	return strings.Join(parts, "")
}

// Key is the name of a flag in the file.
func Key(flag string) string { return camel(flag) }
