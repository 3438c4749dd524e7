package replay

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// planFormat is the version of what Plan.Save writes.
const planFormat = "tidemark-plan/1"

// ErrMoved is returned by Plan.Check when the cluster is not as the plan found it.
var ErrMoved = errors.New("the cluster has changed since the plan was made")

// savedPlan is a plan as it is written down, with all that applying needs.
type savedPlan struct {
	Format string `json:"format"`
	*Plan
	Request struct {
		Existing   ExistingPolicy    `json:"existing"`
		Exact      bool              `json:"exact,omitempty"`
		Owned      bool              `json:"owned,omitempty"`
		NodePorts  NodePortPolicy    `json:"nodePorts,omitempty"`
		Namespaces map[string]string `json:"namespaceMappings,omitempty"`
	} `json:"request"`
	Scaled [][3]string `json:"scaled,omitempty"`
	Bodies []savedItem `json:"bodies,omitempty"`
}

// savedItem is what an item holds beside what it shows; of items that write only.
type savedItem struct {
	Index     int          `json:"i"`
	Version   string       `json:"version"`
	Kind      string       `json:"kind"`
	Create    packed       `json:"create,omitempty"`
	Update    packed       `json:"update,omitempty"`
	Live      packed       `json:"live,omitempty"`
	Managed   parts        `json:"managed,omitzero"`
	Status    parts        `json:"status,omitzero"`
	Owners    []savedOwner `json:"owners,omitempty"`
	AwaitGone bool         `json:"awaitGone,omitempty"`
}

