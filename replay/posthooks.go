package replay

import (
	"errors"
	"fmt"
	"maps"
	"strings"
)

// Velero's annotations for what is run when Pods are restored.
const (
	initHook = "init.hook.restore.velero.io/"
	postHook = "post.hook.restore.velero.io/"
)

// Hooked is a Pod, or what makes Pods, that wants a program run in its containers when it has been restored.
type Hooked struct {
	Namespace, Name string
	Kind            string
	// Labels are those of its Pods; nil: it is the Pod.
	Labels map[string]string
	// Replicas is how many Pods there will be.
	Replicas int
	// Annotations are those of its Pods.
	Annotations map[string]string
}

// String names the object.
func (h *Hooked) String() string { return fmt.Sprintf("%s %s/%s", h.Kind, h.Namespace, h.Name) }

// NoteHook records that the hook of an object was run in all of its Pods, or was left out, or failed.
func (rec *Record) NoteHook(h *Hooked, leftOut bool, failed error) error {
	o := outcome{State: "done"}
	switch {
	case failed != nil:
		o.State, o.Why = "failed", failed.Error()
	case leftOut:
		o.State = "left"
	}
	rec.mu.Lock()
	defer rec.mu.Unlock()
	rec.hooks[h.String()] = o
	return errors.Join(rec.append(line{Hook: h.String(), outcome: o}), rec.sync())
}

// EachHook yields what became of each hook of the plan: "done", "left", "failed" or nothing, and why.
func (rec *Record) EachHook(yield func(h *Hooked, state, why string)) {
	for _, h := range rec.Plan.PostHooks() {
		o := rec.hooks[h.String()]
		yield(&h, o.State, o.Why)
	}
}

// HooksOwed are the hooks that are still to be run, failed ones among them.
func (rec *Record) HooksOwed() (all []Hooked) {
	rec.EachHook(func(h *Hooked, state, _ string) {
		if state != "done" && state != "left" {
			all = append(all, *h)
		}
	})
	return all
}

// PostHooks are the objects that the plan makes whose annotations call for a program after the restore.
func (p *Plan) PostHooks() (all []Hooked) {
	for _, it := range p.Items {
		if !it.makes() || !workloads[it.Resource.String()] || it.create == nil || !strings.Contains(string(it.create.json()), postHook) {
			continue
		}
		o := it.create.object()
		h := Hooked{Namespace: it.Namespace, Name: it.Name, Kind: o.str("kind"), Replicas: 1}
		if it.Resource.String() == "pods" {
			h.Annotations = texts(o.sub("metadata", "annotations"))
		} else {
			h.Annotations, h.Labels = texts(o.sub("spec", "template", "metadata", "annotations")), texts(o.sub("spec", "template", "metadata", "labels"))
			if n, ok := o.at("spec", "replicas").(int64); ok {
				h.Replicas = int(n)
			}
			for _, s := range p.Items { // it may be made at rest
				if s.Action == ActionStart && s.key() == it.key() {
					if field, was := s.starts(); field == "replicas" {
						if n, ok := was.(int64); ok {
							h.Replicas = int(n)
						}
					}
				}
			}
		}
		if h.Annotations[postHook+"command"] != "" && h.Replicas > 0 {
			all = append(all, h)
		}
	}
	return all
}

func texts(o object) map[string]string {
	out := map[string]string{}
	for k, v := range maps.All(o) {
		if s, ok := v.(string); ok {
			out[k] = s
		}
	}
	return out
}

// tellHooks says in the plan which programs will be run, and which will not.
func (p *planner) tellHooks() {
	for _, it := range p.plan.Items {
		if !it.makes() || !workloads[it.Resource.String()] || it.Resource.String() == "pods" || it.create == nil || !strings.Contains(string(it.create.json()), initHook) {
			continue
		}
		if template := podTemplate(it.create.object()); texts(template.sub("metadata", "annotations"))[initHook+"container-image"] != "" {
			p.warn("%s: the init container that its Pods' annotations ask for (%s*) is NOT run: only Pods of their own get it, as a template would keep it for ever. To do its work by hand, restore the claims alone before ('tidemark restore pvc'), and the workload after", it, initHook)
		}
	}
	for _, h := range p.plan.PostHooks() {
		p.warn("%s: a program is run in its Pods when they run (annotation %scommand); --restore-hooks=false leaves it out", &h, postHook)
	}
}

// podTemplate is what a workload makes its Pods of.
func podTemplate(o object) object {
	if t := o.sub("spec", "jobTemplate", "spec", "template"); t != nil {
		return t
	}
	return o.sub("spec", "template")
}

// addInitHook gives a Pod the init container that its annotations ask for when it is restored. Pods that a controller makes anew do not have it: their
// template would keep it for ever.
func addInitHook(s *subject) {
	image, command := s.obj.annotation(initHook+"container-image"), s.obj.annotation(initHook+"command")
	if image == "" {
		return
	}
	name := s.obj.annotation(initHook + "container-name")
	if name == "" {
		name = "restore-hook"
	}
	// One that an earlier restore added is no part of the Pod.
	s.obj.putList(without(s.obj.list("spec", "initContainers"), func(c object) bool { return c.str("name") == name && c.str("image") == image }), "spec", "initContainers")
	if s.live || s.exists {
		return
	}
	c := map[string]any{"name": name, "image": image}
	if command != "" {
		c["command"] = commandOf(command)
	}
	if mounts := s.obj.objects("spec", "containers"); len(mounts) > 0 { // as Velero does: it sees what the first container sees
		if list := mounts[0].list("volumeMounts"); list != nil {
			c["volumeMounts"] = list
		}
	}
	s.obj.putList(append([]any{c}, s.obj.list("spec", "initContainers")...), "spec", "initContainers")
}

// commandOf is one program, or a JSON list of it and its arguments.
func commandOf(text string) []any {
	if list, err := parseList(text); err == nil {
		return list
	}
	return []any{text}
}

func parseList(text string) ([]any, error) {
	if !strings.HasPrefix(text, "[") {
		return nil, fmt.Errorf("%q is no list", text)
	}
	o, err := parseObject([]byte(`{"list":` + text + `}`))
	if err != nil {
		return nil, err
	}
	return o.list("list"), nil
}
