package replay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
)

// fieldManager is the name Tidemark writes under where it must have one of its own.
const fieldManager = "tidemark-restore"

// pageSize is how many objects one LIST request asks for.
const pageSize = 250

// Target is the cluster that a restore writes to.
type Target struct {
	dyn  dynamic.Interface
	rest rest.Interface // what dyn uses
	disc discovery.AggregatedDiscoveryInterfaceWithContext

	server string

	throttled atomic.Int64 // answers 429 so far, also those the client retried by itself

	mu     sync.RWMutex
	served servedTable // guarded by mu; replaced as a whole by refresh
}

// servedResource is one resource in one version that the target serves.
type servedResource struct {
	schema.GroupVersionResource
	Kind       string
	Namespaced bool
	HasStatus  bool // as a subresource
	Verbs      []string
}

// servedTable is what discovery said.
type servedTable struct {
	byResource map[schema.GroupResource][]servedResource // the group's preferred version first
	byKind     map[schema.GroupKind]schema.GroupResource
	failed     map[string]error // group -> why its discovery failed: absence then means nothing
}

// NewTarget connects to the cluster that cfg names. It uses a transport of its own, so that
// a restore does not wait behind other traffic, and leaves the pace to the API server.
func NewTarget(cfg *rest.Config) (*Target, error) {
	t := &Target{server: cfg.Host}
	c := rest.CopyConfig(cfg)
	c.QPS, c.Burst, c.RateLimiter = -1, 0, nil
	c.UserAgent = fieldManager
	if c.Transport == nil && c.Dial == nil {
		c.Dial = (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext
	}
	c.WarningHandler = rest.NoWarnings{}
	c.Wrap(func(rt http.RoundTripper) http.RoundTripper { return countThrottling{rt, &t.throttled} })
	bare, err := restClient(c)
	if err != nil {
		return nil, fmt.Errorf("connecting to the target cluster: %w", err)
	}
	t.rest, t.dyn = bare, dynamic.New(bare)
	disc, err := discovery.NewDiscoveryClientForConfig(c)
	if err != nil {
		return nil, fmt.Errorf("connecting to the target cluster: %w", err)
	}
	t.disc = disc
	return t, nil
}

// countThrottling counts the answers by which the API server asks for a slower pace.
type countThrottling struct {
	http.RoundTripper
	n *atomic.Int64
}

func (c countThrottling) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := c.RoundTripper.RoundTrip(r)
	if err == nil && resp.StatusCode == http.StatusTooManyRequests {
		c.n.Add(1)
	}
	return resp, err
}

// WrappedRoundTripper lets client-go find the transport below.
func (c countThrottling) WrappedRoundTripper() http.RoundTripper { return c.RoundTripper }

// refresh asks the target again what it serves.
func (t *Target) refresh(ctx context.Context) error {
	groups, lists, err := t.disc.(discovery.DiscoveryInterfaceWithContext).ServerGroupsAndResourcesWithContext(ctx)
	failed, partial := discovery.GroupDiscoveryFailedErrorGroups(err)
	if err != nil && !partial {
		return fmt.Errorf("asking the target cluster what it serves: %w", err)
	}
	table := servedTable{byResource: map[schema.GroupResource][]servedResource{}, byKind: map[schema.GroupKind]schema.GroupResource{}, failed: map[string]error{}}
	for gv, err := range failed {
		table.failed[gv.Group] = err
	}
	rank := map[string]int{} // groupVersion -> place among the group's versions
	for _, g := range groups {
		for i, v := range g.Versions {
			rank[v.GroupVersion] = i + 1
		}
		rank[g.PreferredVersion.GroupVersion] = 0
	}
	slices.SortStableFunc(lists, func(a, b *metav1.APIResourceList) int { return rank[a.GroupVersion] - rank[b.GroupVersion] })
	for _, l := range lists {
		gv, err := schema.ParseGroupVersion(l.GroupVersion)
		if err != nil {
			continue
		}
		withStatus := map[string]bool{}
		for _, r := range l.APIResources {
			if of, sub, ok := strings.Cut(r.Name, "/"); ok && sub == "status" {
				withStatus[of] = true
			}
		}
		for _, r := range l.APIResources {
			if strings.Contains(r.Name, "/") { // a subresource
				continue
			}
			gr := schema.GroupResource{Group: gv.Group, Resource: r.Name}
			table.byResource[gr] = append(table.byResource[gr], servedResource{gv.WithResource(r.Name), r.Kind, r.Namespaced, withStatus[r.Name], r.Verbs})
			if gk := (schema.GroupKind{Group: gv.Group, Kind: r.Kind}); table.byKind[gk].Resource == "" {
				table.byKind[gk] = gr
			}
		}
	}
	t.mu.Lock()
	t.served = table
	t.mu.Unlock()
	return nil
}

func (t *Target) table() servedTable {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.served
}

// Server is the address of the cluster's API server.
func (t *Target) Server() string { return t.server }

// ClusterID is the uid of the cluster's kube-system namespace, by which journals know their
// cluster; empty when it cannot be told: it may not be read, or is not there.
func (t *Target) ClusterID(ctx context.Context) (string, error) {
	u, err := t.namespace(ctx, "kube-system")
	if apierrors.IsForbidden(err) || err == nil && u == nil {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("asking the target which cluster it is: %w", err)
	}
	return string(u.GetUID()), nil
}

