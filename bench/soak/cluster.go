package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
)

// cluster is the writer's side of the recorded cluster.
type cluster struct {
	client *dynamic.DynamicClient
}

// kind says how a resource is written.
type kind struct {
	gvr  schema.GroupVersionResource
	name string
}

func kindOf(group, version, resource, name string) kind {
	return kind{schema.GroupVersionResource{Group: group, Version: version, Resource: resource}, name}
}

var kinds = map[string]kind{
	"namespaces": kindOf("", "v1", "namespaces", "Namespace"), "nodes": kindOf("", "v1", "nodes", "Node"),
	"configmaps": kindOf("", "v1", "configmaps", "ConfigMap"), "secrets": kindOf("", "v1", "secrets", "Secret"),
	"services": kindOf("", "v1", "services", "Service"), "pods": kindOf("", "v1", "pods", "Pod"),
	"serviceaccounts": kindOf("", "v1", "serviceaccounts", "ServiceAccount"),
	"deployments":     kindOf("apps", "v1", "deployments", "Deployment"),
	"jobs":            kindOf("batch", "v1", "jobs", "Job"), "cronjobs": kindOf("batch", "v1", "cronjobs", "CronJob"),
	"roles":                     kindOf("rbac.authorization.k8s.io", "v1", "roles", "Role"),
	"rolebindings":              kindOf("rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding"),
	"buckets":                   kindOf("soak.example.com", "v1", "buckets", "Bucket"),
	"gizmos":                    kindOf("soak.example.com", "v1", "gizmos", "Gizmo"),
	"customresourcedefinitions": kindOf("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition"),
}

// writeLimit is how long one write may take: a server that is paused must not stop the churn.
const writeLimit = 5 * time.Second

func newCluster(config *rest.Config) (*cluster, error) {
	config.Timeout = writeLimit
	client, err := dynamic.NewForConfig(config)
	return &cluster{client}, err
}

func (c *cluster) resource(name, namespace string) (dynamic.ResourceInterface, kind) {
	k := kinds[name]
	if namespace == "" {
		return c.client.Resource(k.gvr), k
	}
	return c.client.Resource(k.gvr).Namespace(namespace), k
}

// missing reports whether what was wanted, or its namespace or definition, is not there.
func missing(err error) bool { return apierrors.IsNotFound(err) }

func build(k kind, namespace, name string, fields map[string]any) (*unstructured.Unstructured, error) {
	whole := maps.Clone(fields)
	maps.Copy(whole, map[string]any{"apiVersion": k.gvr.GroupVersion().String(), "kind": k.name})
	b, err := json.Marshal(whole)
	if err != nil {
		return nil, err
	}
	u := &unstructured.Unstructured{}
	if err := u.UnmarshalJSON(b); err != nil {
		return nil, err
	}
	u.SetNamespace(namespace)
	u.SetName(name)
	return u, nil
}

// put merges the fields into the object, or makes it when there is none.
func (c *cluster) put(ctx context.Context, resource, namespace, name string, fields map[string]any) error {
	err := c.patch(ctx, resource, namespace, name, fields)
	if !missing(err) {
		return err
	}
	r, k := c.resource(resource, namespace)
	u, err := build(k, namespace, name, fields)
	if err != nil {
		return err
	}
	_, err = r.Create(ctx, u, metav1.CreateOptions{})
	return err
}

func (c *cluster) patch(ctx context.Context, resource, namespace, name string, fields map[string]any) error {
	b, err := json.Marshal(fields)
	if err != nil {
		return err
	}
	r, _ := c.resource(resource, namespace)
	_, err = r.Patch(ctx, name, types.MergePatchType, b, metav1.PatchOptions{})
	return err
}

func (c *cluster) apply(ctx context.Context, resource, namespace, name, manager string, fields map[string]any) error {
	r, k := c.resource(resource, namespace)
	u, err := build(k, namespace, name, fields)
	if err != nil {
		return err
	}
	_, err = r.Apply(ctx, name, u, metav1.ApplyOptions{FieldManager: manager, Force: true})
	return err
}

func (c *cluster) erase(ctx context.Context, resource, namespace, name string) error {
	r, _ := c.resource(resource, namespace)
	background := metav1.DeletePropagationBackground
	return r.Delete(ctx, name, metav1.DeleteOptions{PropagationPolicy: &background})
}

// namespace makes one, with the account that the churn's own pods use.
func (c *cluster) namespace(ctx context.Context, name string) error {
	if err := c.put(ctx, "namespaces", "", name, map[string]any{"metadata": map[string]any{"labels": map[string]any{"soak": "true"}}}); err != nil {
		return err
	}
	return c.put(ctx, "serviceaccounts", name, "runner", map[string]any{})
}

// define makes or changes a definition. Its schema keeps what it does not know, so that objects outlive each version of it.
func (c *cluster) define(ctx context.Context, plural string, s step) error {
	k := kinds[plural]
	return c.put(ctx, "customresourcedefinitions", "", plural+"."+k.gvr.Group, map[string]any{
		"metadata": map[string]any{"labels": map[string]any{"v": fmt.Sprint(s.pick(1, 9))}},
		"spec": map[string]any{
			"group": k.gvr.Group, "scope": "Namespaced",
			"names": map[string]any{"plural": plural, "singular": plural[:len(plural)-1], "kind": k.name, "listKind": k.name + "List"},
			"versions": []any{map[string]any{
				"name": "v1", "served": true, "storage": true,
				"additionalPrinterColumns": []any{map[string]any{"name": "Size", "type": "integer", "jsonPath": ".spec.size", "priority": s.pick(2, 3)}},
				"schema":                   map[string]any{"openAPIV3Schema": map[string]any{"type": "object", "description": s.text(), "x-kubernetes-preserve-unknown-fields": true}},
			}},
		},
	})
}

// furnish makes what the churn needs before it begins.
func (c *cluster) furnish(ctx context.Context) error {
	for i := range 3 {
		if err := c.put(ctx, "nodes", "", fmt.Sprint("node-", i), map[string]any{
			"metadata": map[string]any{"labels": map[string]any{"kubernetes.io/hostname": fmt.Sprint("node-", i)}},
			"spec":     map[string]any{"podCIDR": fmt.Sprintf("10.%d.0.0/24", i)},
		}); err != nil {
			return err
		}
	}
	for i := range churnNamespaces {
		if err := c.namespace(ctx, fmt.Sprint("soak-", i)); err != nil {
			return err
		}
	}
	for _, plural := range []string{"buckets", "gizmos"} {
		if err := c.define(ctx, plural, step{}); err != nil {
			return err
		}
	}
	return nil
}
