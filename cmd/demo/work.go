package main

import (
	"context"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"github.com/tidemark-backup/tidemark/deploy/sample"
)

// flagFlips is how often the feature flags are edited: history between the larger changes.
const flagFlips = 20

// change is one thing somebody does to the application.
type change struct {
	say      string
	resource schema.GroupVersionResource
	name     string
	patch    string // strategic merge patch, or of custom resources a merge patch; empty: delete the object
	by       string // field manager
}

func core(resource string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Version: "v1", Resource: resource}
}

func apps(resource string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: resource}
}

func shop(resource string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: "shop.example.com", Version: "v1", Resource: resource}
}

// changes are made in this order.
var changes = []change{
	{"deployment/web is scaled from 2 to 4", apps("deployments"), "web", `{"spec":{"replicas":4}}`, "ops"},
	{"configmap/web-config: the theme becomes winter", core("configmaps"), "web-config", `{"data":{"THEME":"winter","BANNER":"Free shipping this week"}}`, "storefront"},
	{"secret/db-credentials: the password is rotated", core("secrets"), "db-credentials", `{"stringData":{"password":"sample-only-second"}}`, "vault-rotator"},
	{"promotion/autumn-sale: 15% becomes 25%", shop("promotions"), "autumn-sale", `{"spec":{"discountPercent":25,"products":["boots","coats"]}}`, "marketing"},
	{"voucher/welcome is withdrawn (and must stay so)", shop("vouchers"), "welcome", "", "marketing"},
	{"configmap/logo is deleted (and must stay so)", core("configmaps"), "logo", "", "storefront"},
	{"deployment/cache is stopped", apps("deployments"), "cache", `{"spec":{"replicas":0}}`, "ops"},
	{
		"deployment/api is rolled out in version 3.2.0", apps("deployments"), "api",
		`{"spec":{"template":{"spec":{"containers":[{"name":"api","image":"registry.example.com/shop/api:3.2.0"}]}}}}`, "ci",
	},
	{"service/api gets an annotation", core("services"), "api", `{"metadata":{"annotations":{"example.com/owner":"payments"}}}`, "ops"},
}

// work makes all changes, one after another, as people and their tools would.
func (d *demo) work(ctx context.Context) error {
	dyn, err := dynamic.NewForConfig(d.cluster.Config())
	if err != nil {
		return err
	}
	for _, c := range changes {
		d.say("%s", c.say)
		if err := c.make(ctx, dyn); err != nil {
			return fmt.Errorf("%s: %w", c.say, err)
		}
		if err := pause(ctx, 150*time.Millisecond); err != nil {
			return err
		}
	}
	d.say("configmap/feature-flags is edited %d times", flagFlips)
	for i := range flagFlips {
		flip := change{
			resource: core("configmaps"), name: "feature-flags", by: "flag-service",
			patch: fmt.Sprintf(`{"data":{"flags.json":"{\"newCheckout\": %t, \"rollout\": %d}\n"}}`, i%2 == 0, 5*(i+1)),
		}
		if err := flip.make(ctx, dyn); err != nil {
			return fmt.Errorf("edit feature flags: %w", err)
		}
	}
	return nil
}

func (c *change) make(ctx context.Context, dyn dynamic.Interface) error {
	client := dyn.Resource(c.resource).Namespace(sample.Namespace)
	if c.patch == "" {
		return client.Delete(ctx, c.name, metav1.DeleteOptions{})
	}
	kind := types.StrategicMergePatchType
	if c.resource.Group == shop("").Group {
		kind = types.MergePatchType
	}
	_, err := client.Patch(ctx, c.name, kind, []byte(c.patch), metav1.PatchOptions{FieldManager: c.by})
	return err
}
