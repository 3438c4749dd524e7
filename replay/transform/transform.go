package transform

import (
	"errors"
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Options say what is changed. The zero Options change nothing.
type Options struct {
	// StorageClasses are new names by old ones.
	StorageClasses map[string]string
	// Images are rewritten by the first that fits.
	Images []ImageRewrite
	// Modifiers are files of resource modifiers, used in their order.
	Modifiers []File
	// Expressions come last, in their order.
	Expressions []Expression
}

// File is a file's text, and its name for messages.
type File struct {
	Name string
	Text []byte
}

// Set is all transforms of a restore. A nil Set changes nothing. It may be used from any goroutine.
type Set struct {
	classes map[string]string
	images  []ImageRewrite
	steps   []step
}

// step is one rule of a file, or one expression.
type step interface {
	// apply gives the changed object, or the same one when it is not for it.
	apply(gr schema.GroupResource, namespace string, o map[string]any) (out map[string]any, did bool, err error)
	title() string
}

func (r *rule) title() string       { return r.name }
func (e *expression) title() string { return e.name }

// New reads the rules. An error names the file and the rule.
func New(o Options) (*Set, error) {
	s := &Set{classes: o.StorageClasses, images: o.Images}
	for from, to := range o.StorageClasses {
		if from == "" || to == "" {
			return nil, errors.New("a storage class mapping needs two names: OLD:NEW")
		}
	}
	for _, f := range o.Modifiers {
		rules, err := parseModifiers(f)
		if err != nil {
			return nil, err
		}
		for _, r := range rules {
			s.steps = append(s.steps, r)
		}
	}
	expressions, err := compileExpressions(o.Expressions)
	if err != nil {
		return nil, err
	}
	for _, e := range expressions {
		s.steps = append(s.steps, e)
	}
	return s, nil
}

// Apply changes an object that was recorded in that namespace, and tells which transforms did. The
// object itself stays as it is. An error says which rule failed: the object must not be restored
// without it. Neither quotes a value of the object.
func (s *Set) Apply(gr schema.GroupResource, namespace string, o map[string]any) (out map[string]any, by []string, err error) {
	if s == nil {
		return o, nil, nil
	}
	out = runtime.DeepCopyJSON(o)
	by = append(s.mapClasses(gr, out), s.rewriteImages(gr, out)...)
	for _, r := range s.steps {
		changed, did, err := r.apply(gr, namespace, out)
		if err == nil && did {
			err = sameObject(out, changed)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", r.title(), err)
		}
		if did {
			out, by = changed, append(by, r.title())
		}
	}
	return out, by, nil
}

// sameObject refuses a change of what an object is.
func sameObject(before, after map[string]any) error {
	for _, path := range [][]string{{"apiVersion"}, {"kind"}, {"metadata", "name"}, {"metadata", "namespace"}} {
		if at(before, path...) != at(after, path...) {
			return fmt.Errorf("it changes %s, which makes another object of it: that is not for a transform; for another namespace there is --namespace-mappings", strings.Join(path, "."))
		}
	}
	return nil
}

func at(v any, path ...string) any {
	for _, p := range path {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[p]
	}
	return v
}

func object(v any, path ...string) map[string]any {
	m, _ := at(v, path...).(map[string]any)
	return m
}

// objects are the members of a list that are objects.
func objects(v any, path ...string) (all []map[string]any) {
	list, _ := at(v, path...).([]any)
	for _, e := range list {
		if m, ok := e.(map[string]any); ok {
			all = append(all, m)
		}
	}
	return all
}

// podSpecs are where the resources keep pods, or the templates of pods.
var podSpecs = map[string][]string{
	"pods": {"spec"}, "podtemplates": {"template", "spec"}, "replicationcontrollers": {"spec", "template", "spec"},
	"deployments.apps": {"spec", "template", "spec"}, "statefulsets.apps": {"spec", "template", "spec"}, "daemonsets.apps": {"spec", "template", "spec"},
	"replicasets.apps": {"spec", "template", "spec"}, "jobs.batch": {"spec", "template", "spec"}, "cronjobs.batch": {"spec", "jobTemplate", "spec", "template", "spec"},
}

func podSpec(gr schema.GroupResource, o map[string]any) map[string]any {
	path, ok := podSpecs[gr.String()]
	if !ok {
		return nil
	}
	return object(o, path...)
}

// betaClass is the annotation that named the class before 1.6.
const betaClass = "volume.beta.kubernetes.io/storage-class"

// mapClasses changes the storage class of claims, volumes, and of the claims that workloads make.
func (s *Set) mapClasses(gr schema.GroupResource, o map[string]any) (by []string) {
	swap := func(m map[string]any, key string) {
		if old, ok := m[key].(string); ok && s.classes[old] != "" {
			m[key] = s.classes[old]
			by = append(by, "storage class "+old+" -> "+s.classes[old])
		}
	}
	switch gr.String() {
	case "persistentvolumeclaims", "persistentvolumes":
		swap(object(o, "spec"), "storageClassName")
		swap(object(o, "metadata", "annotations"), betaClass)
	case "statefulsets.apps":
		for _, c := range objects(o, "spec", "volumeClaimTemplates") {
			swap(object(c, "spec"), "storageClassName")
			swap(object(c, "metadata", "annotations"), betaClass)
		}
	}
	for _, v := range objects(podSpec(gr, o), "volumes") {
		swap(object(v, "ephemeral", "volumeClaimTemplate", "spec"), "storageClassName")
	}
	return by
}

// ImageRewrite puts the images of one registry, or of a part of it, elsewhere.
type ImageRewrite struct{ From, To string }

// ParseImageRewrite reads FROM=TO, such as docker.io=registry.example.com/mirror.
func ParseImageRewrite(text string) (ImageRewrite, error) {
	from, to, ok := strings.Cut(text, "=")
	from, to = strings.TrimSuffix(from, "/"), strings.TrimSuffix(to, "/")
	if !ok || from == "" || to == "" {
		return ImageRewrite{}, fmt.Errorf("%q rewrites no image: want FROM=TO, such as docker.io=registry.example.com/mirror", text)
	}
	return ImageRewrite{canonical(from), to}, nil
}

// canonical writes out what an image's name leaves out: nginx is docker.io/library/nginx. It is the rule
// of container runtimes: a first part with a dot or a colon, or localhost, is a registry.
func canonical(image string) string {
	first, rest, more := strings.Cut(image, "/")
	if strings.ContainsAny(first, ".:") && (more || !strings.Contains(first, ":")) || first == "localhost" && more {
		return image
	}
	if !more {
		return "docker.io/library/" + first
	}
	return "docker.io/" + first + "/" + rest
}

// rewrite returns the image under its new name; "" when the rewrite is not for it. The prefix ends
// where a part of the name does.
func (r ImageRewrite) rewrite(image string) string {
	rest, ok := strings.CutPrefix(canonical(image), r.From)
	if !ok || rest != "" && !strings.ContainsRune("/:@", rune(rest[0])) {
		return ""
	}
	return r.To + rest
}

func (s *Set) rewriteImages(gr schema.GroupResource, o map[string]any) (by []string) {
	spec := podSpec(gr, o)
	swap := func(m map[string]any, key string) {
		image, _ := m[key].(string)
		for _, r := range s.images {
			if to := r.rewrite(image); image != "" && to != "" {
				m[key] = to
				by = append(by, "images "+r.From+" -> "+r.To)
				return
			}
		}
	}
	for _, list := range []string{"containers", "initContainers", "ephemeralContainers"} {
		for _, c := range objects(spec, list) {
			swap(c, "image")
		}
	}
	for _, v := range objects(spec, "volumes") {
		swap(object(v, "image"), "reference")
	}
	return by
}
