package capture

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tidwall/gjson"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"

	"github.com/tidemark-backup/tidemark/journal"
)

// rediscover finds the cluster's resources, starts what is new or has another version now, and
// stops what is gone.
func (c *Capture) rediscover(ctx context.Context, running *sync.WaitGroup) error {
	found, leftOut, partial, err := c.discover()
	if err != nil {
		return fmt.Errorf("discovery: %w", plain(err))
	}
	c.mu.Lock()
	if !slices.Equal(c.leftOut, leftOut) {
		c.leftOut = leftOut
		c.mu.Unlock()
		if err := c.opts.Journal.SetLeftOut(ctx, leftOut); err != nil {
			return err
		}
		c.mu.Lock()
	}
	for gr, info := range found {
		delete(c.missing, gr)
		old := c.running[gr]
		if old != nil && old.info.Version == info.Version && !old.stale {
			continue
		}
		if old != nil { // served in another version now: the watermark holds for both
			old.cancel()
		}
		c.start(ctx, running, info, old)
	}
	gone := c.unlisted(found, partial)
	c.mu.Unlock()
	return errors.Join(c.settle(ctx, gone), c.removeForgotten(ctx, found, partial))
}

// start begins the capture of a resource, after its predecessor has ended. c.mu is held.
func (c *Capture) start(ctx context.Context, running *sync.WaitGroup, info journal.ResourceInfo, old *resource) {
	r := newResource(c, info)
	ctx, r.cancel = context.WithCancel(ctx)
	c.running[info.GroupResource()] = r
	running.Go(func() {
		if old != nil {
			<-old.ended
		}
		r.run(ctx)
	})
}

// unlisted returns the running resources that discovery did not list, though their groups
// answered. c.mu is held.
func (c *Capture) unlisted(found map[schema.GroupResource]journal.ResourceInfo, partial map[string]bool) []*resource {
	var gone []*resource
	for gr, r := range c.running {
		if _, ok := found[gr]; !ok && !partial[gr.Group] {
			c.missing[gr]++
			gone = append(gone, r)
		}
	}
	return gone
}

// missesToRemove is how many discoveries in a row must miss a resource before it counts as
// removed, when nothing else can tell: servers that have just started may list too little.
const missesToRemove = 3

// settle ends the capture of resources that are really gone.
func (c *Capture) settle(ctx context.Context, gone []*resource) error {
	var failed error
	for _, r := range gone {
		gr := r.info.GroupResource()
		leftOut := c.isLeftOut(gr) // there, but no longer to be recorded
		if !leftOut && !c.removed(ctx, gr) {
			c.again = true
			continue
		}
		if !leftOut {
			c.drain(ctx, r)
		}
		r.cancel()
		<-r.ended
		c.opts.Journal.SetWatched(gr, "no longer recorded")
		if !leftOut {
			if err := c.opts.Journal.Remove(ctx, gr); err != nil {
				failed = errors.Join(failed, err)
				continue
			}
		}
		c.mu.Lock()
		if c.running[gr] == r {
			delete(c.running, gr)
		}
		delete(c.missing, gr)
		c.mu.Unlock()
	}
	return failed
}

