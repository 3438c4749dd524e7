package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
)

// observer looks at a cluster with plain client-go: the demo's witness, which knows nothing of
// Tidemark.
type observer struct {
	discovery *discovery.DiscoveryClient
	dyn       dynamic.Interface
}

func newObserver(cfg *rest.Config) (*observer, error) {
	cfg = rest.CopyConfig(cfg)
	cfg.WarningHandlerWithContext = rest.NoWarnings{} // that Endpoints are deprecated is no news
	disco, err := discovery.NewDiscoveryClientForConfig(cfg)
	if err != nil {
		return nil, err
	}
	dyn, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return nil, err
	}
	return &observer{discovery: disco, dyn: dyn}, nil
}

// id names an object within the namespace.
type id struct{ resource, name string }

func (i id) String() string { return i.resource + " " + i.name }

// picture is all that a namespace holds.
type picture struct {
	objects  map[id]*unstructured.Unstructured // what people and their tools made; the namespace as well
	made     map[string]int                    // what controllers and the cluster made, by resource
	byUID    map[types.UID]id                  // of both
	versions string                            // every resourceVersion: equal when nothing changed
}

func (p *picture) count() int { return len(p.objects) }

func (p *picture) countMade() (n int) {
	for _, m := range p.made {
		n += m
	}
	return n
}

// unfinished names a workload whose controller has not yet made all of its pods, or is "".
func (p *picture) unfinished() string {
	for key, object := range p.objects {
		if key.resource != "deployments.apps" && key.resource != "statefulsets.apps" {
			continue
		}
		want, _, _ := unstructured.NestedInt64(object.Object, "spec", "replicas")
		have, _, _ := unstructured.NestedInt64(object.Object, "status", "replicas")
		seen, _, _ := unstructured.NestedInt64(object.Object, "status", "observedGeneration")
		if have < want || seen < object.GetGeneration() {
			return key.String()
		}
	}
	return ""
}

// look lists every resource in the namespace.
func (o *observer) look(ctx context.Context, namespace string) (*picture, error) {
	p := &picture{objects: map[id]*unstructured.Unstructured{}, made: map[string]int{}, byUID: map[types.UID]id{}}
	resources, err := o.resources()
	if err != nil {
		return nil, err
	}
	ns, err := o.dyn.Resource(schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}).Get(ctx, namespace, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("look at namespace %s: %w", namespace, err)
	}
	p.objects[id{"namespaces", namespace}] = ns
	versions := map[string]bool{}
	for _, gvr := range resources {
		list, err := o.dyn.Resource(gvr).Namespace(namespace).List(ctx, metav1.ListOptions{})
		if apierrors.IsNotFound(err) {
			continue // its definition was deleted meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", gvr.GroupResource(), err)
		}
		for i := range list.Items {
			object := &list.Items[i]
			key := id{gvr.GroupResource().String(), object.GetName()}
			p.byUID[object.GetUID()] = key
			versions[key.String()+" "+object.GetResourceVersion()] = true
			if madeByCluster(key, object) {
				p.made[key.resource]++
			} else {
				p.objects[key] = object
			}
		}
	}
	p.versions = strings.Join(slices.Sorted(maps.Keys(versions)), "\n")
	return p, nil
}

// resources are all that can be listed in a namespace, but for events and leases, which tell
// of the moment and are not part of an application.
func (o *observer) resources() ([]schema.GroupVersionResource, error) {
	lists, err := o.discovery.ServerPreferredNamespacedResources()
	if err != nil {
		return nil, fmt.Errorf("discover resources: %w", err)
	}
	var out []schema.GroupVersionResource
	for _, list := range lists {
		gv, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			return nil, err
		}
		for _, r := range list.APIResources {
			if slices.Contains(r.Verbs, "list") && r.Name != "events" && r.Name != "leases" {
				out = append(out, gv.WithResource(r.Name))
			}
		}
	}
	if len(out) == 0 {
		return nil, errors.New("discover resources: there are none")
	}
	return out, nil
}

// madeByCluster tells the objects that controllers make from others, and make again: pods of a
// ReplicaSet, endpoints of a Service, and what every namespace gets.
func madeByCluster(key id, object *unstructured.Unstructured) bool {
	if metav1.GetControllerOf(object) != nil {
		return true
	}
	switch key.resource {
	case "configmaps":
		return key.name == "kube-root-ca.crt"
	case "serviceaccounts":
		return key.name == "default"
	case "endpoints":
		return object.GetLabels()["endpoints.kubernetes.io/managed-by"] != ""
	}
	return false
}
