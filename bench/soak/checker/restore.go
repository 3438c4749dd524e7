package checker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Restore has namespace put back as it was at the Moment, into another cluster and under the name as, and compares.
// kubeconfig is that cluster's, and target asks it. unsure are resources for which the ledger does not vouch. It returns how many objects were compared.
func (s *Source) Restore(ctx context.Context, mo *Moment, namespace, as, kubeconfig string, target *Client, unsure map[string]bool) (int, error) {
	then, err := mo.objects(namespace)
	if err != nil {
		return 0, err
	}
	stdout, _, err := s.run(ctx, "restore", "-n", namespace, "--at", fmt.Sprintf("rv:%d", mo.RV), "--namespace-mappings", namespace+":"+as,
		"--kubeconfig", kubeconfig, "--other-cluster", "--yes", "-o", "json", "--records", filepath.Join(s.Dir, "records"), "--events=false")
	if err != nil {
		report := filepath.Join(s.Dir, "restore-"+as+".json")
		return 0, errors.Join(fmt.Errorf("restore of %s at rv:%d from %s: %w (its report: %s)", namespace, mo.RV, s.Name, err, report), os.WriteFile(report, stdout, 0o600))
	}
	n := 0
	for i := range mo.Resources {
		r := &mo.Resources[i]
		if !r.Namespaced || nobodyRestores[r.Name] || unsure[r.Name] {
			continue
		}
		items, _, err := target.list(ctx, r, r.in(as), "")
		if errors.Is(err, errMissing) && len(then[r.Name]) == 0 {
			continue // the definition was not needed
		}
		if err != nil {
			return n, fmt.Errorf("list %s in %s: %w", r.Name, as, err)
		}
		have := map[string][]byte{}
		for _, it := range items {
			_, name := split(it.key)
			have[name] = it.raw
		}
		found, err := s.restored(mo, r, then, have, namespace, as)
		if n += found; err != nil {
			return n, err
		}
	}
	return n, nil
}

// nobodyRestores are resources that tell about the running cluster, or that controllers make anew (see `tidemark restore --help`).
var nobodyRestores = map[string]bool{
	"events": true, "events.events.k8s.io": true, "leases.coordination.k8s.io": true, "endpoints": true,
	"endpointslices.discovery.k8s.io": true, "csistoragecapacities.storage.k8s.io": true, "controllerrevisions.apps": true,
}

// restored compares one resource of the namespace.
func (s *Source) restored(mo *Moment, r *Resource, then map[string]map[string][]byte, have map[string][]byte, namespace, as string) (int, error) {
	n := 0
	for _, key := range slices.Sorted(maps.Keys(then[r.Name])) {
		_, name := split(key)
		was, err := decode(then[r.Name][key])
		if err != nil {
			return n, err
		}
		raw, there := have[name]
		delete(have, name)
		if !there && !wanted(r.Name, was) {
			continue
		}
		d := &Difference{RV: mo.RV, Resource: r.Name, Key: key, Who: "the restore from " + s.Name + " into " + as, File: mo.file}
		if !there {
			d.Want, d.Have = "the object", "no object"
			return n, d
		}
		is, err := decode(raw)
		if err != nil {
			return n, err
		}
		want, got := canonical(reduce(r.Name, was, namespace)), canonical(reduce(r.Name, is, as))
		if !bytes.Equal(want, got) {
			d.Want, d.Have = hash(want)[:16], hash(got)[:16]
			d.Saved = filepath.Join(s.Dir, fmt.Sprintf("restored-%d-%s.json", mo.RV, as))
			return n, errors.Join(d, os.WriteFile(d.Saved, slices.Concat(want, []byte("\n"), got, []byte("\n")), 0o600))
		}
		n++
	}
	for name := range have {
		return n, &Difference{RV: mo.RV, Resource: r.Name, Key: namespace + "/" + name, Who: "the restore from " + s.Name + " into " + as, Want: "not there", Have: "an object", File: mo.file}
	}
	return n, nil
}

type object = map[string]any

func decode(raw []byte) (object, error) {
	var o object
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(&o); err != nil {
		return nil, errors.New("an object is no JSON")
	}
	return o, nil
}

// canonical writes an object in the one way in which equal objects are equal bytes: json.Marshal sorts keys, and
// numbers stay as they were written.
func canonical(o object) []byte {
	b, err := json.Marshal(o)
	if err != nil {
		panic(err) // it came from JSON
	}
	return b
}

func sub(o object, path ...string) object {
	for _, p := range path {
		next, ok := o[p].(object)
		if !ok {
			return object{}
		}
		o = next
	}
	return o
}

func list(o object, field string) []any { l, _ := o[field].([]any); return l }