// drain gives the watch of a removed resource a moment to deliver the last deletions: it is
// done when the server has ended the watch and a new one is refused.
func (c *Capture) drain(ctx context.Context, r *resource) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	for {
		r.mu.Lock()
		ended := r.state != StateWatching
		r.mu.Unlock()
		if ended {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// removed asks whether a resource that discovery does not list is really gone: its definition
// must be gone too. Where that cannot be asked, several discoveries must agree.
func (c *Capture) removed(ctx context.Context, gr schema.GroupResource) bool {
	c.mu.Lock()
	misses := c.missing[gr]
	c.mu.Unlock()
	if misses < 2 {
		return false
	}
	err := c.client.Get().AbsPath("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/" + gr.String()).Do(ctx).Error()
	if err == nil {
		return false // there, but not served: a broken or changing definition
	}
	if apierrors.IsNotFound(err) && c.aggregated(ctx, gr) {
		return false // its own API server is away
	}
	return apierrors.IsNotFound(err) || apierrors.IsForbidden(err) && misses >= missesToRemove
}

// aggregated reports whether the resource's group was recorded from an aggregated API server
// that is still registered.
func (c *Capture) aggregated(ctx context.Context, gr schema.GroupResource) bool {
	l := c.opts.Journal.Ledger(gr)
	if l == nil {
		return false
	}
	body, err := c.client.Get().AbsPath("/apis/apiregistration.k8s.io/v1/apiservices/"+l.Version+"."+gr.Group).
		SetHeader("Accept", "application/json").Do(ctx).Raw()
	return err == nil && gjson.GetBytes(body, "spec.service").IsObject()
}

// removeForgotten records the removal of resources that went while tidemark was not running.
func (c *Capture) removeForgotten(ctx context.Context, found map[schema.GroupResource]journal.ResourceInfo, partial map[string]bool) error {
	var failed error
	for _, l := range c.opts.Journal.Ledgers() {
		gr := l.GroupResource()
		c.mu.Lock()
		_, live := c.running[gr]
		c.mu.Unlock()
		if _, ok := found[gr]; ok || live || partial[gr.Group] || l.Removed != nil || l.First.Time.IsZero() || c.isLeftOut(gr) || gr.Group == journal.OwnGroup {
			continue
		}
		c.mu.Lock()
		c.missing[gr]++
		c.mu.Unlock()
		if c.removed(ctx, gr) {
			failed = errors.Join(failed, c.opts.Journal.Remove(ctx, gr))
		} else {
			c.again = true
		}
	}
	return failed
}

func (c *Capture) isLeftOut(gr schema.GroupResource) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.ContainsFunc(c.leftOut, func(l journal.LeftOut) bool { return l.Resource == gr })
}

// discover lists what can be recorded and what is left out. partial holds the groups that did
// not answer (an aggregated API that is down): nothing can be said about them.
func (c *Capture) discover() (found map[schema.GroupResource]journal.ResourceInfo, leftOut []journal.LeftOut, partial map[string]bool, err error) {
	partial = map[string]bool{}
	lists, err := discovery.ServerPreferredResources(c.discovery)
	if groups, ok := discovery.GroupDiscoveryFailedErrorGroups(err); ok {
		for gv := range groups {
			partial[gv.Group] = true
		}
	} else if err != nil {
		return nil, nil, nil, err
	}
	found = map[schema.GroupResource]journal.ResourceInfo{}
	stored := map[string]schema.GroupResource{} // by the hash of what is stored
	slices.SortStableFunc(lists, func(a, b *metav1.APIResourceList) int { return strings.Compare(a.GroupVersion, b.GroupVersion) })
	for _, list := range lists {
		gv, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			continue
		}
		for _, r := range list.APIResources {
			gr := schema.GroupResource{Group: gv.Group, Resource: r.Name}
			if why := c.whyLeftOut(gr, &r, stored); why != "" {
				leftOut = append(leftOut, journal.LeftOut{Resource: gr, Why: why})
				continue
			}
			if r.StorageVersionHash != "" {
				stored[r.StorageVersionHash] = gr
			}
			found[gr] = journal.ResourceInfo{
				Group: gv.Group, Version: gv.Version, Resource: r.Name, Singular: r.SingularName, Kind: r.Kind,
				ShortNames: r.ShortNames, Categories: r.Categories, Namespaced: r.Namespaced,
			}
		}
	}
	return found, leftOut, partial, nil
}

// whyLeftOut says why a resource is not recorded; empty when it is.
func (c *Capture) whyLeftOut(gr schema.GroupResource, r *metav1.APIResource, stored map[string]schema.GroupResource) string {
	switch other, twice := stored[r.StorageVersionHash]; {
	case strings.Contains(r.Name, "/"):
		return "a part of another resource"
	case !slices.Contains(r.Verbs, "list") || !slices.Contains(r.Verbs, "watch"):
		return "it cannot be listed and watched"
	case matches(c.opts.Exclude, gr):
		return "excluded"
	case len(c.opts.Include) > 0 && !matches(c.opts.Include, gr):
		return "not included"
	case twice && r.StorageVersionHash != "":
		return "the same objects as " + other.String()
	}
	return ""
}

// matches reports whether a pattern names the resource, as "name" (core group) or "name.group",
// with * and ? as in file names.
func matches(patterns []string, gr schema.GroupResource) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		ok, err := path.Match(p, gr.String())
		return ok && err == nil
	})
}

func checkPatterns(patterns []string) error {
	for _, p := range patterns {
		if _, err := path.Match(p, ""); err != nil || p == "" {
			return fmt.Errorf("%q is not a resource pattern: want for example secrets, deployments.apps or *.example.com", p)
		}
	}
	return nil
}