// versions returns the served versions of a resource, the preferred one first.
func (t *Target) versions(gr schema.GroupResource) []servedResource { return t.table().byResource[gr] }

// version returns the resource in that version, or in the preferred one if it is not served.
func (t *Target) version(gr schema.GroupResource, version string) (servedResource, bool) {
	list := t.versions(gr)
	for _, r := range list {
		if r.Version == version {
			return r, true
		}
	}
	if len(list) == 0 {
		return servedResource{}, false
	}
	return list[0], true
}

// resourceOf finds the resource of a kind, by its apiVersion and kind.
func (t *Target) resourceOf(apiVersion, kind string) (schema.GroupResource, bool) {
	gv, err := schema.ParseGroupVersion(apiVersion)
	if err != nil {
		return schema.GroupResource{}, false
	}
	gr, ok := t.table().byKind[schema.GroupKind{Group: gv.Group, Kind: kind}]
	return gr, ok
}

// client talks to one resource in one namespace; cluster-scoped resources have none.
func (t *Target) client(r servedResource, namespace string) dynamic.ResourceInterface {
	if r.Namespaced {
		return t.dyn.Resource(r.GroupVersionResource).Namespace(namespace)
	}
	return t.dyn.Resource(r.GroupVersionResource)
}

// restClient is a client as a dynamic one is made of.
func restClient(c *rest.Config) (rest.Interface, error) {
	c = dynamic.ConfigFor(c)
	httpClient, err := rest.HTTPClientFor(c)
	if err != nil {
		return nil, err
	}
	c.GroupVersion = nil
	return rest.UnversionedRESTClientForConfigAndClient(c, httpClient)
}

// create sends the JSON of an object that is to be made by that field manager. A dynamic client would parse and check the object three times on
// its way there and back; most of a restore is creations. Fields that the API server does not know are left out, as always, without a warning that nobody sees.
func (t *Target) create(ctx context.Context, r servedResource, namespace string, text []byte, manager string) (*unstructured.Unstructured, error) {
	path := []string{"api"}
	if r.Group != "" {
		path = []string{"apis", r.Group}
	}
	path = append(path, r.Version)
	if r.Namespaced && namespace != "" {
		if wrong := rest.IsValidPathSegmentName(namespace); len(wrong) > 0 {
			return nil, fmt.Errorf("invalid namespace %q: %s", namespace, strings.Join(wrong, "; "))
		}
		path = append(path, "namespaces", namespace)
	}
	result := t.rest.Post().AbsPath(append(path, r.Resource)...).
		Param("fieldManager", manager).Param("fieldValidation", metav1.FieldValidationIgnore).
		SetHeader("Content-Type", runtime.ContentTypeJSON).SetHeader("Accept", runtime.ContentTypeJSON).Body(text).Do(ctx)
	if err := result.Error(); err != nil {
		return nil, err
	}
	answer, err := result.Raw()
	if err != nil {
		return nil, err
	}
	o, err := parseObject(answer)
	if err != nil || o.str("kind") == "" {
		return nil, fmt.Errorf("the API server answered to the creation with what is no object: %w", ErrNotObject)
	}
	return o.unstructured(), nil
}

// get reads one live object; nil when there is none.
func (t *Target) get(ctx context.Context, r servedResource, namespace, name string) (*unstructured.Unstructured, error) {
	u, err := retry(ctx, func(ctx context.Context) (*unstructured.Unstructured, error) {
		return t.client(r, namespace).Get(ctx, name, metav1.GetOptions{})
	})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the live %s: %w", objectName(r.GroupResource(), namespace, name), err)
	}
	return u, nil
}

// list reads all live objects of a resource in a namespace (all namespaces when it is
// empty), page by page.
func (t *Target) list(ctx context.Context, r servedResource, namespace string, each func(*unstructured.Unstructured)) error {
	o := metav1.ListOptions{Limit: pageSize}
	for {
		page, err := retry(ctx, func(ctx context.Context) (*unstructured.UnstructuredList, error) {
			return t.client(r, namespace).List(ctx, o)
		})
		if apierrors.IsResourceExpired(err) && o.Continue != "" {
			var status apierrors.APIStatus // the server offers to go on with a newer state
			if errors.As(err, &status) && status.Status().ListMeta.Continue != "" {
				o.Continue = status.Status().ListMeta.Continue
				continue
			}
		}
		if err != nil {
			where := " in " + namespace
			if namespace == "" {
				where = ""
			}
			return fmt.Errorf("listing the live %s%s: %w", r.GroupResource(), where, err)
		}
		for i := range page.Items {
			// Items of a list do not always name their kind, the list does.
			page.Items[i].SetGroupVersionKind(r.GroupVersion().WithKind(r.Kind))
			each(&page.Items[i])
		}
		if o.Continue = page.GetContinue(); o.Continue == "" {
			return nil
		}
	}
}

// objectName is how messages name an object: "deployments.apps shop/web".
func objectName(gr schema.GroupResource, namespace, name string) string {
	if namespace == "" {
		return gr.String() + " " + name
	}
	return gr.String() + " " + namespace + "/" + name
}

// namespace reads a live Namespace; nil when there is none.
func (t *Target) namespace(ctx context.Context, name string) (*unstructured.Unstructured, error) {
	r, ok := t.version(namespaces, "v1")
	if !ok {
		r = servedResource{GroupVersionResource: namespaces.WithVersion("v1"), Kind: "Namespace"}
	}
	return t.get(ctx, r, "", name)
}
