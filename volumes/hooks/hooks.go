// Package hooks says which programs are run in which containers before and after the content of their volumes is taken, and after
// it was restored: from Velero's annotations, from rules of the configuration, and from ready sets for databases.
package hooks

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"
)

// Hook is a program that is run in a container.
type Hook struct {
	// Container is the one that it runs in. Default: the Pod's first.
	Container string   `json:"container,omitempty"`
	Command   []string `json:"command"`
	// OnError says whether the backup of the Pod's volumes fails with it.
	OnError Mode     `json:"onError,omitempty"`
	Timeout Duration `json:"timeout,omitempty"`
	Set     string   `json:"set,omitempty"` // the ready set that it is of
}

// Mode says what a failed hook does.
type Mode string

// The modes, with Velero's words.
const (
	Fail     Mode = "Fail" // the default
	Continue Mode = "Continue"
)

// DefaultTimeout is Velero's.
const DefaultTimeout = 30 * time.Second

// Duration is a time such as "30s".
type Duration time.Duration

// UnmarshalJSON implements json.Unmarshaler.
func (d *Duration) UnmarshalJSON(b []byte) error {
	var text string
	if err := json.Unmarshal(b, &text); err != nil {
		return fmt.Errorf("a timeout is a text such as \"30s\": %w", err)
	}
	v, err := time.ParseDuration(text)
	if err != nil || v <= 0 {
		return fmt.Errorf("%q is not a timeout: want something like 30s or 5m", text)
	}
	*d = Duration(v)
	return nil
}

// MarshalJSON implements json.Marshaler.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(time.Duration(d).String()) }

// Plan is what is run for one Pod.
type Plan struct {
	Pre  []Hook `json:"pre,omitempty"`
	Post []Hook `json:"post,omitempty"`
}

// Empty reports whether there is nothing to run.
func (p *Plan) Empty() bool { return len(p.Pre)+len(p.Post) == 0 }

// Rules are the hooks of a configuration, as in spec.hooks of Velero's Backup.
type Rules struct {
	Resources []Rule `json:"resources,omitempty"`
	// Sets are more ready sets, or others in place of ours that have the same name.
	Sets []Set `json:"sets,omitempty"`
}

// Rule are the hooks of some Pods.
type Rule struct {
	Name               string                `json:"name"`
	IncludedNamespaces []string              `json:"includedNamespaces,omitempty"`
	ExcludedNamespaces []string              `json:"excludedNamespaces,omitempty"`
	IncludedResources  []string              `json:"includedResources,omitempty"`
	ExcludedResources  []string              `json:"excludedResources,omitempty"`
	LabelSelector      *metav1.LabelSelector `json:"labelSelector,omitempty"`
	Pre                []Step                `json:"pre,omitempty"`
	Post               []Step                `json:"post,omitempty"`
}

// Step is one hook of a rule.
type Step struct {
	Exec *Hook `json:"exec"`
}

// Set is a ready set for one kind of application.
type Set struct {
	Name string `json:"name"`
	// Images are names of images, without registry, path and tag, that the set is for.
	Images []string `json:"images,omitempty"`
	Pre    []Hook   `json:"pre,omitempty"`
	Post   []Hook   `json:"post,omitempty"`
}

// SetLabel on a Pod names the ready set that it wants, in place of the one its image calls for; "none": none.
const SetLabel = "tidemark.dev/hooks"

//go:embed sets.yaml
var ready []byte

// Sets are the ready sets, with those of the rules.
func (r *Rules) sets() ([]Set, error) {
	var ours struct{ Sets []Set }
	if err := yaml.UnmarshalStrict(ready, &ours); err != nil {
		return nil, fmt.Errorf("read the ready sets of hooks: %w", err)
	}
	all := ours.Sets
	for _, s := range r.Sets {
		if i := slices.IndexFunc(all, func(o Set) bool { return o.Name == s.Name }); i >= 0 {
			all[i] = s
			continue
		}
		all = append(all, s)
	}
	return all, nil
}

