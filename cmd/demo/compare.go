package main

import (
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"
	"text/tabwriter"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
)

// tally counts the objects of one resource.
type tally struct{ before, equal int }

// comparison is what two pictures have in common.
type comparison struct {
	tallies     map[string]tally
	differences map[id][]string // of each object that differs: what; never values, which could be secret
	before, now *picture
}

// compare holds the objects of now against those of before.
func compare(before, now *picture) *comparison {
	c := &comparison{tallies: map[string]tally{}, differences: map[id][]string{}, before: before, now: now}
	for key, was := range before.objects {
		t := c.tallies[key.resource]
		t.before++
		if is, ok := now.objects[key]; !ok {
			c.differences[key] = []string{"did not come back"}
		} else if paths := different("", essence(was, before), essence(is, now)); len(paths) > 0 {
			c.differences[key] = paths
		} else if is.GetUID() == was.GetUID() {
			c.differences[key] = []string{"was never gone"} // then the comparison proves nothing
		} else {
			t.equal++
		}
		c.tallies[key.resource] = t
	}
	for key := range now.objects {
		if before.objects[key] == nil {
			c.differences[key] = []string{"was not there before"}
		}
	}
	return c
}

// essence is what must come back of an object: all but what the server and controllers write,
// with owners by name instead of by uid.
func essence(object *unstructured.Unstructured, p *picture) map[string]any {
	o := object.DeepCopy()
	for _, field := range []string{"uid", "resourceVersion", "generation", "creationTimestamp", "selfLink", "managedFields"} {
		unstructured.RemoveNestedField(o.Object, "metadata", field)
	}
	unstructured.RemoveNestedField(o.Object, "status")
	owners, _, _ := unstructured.NestedSlice(o.Object, "metadata", "ownerReferences")
	for i, owner := range owners {
		if m, ok := owner.(map[string]any); ok {
			uid, _ := m["uid"].(string)
			// An owner that is not there by this uid gets its object garbage collected.
			m["uid"] = "of nobody"
			if key, ok := p.byUID[types.UID(uid)]; ok {
				m["uid"] = "of " + key.String()
			}
			owners[i] = m
		}
	}
	if len(owners) > 0 {
		_ = unstructured.SetNestedSlice(o.Object, owners, "metadata", "ownerReferences") // it was a slice there
	}
	switch o.GetKind() {
	case "Deployment": // counts the roll-outs since it was created
		removeKey(o.Object, "deployment.kubernetes.io/revision", "metadata", "annotations")
	case "Service": // a cluster IP is assigned anew; "None" is a wish
		if ip, _, _ := unstructured.NestedString(o.Object, "spec", "clusterIP"); ip != "None" {
			unstructured.RemoveNestedField(o.Object, "spec", "clusterIP")
			unstructured.RemoveNestedField(o.Object, "spec", "clusterIPs")
		}
	case "Job": // a Job selects its pods by its own uid
		for _, label := range []string{"controller-uid", "batch.kubernetes.io/controller-uid"} {
			removeKey(o.Object, label, "metadata", "labels")
			removeKey(o.Object, label, "spec", "selector", "matchLabels")
			removeKey(o.Object, label, "spec", "template", "metadata", "labels")
		}
	}
	return o.Object
}

// removeKey removes a key that may hold dots from a nested map, and the map when that empties it.
func removeKey(object map[string]any, key string, path ...string) {
	m, found, _ := unstructured.NestedFieldNoCopy(object, path...)
	if inner, ok := m.(map[string]any); found && ok {
		delete(inner, key)
		if len(inner) == 0 {
			unstructured.RemoveNestedField(object, path...)
		}
	}
}

// different returns the paths at which two JSON values differ.
func different(path string, a, b any) []string {
	ma, aIsMap := a.(map[string]any)
	mb, bIsMap := b.(map[string]any)
	if aIsMap && bIsMap {
		keys := slices.Collect(maps.Keys(ma))
		for key := range mb {
			if _, ok := ma[key]; !ok {
				keys = append(keys, key)
			}
		}
		slices.Sort(keys)
		var paths []string
		for _, key := range keys {
			paths = append(paths, different(path+"."+key, ma[key], mb[key])...)
		}
		return paths
	}
	sa, aIsList := a.([]any)
	sb, bIsList := b.([]any)
	if aIsList && bIsList && len(sa) == len(sb) {
		var paths []string
		for i := range sa {
			paths = append(paths, different(fmt.Sprintf("%s[%d]", path, i), sa[i], sb[i])...)
		}
		return paths
	}
	if reflect.DeepEqual(a, b) {
		return nil
	}
	return []string{path}
}

// write prints a line per resource and each difference.
func (c *comparison) write(out io.Writer) {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 4, 3, ' ', 0)
	fmt.Fprintln(w, "RESOURCE\tTHE SAME AS BEFORE")
	for _, resource := range slices.Sorted(maps.Keys(c.tallies)) {
		t := c.tallies[resource]
		fmt.Fprintf(w, "%s\t%d of %d\n", resource, t.equal, t.before)
	}
	_ = w.Flush() // a strings.Builder takes everything
	made := make([]string, 0, len(c.before.made))
	for _, resource := range slices.Sorted(maps.Keys(c.before.made)) {
		made = append(made, fmt.Sprintf("%s %d (%d)", resource, c.now.made[resource], c.before.made[resource]))
	}
	fmt.Fprintf(&b, "made anew by controllers, now (before): %s\n", strings.Join(made, ", "))
	var lines []string
	for key, paths := range c.differences {
		lines = append(lines, fmt.Sprintf("DIFFERS: %s: %s\n", key, strings.Join(paths, ", ")))
	}
	slices.Sort(lines)
	fmt.Fprint(out, b.String()+strings.Join(lines, ""))
}
