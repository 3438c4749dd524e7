package main

import (
	"context"
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"
)

// churnNamespaces is how many namespaces the churn works in.
const churnNamespaces = 4

// step is one thing that the churn does. All of it follows from the seed, and nothing from what the cluster answers.
type step struct {
	Op        string        `json:"op"`
	Namespace string        `json:"ns,omitempty"`
	Name      string        `json:"name,omitempty"`
	Variant   uint64        `json:"variant"` // decides about content
	Wait      time.Duration `json:"wait"`    // before it
}

// deeds are what the churn may do, and how often.
var deeds = []struct {
	op    string
	often int
	do    func(*cluster, context.Context, step) error
}{
	{"config", 24, (*cluster).config},
	{"secret", 10, (*cluster).secret},
	{"apply", 8, (*cluster).applyByManager},
	{"remove", 9, (*cluster).remove},
	{"rollout", 8, (*cluster).rollout},
	{"scale", 6, (*cluster).scale},
	{"service", 5, (*cluster).service},
	{"role", 3, (*cluster).role},
	{"binding", 2, (*cluster).binding},
	{"custom", 12, (*cluster).custom},
	{"job", 2, (*cluster).job},
	{"cronjob", 1, (*cluster).cronJob},
	{"pod", 2, (*cluster).pod},
	{"finalizer", 2, (*cluster).guarded},
	{"definition", 4, (*cluster).definition},
	{"undefine", 1, (*cluster).undefine},
	{"hot", 2, (*cluster).hot},
	{"large", 1, (*cluster).large},
	{"vanish", 1, (*cluster).vanish},
}

// churn gives the steps of a seed, one after the other.
func churn(seed uint64) func() step {
	random := rand.New(rand.NewPCG(seed, 1))
	total := 0
	for _, d := range deeds {
		total += d.often
	}
	return func() step {
		n, op := random.IntN(total), ""
		for _, d := range deeds {
			if n -= d.often; n < 0 {
				op = d.op
				break
			}
		}
		return step{
			Op: op, Namespace: fmt.Sprintf("soak-%d", random.IntN(churnNamespaces)), Name: fmt.Sprintf("o%d", random.IntN(12)),
			Variant: random.Uint64(), Wait: time.Duration(10+random.IntN(110)) * time.Millisecond,
		}
	}
}

func (c *cluster) do(ctx context.Context, s step) error {
	for _, d := range deeds {
		if d.op == s.Op {
			err := d.do(c, ctx, s)
			if missing(err) && s.Op != "vanish" && s.Op != "remove" { // the namespace is not there: make it, and once more
				if err = c.namespace(ctx, s.Namespace); err == nil {
					err = d.do(c, ctx, s)
				}
			}
			return err
		}
	}
	return fmt.Errorf("no deed %q", s.Op)
}

// pick chooses one of n by a part of the variant.
func (s step) pick(part, n int) int { return int(s.Variant >> (part * 8) & 0xff % uint64(n)) }

// text is some text of the variant that differs from step to step.
func (s step) text() string { return fmt.Sprintf("%016x", s.Variant) }

func labels(s step) map[string]any {
	return map[string]any{"tier": fmt.Sprint("t", s.pick(0, 3)), "odd": "a.b-c_d"}
}

func (c *cluster) config(ctx context.Context, s step) error {
	return c.put(ctx, "configmaps", s.Namespace, s.Name, map[string]any{
		"metadata": map[string]any{"labels": labels(s), "annotations": map[string]any{"note": "<&> \u2028 \"quoted\" ü " + s.text()}},
		"data":     map[string]any{fmt.Sprint("k", s.pick(1, 5)): s.text(), "same": strings.Repeat("x", 200)},
	})
}