// Parse reads rules.
func Parse(text []byte) (*Rules, error) {
	r := &Rules{}
	if err := yaml.UnmarshalStrict(text, r); err != nil {
		return nil, fmt.Errorf("read the hooks: %w", err)
	}
	for _, rule := range r.Resources {
		for _, s := range slices.Concat(rule.Pre, rule.Post) {
			if s.Exec == nil || len(s.Exec.Command) == 0 {
				return nil, fmt.Errorf("hook %q: want exec with a command", rule.Name)
			}
		}
	}
	return r, nil
}

// For is what is run for a Pod: what its annotations say, or else the rules, or else the ready set for it.
func (r *Rules) For(p *corev1.Pod) (*Plan, error) {
	plan, err := annotated(p)
	if err != nil || plan != nil {
		return plan, err
	}
	plan = &Plan{}
	for i := range r.Resources {
		rule := &r.Resources[i]
		fits, err := rule.fits(p)
		if err != nil {
			return nil, err
		}
		if fits {
			plan.Pre, plan.Post = append(plan.Pre, steps(p, rule.Pre)...), append(plan.Post, steps(p, rule.Post)...)
		}
	}
	if !plan.Empty() {
		return plan, nil
	}
	return r.ready(p)
}

func steps(p *corev1.Pod, all []Step) (out []Hook) {
	for _, s := range all {
		out = append(out, filled(p, *s.Exec))
	}
	return out
}

// filled sets what a hook leaves out.
func filled(p *corev1.Pod, h Hook) Hook {
	if h.Container == "" && len(p.Spec.Containers) > 0 {
		h.Container = p.Spec.Containers[0].Name
	}
	if h.OnError == "" {
		h.OnError = Fail
	}
	if h.Timeout == 0 {
		h.Timeout = Duration(DefaultTimeout)
	}
	return h
}

func (r *Rule) fits(p *corev1.Pod) (bool, error) {
	named := func(list []string, name string) bool {
		return slices.Contains(list, "*") || slices.Contains(list, name)
	}
	pods := func(list []string) bool {
		return named(list, "pods") || slices.Contains(list, "pod") || slices.Contains(list, "po")
	}
	if len(r.IncludedNamespaces) > 0 && !named(r.IncludedNamespaces, p.Namespace) || slices.Contains(r.ExcludedNamespaces, p.Namespace) ||
		len(r.IncludedResources) > 0 && !pods(r.IncludedResources) || pods(r.ExcludedResources) {
		return false, nil
	}
	if r.LabelSelector == nil {
		return true, nil
	}
	s, err := metav1.LabelSelectorAsSelector(r.LabelSelector)
	if err != nil {
		return false, fmt.Errorf("hook %q: labelSelector: %w", r.Name, err)
	}
	return s.Matches(labels.Set(p.Labels)), nil
}

// ready are the hooks of the ready set that a Pod's label or image calls for.
func (r *Rules) ready(p *corev1.Pod) (*Plan, error) {
	all, err := r.sets()
	if err != nil {
		return nil, err
	}
	wanted := p.Labels[SetLabel]
	for _, s := range all {
		for _, c := range p.Spec.Containers {
			if wanted == "" && !slices.Contains(s.Images, imageName(c.Image)) || wanted != "" && wanted != s.Name {
				continue
			}
			plan := &Plan{}
			for _, h := range s.Pre {
				plan.Pre = append(plan.Pre, s.hook(p, c.Name, h))
			}
			for _, h := range s.Post {
				plan.Post = append(plan.Post, s.hook(p, c.Name, h))
			}
			return plan, nil
		}
	}
	if wanted != "" && wanted != "none" {
		return nil, fmt.Errorf("in Pod %s/%s: there is no set of hooks %q (label %s)", p.Namespace, p.Name, wanted, SetLabel)
	}
	return &Plan{}, nil
}

