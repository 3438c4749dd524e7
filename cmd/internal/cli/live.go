package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"github.com/tidemark-backup/tidemark/cmd/internal/daemon"
	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/replay"
)

// livePage is how many objects one request to the API server asks for.
const livePage = 500

// live reads a cluster as it is now, with the caller's own rights.
type live struct{ client dynamic.Interface }

func openLive(f *kubeFlags) (*live, error) {
	cfg, err := daemon.LoadConfig(f.kubeconfig, f.context)
	if err != nil {
		return nil, fmt.Errorf("%w; or compare with the newest recorded state, --to now, which needs none", err)
	}
	cfg.QPS = -1 // the API server sets the pace
	cfg.WarningHandler = rest.NoWarnings{}
	client, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to the cluster: %w", err)
	}
	return &live{client}, nil
}

// objects yields the live objects of one resource in scope, ordered by namespace and name,
// as a fold would. Of a resource that is not served any more there are none.
func (v *live) objects(ctx context.Context, l *journal.Ledger, scope replay.Scope) iter.Seq2[journal.Event, error] {
	return func(yield func(journal.Event, error) bool) {
		var all []journal.Event
		spaces := scope.Namespaces
		if spaces == nil {
			spaces = []string{""} // all of them
		}
		for _, ns := range spaces {
			if err := v.list(ctx, l, ns, &scope, &all); err != nil {
				yield(journal.Event{}, fmt.Errorf("list the live %s: %w", l.GroupResource(), err))
				return
			}
		}
		slices.SortFunc(all, func(a, b journal.Event) int {
			return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
		})
		for _, e := range all {
			if !yield(e, nil) {
				return
			}
		}
	}
}

func (v *live) list(ctx context.Context, l *journal.Ledger, namespace string, scope *replay.Scope, into *[]journal.Event) error {
	gr := l.GroupResource()
	client := v.client.Resource(schema.GroupVersionResource{Group: gr.Group, Version: l.Version, Resource: gr.Resource}).Namespace(namespace)
	o := metav1.ListOptions{Limit: livePage}
	if scope.Selector != nil {
		o.LabelSelector = scope.Selector.String()
	}
	if len(scope.Names) == 1 {
		o.FieldSelector = "metadata.name=" + scope.Names[0]
	}
	for {
		page, err := client.List(ctx, o)
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		for i := range page.Items {
			item := &page.Items[i]
			if !scope.Covers(gr, item.GetNamespace(), item.GetName()) {
				continue
			}
			b, err := json.Marshal(item.Object)
			if err != nil {
				return fmt.Errorf("read %s/%s: %w", item.GetNamespace(), item.GetName(), err)
			}
			*into = append(*into, journal.Event{Resource: gr, Namespace: item.GetNamespace(), Name: item.GetName(), UID: string(item.GetUID()), Object: b})
		}
		if o.Continue = page.GetContinue(); o.Continue == "" {
			return nil
		}
	}
}
