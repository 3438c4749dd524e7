// Package sample is a small web shop as an application for demonstrations and tests: about fifty
// objects of the kinds that real namespaces hold, with owner references, an immutable
// ConfigMap, Secrets of several types, custom resources and access rules. Its images do not exist.
//
// Objects reads it; Apply puts it into a cluster.
package sample

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
)

const (
	// Namespace is where the application lives.
	Namespace = "shop"
	// FieldManager is the name under which Apply owns the fields it sets.
	FieldManager = "shop-deploy"

	establishLimit = 30 * time.Second // for a CustomResourceDefinition to be served
	pollEvery      = 50 * time.Millisecond
)

//go:embed manifests/*.yaml
var manifests embed.FS

var (
	crds        = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
	errNotReady = errors.New("not established")
)

// Objects returns the application's objects in an order in which they can be created: the
// namespace, definitions, access, configuration, workloads, custom resources. The owner
// references among them have no uid yet.
func Objects() ([]*unstructured.Unstructured, error) {
	files, err := fs.Glob(manifests, "manifests/*.yaml") // sorted by name, and so numbered
	if err != nil {
		return nil, err
	}
	var objects []*unstructured.Unstructured
	for _, file := range files {
		if objects, err = appendFile(objects, file); err != nil {
			return nil, fmt.Errorf("read %s: %w", file, err)
		}
	}
	return objects, nil
}

// appendFile adds the objects of one file of YAML documents.
func appendFile(objects []*unstructured.Unstructured, file string) ([]*unstructured.Unstructured, error) {
	f, err := manifests.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	documents := yaml.NewYAMLOrJSONDecoder(f, 4096)
	for {
		object := &unstructured.Unstructured{}
		if err := documents.Decode(object); errors.Is(err, io.EOF) {
			return objects, nil
		} else if err != nil {
			return nil, err
		}
		objects = append(objects, object)
	}
}

// Apply creates the application, or puts the fields it owns back, by server-side apply. It
// waits until the definitions are served before it makes custom resources.
func Apply(ctx context.Context, cfg *rest.Config) error {
	objects, err := Objects()
	if err != nil {
		return err
	}
	clients, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return err
	}
	dyn, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return err
	}
	a := applier{dyn: dyn, mapper: restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(clients.Discovery()))}
	for _, object := range objects {
		if err := a.apply(ctx, object); err != nil {
			return fmt.Errorf("apply %s %s: %w", object.GetKind(), object.GetName(), err)
		}
		if object.GetKind() == "CustomResourceDefinition" {
			if err := a.awaitEstablished(ctx, object.GetName()); err != nil {
				return err
			}
		}
	}
	return nil
}

type applier struct {
	dyn    dynamic.Interface
	mapper *restmapper.DeferredDiscoveryRESTMapper
}

// resource is the client for objects like this one.
func (a *applier) resource(gvk schema.GroupVersionKind, namespace string) (dynamic.ResourceInterface, error) {
	mapping, err := a.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	if err != nil {
		return nil, err
	}
	if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
		return a.dyn.Resource(mapping.Resource).Namespace(namespace), nil
	}
	return a.dyn.Resource(mapping.Resource), nil
}

// apply creates or changes one object, after it has found the uids of its owners.
func (a *applier) apply(ctx context.Context, object *unstructured.Unstructured) error {
	owners := object.GetOwnerReferences()
	for i, ref := range owners {
		client, err := a.resource(schema.FromAPIVersionAndKind(ref.APIVersion, ref.Kind), object.GetNamespace())
		if err != nil {
			return err
		}
		owner, err := client.Get(ctx, ref.Name, metav1.GetOptions{})
		if err != nil {
			return fmt.Errorf("find owner: %w", err)
		}
		owners[i].UID = owner.GetUID()
	}
	if len(owners) > 0 {
		object.SetOwnerReferences(owners)
	}
	client, err := a.resource(object.GroupVersionKind(), object.GetNamespace())
	if err != nil {
		return err
	}
	_, err = client.Apply(ctx, object.GetName(), object, metav1.ApplyOptions{FieldManager: FieldManager, Force: true})
	return err
}

// awaitEstablished waits until the API server serves a definition's resources.
func (a *applier) awaitEstablished(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, establishLimit)
	defer cancel()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		crd, err := a.dyn.Resource(crds).Get(ctx, name, metav1.GetOptions{})
		if err == nil && established(crd) {
			a.mapper.Reset()
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for definition %s: %w", name, errors.Join(errNotReady, err, context.Cause(ctx)))
		case <-tick.C:
		}
	}
}

func established(crd *unstructured.Unstructured) bool {
	conditions, _, _ := unstructured.NestedSlice(crd.Object, "status", "conditions")
	for _, c := range conditions {
		if m, ok := c.(map[string]any); ok && m["type"] == "Established" && m["status"] == "True" {
			return true
		}
	}
	return false
}