func (s *Set) hook(p *corev1.Pod, container string, h Hook) Hook {
	if h.Container == "" {
		h.Container = container
	}
	if h.OnError == "" {
		h.OnError = Continue // nobody asked for it; the backup is still crash-consistent without
	}
	h.Set = s.Name
	return filled(p, h)
}

// imageName is the last part of an image's name, without tag and digest.
func imageName(image string) string {
	image, _, _ = strings.Cut(image, "@")
	name, _, _ := strings.Cut(path.Base(image), ":")
	return name
}

// annotated are the hooks of Velero's annotations; nil when there are none.
func annotated(p *corev1.Pod) (*Plan, error) {
	pre, err := annotation(p, "pre.hook.backup.velero.io/")
	if err == nil && pre == nil {
		pre, err = annotation(p, "hook.backup.velero.io/") // from before there were two kinds
	}
	if err != nil {
		return nil, err
	}
	post, err := annotation(p, "post.hook.backup.velero.io/")
	if err != nil || pre == nil && post == nil {
		return nil, err
	}
	plan := &Plan{}
	if pre != nil {
		plan.Pre = []Hook{*pre}
	}
	if post != nil {
		plan.Post = []Hook{*post}
	}
	return plan, nil
}

func annotation(p *corev1.Pod, prefix string) (*Hook, error) {
	text := p.Annotations[prefix+"command"]
	if text == "" {
		return nil, nil
	}
	h := Hook{Container: p.Annotations[prefix+"container"], OnError: Mode(p.Annotations[prefix+"on-error"])}
	var err error
	if h.Command, err = command(text); err == nil {
		h.Timeout, err = timeout(p.Annotations[prefix+"timeout"])
	}
	if err == nil && h.OnError != "" && h.OnError != Fail && h.OnError != Continue {
		err = fmt.Errorf("on-error %q is neither Fail nor Continue", h.OnError)
	}
	if err != nil {
		return nil, fmt.Errorf("in Pod %s/%s: annotations %s*: %w", p.Namespace, p.Name, prefix, err)
	}
	return new(filled(p, h)), nil
}

// command is one program, or a JSON list of it and its arguments.
func command(text string) ([]string, error) {
	if !strings.HasPrefix(text, "[") {
		return []string{text}, nil
	}
	var list []string
	if err := json.Unmarshal([]byte(text), &list); err != nil || len(list) == 0 {
		return nil, fmt.Errorf("command is no JSON list of texts: %w", err)
	}
	return list, nil
}

func timeout(text string) (Duration, error) {
	if text == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("timeout %q is not a time such as 30s", text)
	}
	return Duration(d), nil
}

// Restored is a program that is run in a container of a Pod that was restored, once it runs.
type Restored struct {
	Hook
	// Wait is how long the container may take until it runs.
	Wait time.Duration
	// Ready waits until it is ready as well.
	Ready bool
}

// DefaultWait is how long a restored container may take until it runs.
const DefaultWait = 5 * time.Minute

// AfterRestore is what Velero's annotations of a Pod ask for after a restore; nil: nothing.
func AfterRestore(p *corev1.Pod) (*Restored, error) {
	const prefix = "post.hook.restore.velero.io/"
	text := p.Annotations[prefix+"command"]
	if text == "" {
		return nil, nil
	}
	r := Restored{Hook: Hook{Container: p.Annotations[prefix+"container"], OnError: Mode(p.Annotations[prefix+"on-error"])}, Wait: DefaultWait}
	var err error
	if r.Command, err = command(text); err == nil {
		r.Timeout, err = timeout(p.Annotations[prefix+"exec-timeout"])
	}
	if err == nil {
		var wait Duration
		if wait, err = timeout(p.Annotations[prefix+"wait-timeout"]); wait > 0 {
			r.Wait = time.Duration(wait)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("in Pod %s/%s: annotations %s*: %w", p.Namespace, p.Name, prefix, err)
	}
	r.Ready = p.Annotations[prefix+"wait-for-ready"] == "true"
	r.Hook = filled(p, r.Hook)
	return &r, nil
}