type savedOwner struct {
	Resource  string `json:"resource"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
	Kind      string `json:"kind"`
}

// Save writes the plan so that LoadPlan can read it, with all objects in it, Secrets as well.
func (p *Plan) Save(w io.Writer) error {
	s := savedPlan{Format: planFormat, Plan: p}
	s.Request.Existing, s.Request.Exact, s.Request.Owned, s.Request.Namespaces, s.Request.NodePorts = p.req.Existing, p.req.Exact, p.req.Owned, p.req.NamespaceMappings, p.req.NodePorts
	for t := range p.past.scaled {
		s.Scaled = append(s.Scaled, [3]string{t.kind, t.namespace, t.name})
	}
	z, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		return err
	}
	head, err := json.Marshal(s)
	if err == nil {
		err = p.saveBodies(z, bytes.TrimSuffix(head, []byte("}")))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("writing the plan: %w", err), z.Close())
	}
	return z.Close()
}

// saveBodies writes the bodies behind the open head of a saved plan, one after the other: of a whole cluster they are hundreds of megabytes.
func (p *Plan) saveBodies(w io.Writer, head []byte) error {
	var written []int
	for i, it := range p.Items {
		if it.Action.writes() {
			written = append(written, i)
		}
	}
	type body struct {
		text []byte
		err  error
	}
	lead := slices.Concat(head, []byte(`,"bodies":[`))
	for _, b := range ahead(written, func(i int) body {
		text, err := json.Marshal(p.Items[i].saved(i))
		return body{text, err}
	}) {
		if b.err != nil {
			return b.err
		}
		for _, part := range [][]byte{lead, b.text} {
			if _, err := w.Write(part); err != nil {
				return err
			}
		}
		lead = []byte(",")
	}
	if len(written) > 0 {
		lead = nil
	}
	_, err := w.Write(append(lead, "]}\n"...))
	return err
}

// saved is what an item holds beside what it shows.
func (it *Item) saved(index int) savedItem {
	s := savedItem{Index: index, Version: it.served.Version, Kind: it.served.Kind, Create: it.create, Update: it.update, Managed: it.managed, Status: it.status, AwaitGone: it.awaitGone}
	if it.live != nil {
		s.Live = it.live.packed
	}
	for _, o := range it.owners {
		s.Owners = append(s.Owners, savedOwner{o.key.gr.String(), o.key.namespace, o.key.name, o.kind})
	}
	return s
}

// LoadPlan reads what Save wrote.
func LoadPlan(r io.Reader) (*Plan, error) {
	z, err := zstd.NewReader(r)
	if err != nil {
		return nil, err
	}
	defer z.Close()
	s := savedPlan{Plan: &Plan{}}
	d := json.NewDecoder(z)
	if err := d.Decode(&s); err != nil {
		return nil, fmt.Errorf("this is no plan that tidemark saved, or it is damaged: %w", err)
	}
	if s.Format != planFormat {
		return nil, fmt.Errorf("%w: %q", ErrRecordFormat, s.Format)
	}
	p := s.Plan
	p.past = &past{byKey: map[objectKey]*entry{}, byUID: map[string]*entry{}, scaled: map[scaleTarget]bool{}}
	p.req = RestoreRequest{Cut: p.Cut, Existing: s.Request.Existing, Exact: s.Request.Exact, Owned: s.Request.Owned, NamespaceMappings: s.Request.Namespaces, NodePorts: s.Request.NodePorts}
	for _, t := range s.Scaled {
		p.past.scaled[scaleTarget{t[0], t[1], t[2]}] = true
	}
	p.recreated = map[string]*Item{}
	for _, b := range s.Bodies {
		if b.Index < 0 || b.Index >= len(p.Items) {
			return nil, errors.New("this is no plan that tidemark saved: it has no such item")
		}
		it := p.Items[b.Index]
		it.create, it.update, it.managed, it.status, it.awaitGone = b.Create, b.Update, b.Managed, b.Status, b.AwaitGone
		it.served = servedResource{GroupVersionResource: it.Resource.WithVersion(b.Version), Kind: b.Kind, Namespaced: it.Namespace != ""}
		if b.Live != nil {
			it.live = newFound(b.Live.object())
		}
		for _, o := range b.Owners {
			it.owners = append(it.owners, pendingOwner{objectKey{schema.ParseGroupResource(o.Resource), o.Namespace, o.Name}, o.Kind})
		}
		if it.Action == ActionRecreate {
			p.recreated[string(it.live.uid)] = it
		}
	}
	return p, nil
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (it *Item) UnmarshalJSON(b []byte) error {
	type plain Item
	v := struct {
		Resource string `json:"resource"`
		*plain
	}{plain: (*plain)(it)}
	if err := json.Unmarshal(b, &v); err != nil {
		return err
	}
	it.Resource = schema.ParseGroupResource(v.Resource)
	return nil
}

// SameCluster connects, and returns ErrOtherCluster when the plan was made for another cluster.
func (p *Plan) SameCluster(ctx context.Context, target *Target) error {
	if err := target.refresh(ctx); err != nil {
		return err
	}
	cluster, err := target.ClusterID(ctx)
	if err != nil {
		return err
	}
	if cluster != "" && p.Cluster != "" && cluster != p.Cluster {
		return fmt.Errorf("%w: the plan is for cluster %s at %s, and %s is cluster %s: choose the right one with --context or --kubeconfig", ErrOtherCluster, p.Cluster, p.Server, target.Server(), cluster)
	}
	return nil
}

// Check reads again what the plan writes, and returns ErrMoved, with the names, unless all of it is
// as the plan found it, but for its status; or ErrOtherCluster.
func (p *Plan) Check(ctx context.Context, target *Target) error {
	if err := p.SameCluster(ctx, target); err != nil {
		return err
	}
	now := &past{}
	for _, it := range p.Items {
		if it.Action.writes() && !it.Action.follows() {
			now.list = append(now.list, &entry{objectKey: it.key()})
		}
	}
	live, err := readLive(ctx, target, &RestoreRequest{}, now)
	if err != nil {
		return err
	}
	var moved []string
	for _, it := range p.Items {
		if !it.Action.writes() || it.Action.follows() {
			continue
		}
		if err := live.errs[it.key()]; err != nil && !apierrors.IsNotFound(err) {
			return err
		}
		if !p.asFound(it, live.objects[it.key()]) {
			moved = append(moved, it.String())
		}
	}
	if len(moved) > 0 {
		const shown = 10
		more := ""
		if n := len(moved) - shown; n > 0 {
			moved, more = moved[:shown], fmt.Sprintf(" and %d more", n)
		}
		return fmt.Errorf("%w: %s%s: make a new plan", ErrMoved, strings.Join(moved, ", "), more)
	}
	return nil
}

// asFound reports whether a live object is as the plan found it.
func (p *Plan) asFound(it *Item, now *found) bool {
	if now == nil || now.deleting {
		return it.live == nil || it.live.deleting
	}
	if it.live == nil || it.live.uid != now.uid {
		return false
	}
	diff, err := DiffObjects(p.disowned(it.live.object()).json(), p.disowned(now.object()).json(), DiffOptions{IgnoreStatus: true})
	return err == nil && len(diff) == 0
}