func (c *cluster) secret(ctx context.Context, s step) error {
	return c.put(ctx, "secrets", s.Namespace, s.Name, map[string]any{
		"metadata": map[string]any{"labels": labels(s)},
		"data":     map[string]any{fmt.Sprint("k", s.pick(1, 4)): base64.StdEncoding.EncodeToString([]byte(s.text()))},
	})
}

// applyByManager has several managers own parts of one object.
func (c *cluster) applyByManager(ctx context.Context, s step) error {
	manager := []string{"ci", "operator", "gitops"}[s.pick(2, 3)]
	return c.apply(ctx, "configmaps", s.Namespace, "shared-"+s.Name, manager, map[string]any{
		"metadata": map[string]any{"labels": map[string]any{manager: fmt.Sprint(s.pick(3, 5))}},
		"data":     map[string]any{manager: s.text()},
	})
}

func (c *cluster) remove(ctx context.Context, s step) error {
	resource := []string{"configmaps", "secrets", "buckets", "services", "configmaps", "gizmos", "roles", "pods", "jobs", "deployments"}[s.pick(0, 10)]
	return c.erase(ctx, resource, s.Namespace, s.Name)
}

func (c *cluster) rollout(ctx context.Context, s step) error {
	app := map[string]any{"app": s.Name}
	return c.put(ctx, "deployments", s.Namespace, deployment(s), map[string]any{"spec": map[string]any{
		"replicas": s.pick(0, 4), "selector": map[string]any{"matchLabels": app}, "revisionHistoryLimit": 2,
		"template": map[string]any{
			"metadata": map[string]any{"labels": app, "annotations": map[string]any{"rollout": s.text()}},
			"spec": map[string]any{"containers": []any{map[string]any{
				"name": "main", "image": fmt.Sprint("example.com/app:", s.pick(1, 7)), "env": []any{map[string]any{"name": "A", "value": s.text()}},
			}}},
		},
	}})
}

// deployment is the name of one of three deployments; the selector follows from it.
func deployment(s step) string { return "web-" + s.Name }

func (c *cluster) scale(ctx context.Context, s step) error {
	return c.patch(ctx, "deployments", s.Namespace, deployment(s), map[string]any{"spec": map[string]any{"replicas": s.pick(0, 5)}})
}

func (c *cluster) service(ctx context.Context, s step) error {
	return c.put(ctx, "services", s.Namespace, s.Name, map[string]any{
		"metadata": map[string]any{"labels": labels(s)},
		"spec": map[string]any{"selector": map[string]any{"app": s.Name}, "ports": []any{map[string]any{
			"name": "http", "port": 80 + s.pick(1, 5), "protocol": "TCP", "targetPort": 8080,
		}}},
	})
}

func (c *cluster) role(ctx context.Context, s step) error {
	verbs := []any{"get", "list", "watch"}
	return c.put(ctx, "roles", s.Namespace, s.Name, map[string]any{"rules": []any{map[string]any{
		"apiGroups": []any{""}, "resources": []any{"pods"}, "verbs": verbs[:1+s.pick(0, 3)],
	}}})
}

func (c *cluster) binding(ctx context.Context, s step) error {
	return c.put(ctx, "rolebindings", s.Namespace, s.Name, map[string]any{
		"metadata": map[string]any{"labels": labels(s)},
		"roleRef":  map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": s.Name},
		"subjects": []any{map[string]any{"kind": "ServiceAccount", "name": "runner", "namespace": s.Namespace}},
	})
}

func (c *cluster) custom(ctx context.Context, s step) error {
	resource := []string{"buckets", "gizmos", "buckets"}[s.pick(0, 3)]
	return c.put(ctx, resource, s.Namespace, s.Name, map[string]any{
		"metadata": map[string]any{"labels": labels(s)},
		"spec":     map[string]any{"size": s.pick(1, 9), "rate": 0.1 + float64(s.pick(2, 9)), "big": 9007199254740993, "text": s.text(), "list": []any{"a", map[string]any{}, nil}},
	})
}