// wanted reports whether a restore must bring the object back. What it may leave to controllers, which the scratch
// cluster has none of, is not wanted; when it is there all the same it is compared.
func wanted(resource string, o object) bool {
	meta := sub(o, "metadata")
	if meta["deletionTimestamp"] != nil || len(list(meta, "ownerReferences")) > 0 {
		return false
	}
	phase, _ := sub(o, "status")["phase"].(string)
	switch {
	case resource == "configmaps" && meta["name"] == "kube-root-ca.crt", resource == "serviceaccounts" && meta["name"] == "default":
		return false
	case resource == "pods" && (phase == "Succeeded" || phase == "Failed"), resource == "jobs.batch":
		return false
	case resource == "secrets" && o["type"] == "kubernetes.io/service-account-token":
		return false
	}
	return true
}

// reduce leaves what a restore promises: all but the status and what identifies the object, and without what
// docs/design.md, section 7, and replay's rules say is given anew.
func reduce(resource string, o object, namespace string) object {
	meta := sub(o, "metadata")
	keep := object{}
	for _, f := range []string{"name", "labels", "annotations", "finalizers"} {
		if v, ok := meta[f]; ok {
			keep[f] = v
		}
	}
	spec := sub(o, "spec")
	switch resource {
	case "deployments.apps":
		delete(sub(meta, "annotations"), "deployment.kubernetes.io/revision")
	case "services":
		if spec["clusterIP"] != "None" {
			delete(spec, "clusterIP")
			delete(spec, "clusterIPs")
		}
		for _, p := range list(spec, "ports") {
			if port, ok := p.(object); ok {
				delete(port, "nodePort")
			}
		}
	case "jobs.batch": // the selector follows from the uid
		delete(spec, "selector")
		for _, labels := range []object{sub(meta, "labels"), sub(spec, "template", "metadata", "labels")} {
			for _, l := range []string{"controller-uid", "batch.kubernetes.io/controller-uid", "job-name", "batch.kubernetes.io/job-name"} {
				delete(labels, l)
			}
		}
		if labels, ok := keep["labels"].(object); ok && len(labels) == 0 {
			delete(keep, "labels")
		}
	case "pods":
		delete(spec, "nodeName") // it is scheduled anew
		dropTokens(spec)
	case "rolebindings.rbac.authorization.k8s.io":
		for _, one := range list(o, "subjects") {
			if who, ok := one.(object); ok && who["namespace"] == namespace {
				who["namespace"] = "HERE"
			}
		}
	}
	if a, ok := keep["annotations"].(object); ok && len(a) == 0 {
		delete(keep, "annotations")
	}
	delete(o, "status")
	o["metadata"] = keep
	return o
}

// dropTokens removes the volumes of service account tokens, whose names are random, from a Pod.
func dropTokens(spec object) {
	token := func(v any) bool {
		o, _ := v.(object)
		name, _ := o["name"].(string)
		return strings.HasPrefix(name, "kube-api-access-")
	}
	trim := func(o object, field string) {
		if left := slices.DeleteFunc(list(o, field), token); len(left) == 0 {
			delete(o, field)
		} else {
			o[field] = left
		}
	}
	trim(spec, "volumes")
	for _, field := range []string{"containers", "initContainers"} {
		for _, c := range list(spec, field) {
			if container, ok := c.(object); ok {
				trim(container, "volumeMounts")
			}
		}
	}
}

// Empty removes a namespace of a cluster that has no controllers, with all that is in it.
func (c *Client) Empty(ctx context.Context, namespace string) error {
	all, err := c.Resources(ctx)
	if err != nil {
		return err
	}
	for i := range all {
		r := &all[i]
		if !r.Namespaced || Unrecorded[r.Name] {
			continue
		}
		// Finalizers would hold some of it back; the whole cluster goes away soon enough.
		if err := c.do(ctx, http.MethodDelete, r.in(namespace), nil, nil); err != nil && !errors.Is(err, errMissing) && !strings.Contains(err.Error(), "405") {
			return err
		}
	}
	if err := c.do(ctx, http.MethodDelete, "/api/v1/namespaces/"+namespace, nil, nil); err != nil && !errors.Is(err, errMissing) {
		return err
	}
	body := fmt.Sprintf(`{"apiVersion":"v1","kind":"Namespace","metadata":{"name":%q},"spec":{"finalizers":[]}}`, namespace)
	err = c.do(ctx, http.MethodPut, "/api/v1/namespaces/"+namespace+"/finalize", []byte(body), nil)
	if errors.Is(err, errMissing) {
		err = nil
	}
	return err
}

// Namespaces are those of the Moment that were alive and not going, and whose names begin with prefix.
func (mo *Moment) Namespaces(prefix string) ([]string, error) {
	all, err := mo.objects("")
	if err != nil {
		return nil, err
	}
	var out []string
	for _, key := range slices.Sorted(maps.Keys(all["namespaces"])) {
		o, err := decode(all["namespaces"][key])
		if err != nil {
			return nil, err
		}
		if _, name := split(key); strings.HasPrefix(name, prefix) && sub(o, "metadata")["deletionTimestamp"] == nil {
			out = append(out, name)
		}
	}
	return out, nil
}

// Age is how long ago the Moment was taken.
func (mo *Moment) Age() time.Duration { return time.Since(mo.Taken) }
