// Package mix makes up the objects of namespaces, in the mix of kinds that real ones have, for benchmarks.
package mix

import (
	"fmt"
	"maps"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// part is a share of the mixed objects of a namespace.
type part struct {
	gvr  schema.GroupVersionResource
	kind string
	n    int // of 1,000
	body func(i int) map[string]any
}

// parts are what namespaces are made of: mostly configuration, some workloads and what goes with them.
// No controller makes anything of them, so that all that is counted is written by the restore.
func parts() []part {
	text := strings.Repeat("some line of a configuration file = 12345\n", 24)
	pod := map[string]any{
		"metadata": map[string]any{"labels": map[string]any{"app": "web"}},
		"spec": map[string]any{"containers": []any{map[string]any{
			"name": "web", "image": "registry.example.com/web:1.2.3", "ports": []any{map[string]any{"containerPort": int64(8080)}},
			"env":            []any{map[string]any{"name": "MODE", "value": "fast"}, map[string]any{"name": "LEVEL", "value": "info"}},
			"resources":      map[string]any{"requests": map[string]any{"cpu": "10m", "memory": "16Mi"}},
			"readinessProbe": map[string]any{"httpGet": map[string]any{"path": "/ready", "port": int64(8080)}},
		}}},
	}
	selector := map[string]any{"matchLabels": map[string]any{"app": "web"}}
	gvr := func(group, version, resource string) schema.GroupVersionResource {
		return schema.GroupVersionResource{Group: group, Version: version, Resource: resource}
	}
	spec := func(fields map[string]any) func(int) map[string]any {
		return func(int) map[string]any { return map[string]any{"spec": fields} }
	}
	return []part{
		{gvr("", "v1", "configmaps"), "ConfigMap", 350, func(i int) map[string]any {
			return map[string]any{"data": map[string]any{"app.conf": fmt.Sprintf("%d\n%s", i, text)}}
		}},
		{gvr("", "v1", "secrets"), "Secret", 250, func(int) map[string]any {
			return map[string]any{"data": map[string]any{"token": strings.Repeat("Y2FuYXJ5", 30)}}
		}},
		{gvr("", "v1", "services"), "Service", 100, spec(map[string]any{"selector": map[string]any{"app": "web"}, "ports": []any{map[string]any{"name": "http", "port": int64(80)}}})},
		{gvr("", "v1", "pods"), "Pod", 50, spec(pod["spec"].(map[string]any))},
		{gvr("apps", "v1", "deployments"), "Deployment", 100, spec(map[string]any{"replicas": int64(0), "paused": true, "selector": selector, "template": pod})},
		{gvr("", "v1", "serviceaccounts"), "ServiceAccount", 50, func(int) map[string]any { return nil }},
		{gvr("rbac.authorization.k8s.io", "v1", "roles"), "Role", 50, func(int) map[string]any {
			return map[string]any{"rules": []any{map[string]any{"apiGroups": []any{""}, "resources": []any{"pods"}, "verbs": []any{"get", "list"}}}}
		}},
		{gvr("policy", "v1", "poddisruptionbudgets"), "PodDisruptionBudget", 50, spec(map[string]any{"minAvailable": int64(1), "selector": selector})},
	}
}

// Objects makes a namespace's n objects, and the resource of each. All have the label app=web.
func Objects(ns string, n int) (all []*unstructured.Unstructured, resources []schema.GroupVersionResource) {
	for _, p := range parts() {
		for i := range p.n * n / 1000 {
			version := p.gvr.GroupVersion().String()
			u := &unstructured.Unstructured{Object: map[string]any{"apiVersion": version, "kind": p.kind}}
			maps.Copy(u.Object, p.body(i))
			u.SetNamespace(ns)
			u.SetName(fmt.Sprintf("%s-%d", strings.ToLower(p.kind), i))
			u.SetLabels(map[string]string{"app": "web", "tier": fmt.Sprint(i % 3)})
			all, resources = append(all, u), append(resources, p.gvr)
		}
	}
	return all, resources
}

// Resources are the resources of Objects.
func Resources() (all []schema.GroupVersionResource) {
	for _, p := range parts() {
		all = append(all, p.gvr)
	}
	return all
}