func (c *cluster) job(ctx context.Context, s step) error {
	return c.put(ctx, "jobs", s.Namespace, s.Name, map[string]any{"spec": map[string]any{
		"ttlSecondsAfterFinished": 20,
		"template": map[string]any{"spec": map[string]any{
			"restartPolicy": "Never", "containers": []any{map[string]any{"name": "main", "image": "example.com/job"}},
		}},
	}})
}

func (c *cluster) cronJob(ctx context.Context, s step) error {
	return c.put(ctx, "cronjobs", s.Namespace, s.Name, map[string]any{"spec": map[string]any{
		"schedule": "* * * * *", "suspend": s.pick(0, 2) == 0,
		"jobTemplate": map[string]any{"spec": map[string]any{"template": map[string]any{"spec": map[string]any{
			"restartPolicy": "Never", "containers": []any{map[string]any{"name": "main", "image": fmt.Sprint("example.com/cron:", s.pick(1, 4))}},
		}}}},
	}})
}

// pod makes one that nobody owns.
func (c *cluster) pod(ctx context.Context, s step) error {
	return c.put(ctx, "pods", s.Namespace, s.Name, map[string]any{
		"metadata": map[string]any{"labels": labels(s)},
		"spec": map[string]any{
			"serviceAccountName": "runner", "terminationGracePeriodSeconds": s.pick(0, 2),
			"containers": []any{map[string]any{"name": "main", "image": "example.com/alone"}},
		},
	})
}

// guarded makes, deletes or frees an object that a finalizer holds.
func (c *cluster) guarded(ctx context.Context, s step) error {
	name := fmt.Sprint("guarded-", s.pick(1, 3))
	switch s.pick(0, 3) {
	case 0:
		return c.put(ctx, "configmaps", s.Namespace, name, map[string]any{
			"metadata": map[string]any{"finalizers": []any{"example.com/guard"}}, "data": map[string]any{"k": s.text()},
		})
	case 1:
		return c.erase(ctx, "configmaps", s.Namespace, name)
	}
	return c.patch(ctx, "configmaps", s.Namespace, name, map[string]any{"metadata": map[string]any{"finalizers": nil}})
}

// definition makes or changes a definition.
func (c *cluster) definition(ctx context.Context, s step) error {
	return c.define(ctx, []string{"buckets", "gizmos", "gizmos"}[s.pick(0, 3)], s)
}

// undefine deletes one, with all its objects.
func (c *cluster) undefine(ctx context.Context, _ step) error {
	return c.erase(ctx, "customresourcedefinitions", "", "gizmos.soak.example.com")
}

// hot changes one object as fast as it goes.
func (c *cluster) hot(ctx context.Context, s step) error {
	for i := range 60 + s.pick(0, 100) {
		if err := c.put(ctx, "configmaps", s.Namespace, "hot", map[string]any{"data": map[string]any{"i": fmt.Sprint(i), "seed": s.text()}}); err != nil {
			return err
		}
	}
	return nil
}

// large writes an object that is nearly as large as etcd takes.
func (c *cluster) large(ctx context.Context, s step) error {
	text := strings.Repeat(s.text(), 64*(100+s.pick(1, 256)*2)) // 100 to 600 KiB
	return c.put(ctx, "configmaps", s.Namespace, fmt.Sprint("large-", s.pick(2, 2)), map[string]any{"data": map[string]any{"k": text}})
}

// vanish deletes a namespace. What is written next into it makes it again, once it is gone.
func (c *cluster) vanish(ctx context.Context, s step) error {
	for i := range 3 { // else a finalizer would hold it back for long
		if err := c.patch(ctx, "configmaps", s.Namespace, fmt.Sprint("guarded-", i), map[string]any{"metadata": map[string]any{"finalizers": nil}}); err != nil && !missing(err) {
			return err
		}
	}
	return c.erase(ctx, "namespaces", "", s.Namespace)
}
