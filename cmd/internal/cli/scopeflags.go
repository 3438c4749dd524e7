package cli

import (
	"context"
	"path"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/replay"
)

// scopeFlags choose objects in Velero's words.
type scopeFlags struct {
	includeNamespaces, excludeNamespaces []string
	includeResources, excludeResources   []string
	orSelectors                          []string
	cluster                              string
}

func (f *scopeFlags) add(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringSliceVar(&f.includeNamespaces, "include-namespaces", nil, "these namespaces, such as shop,team-*; in place of -n")
	fs.StringSliceVar(&f.excludeNamespaces, "exclude-namespaces", nil, "without these namespaces")
	fs.StringSliceVar(&f.includeResources, "include-resources", nil, "only these types, such as deploy,secrets; in place of TYPE arguments")
	fs.StringSliceVar(&f.excludeResources, "exclude-resources", nil, "without these types")
	fs.StringArrayVar(&f.orSelectors, "or-selector", nil, "objects that match any of these selectors; may be given several times; in place of -l")
	fs.StringVar(&f.cluster, "include-cluster-resources", "auto", "objects outside any namespace: auto (those that restored objects need, if missing), true, or false")
	fs.Lookup("include-cluster-resources").NoOptDefVal = "true"
}

func (f *scopeFlags) namespaces() bool { return len(f.includeNamespaces)+len(f.excludeNamespaces) > 0 }

// check reads what can be read before anything is opened.
func (f *scopeFlags) check(h *historyFlags, args []string, r *replay.RestoreRequest) (err error) {
	if r.Cluster, err = replay.ParseClusterPolicy(f.cluster); err != nil {
		return usage("--include-cluster-resources: %v", err)
	}
	switch {
	case f.namespaces() && (h.namespace.namespace != "" || h.namespace.all):
		return usage("choose namespaces either with -n or -A, or with --include-namespaces and --exclude-namespaces")
	case len(f.includeResources) > 0 && len(args) > 0:
		return usage("choose types either with --include-resources, or as arguments")
	case len(f.orSelectors) > 0 && h.selector != "":
		return usage("choose labels either with -l, or with --or-selector")
	}
	for _, g := range slices.Concat(f.includeNamespaces, f.excludeNamespaces) {
		if _, err := path.Match(g, ""); err != nil || g == "" {
			return usage("%q is no name of a namespace, and no pattern such as team-*", g)
		}
	}
	return nil
}

// types are the arguments that --include-resources stands for.
func (f *scopeFlags) types(args []string) []string {
	if len(f.includeResources) == 0 || slices.Contains(f.includeResources, "*") {
		return args
	}
	return []string{strings.Join(f.includeResources, ",")}
}

// selector reads the label selectors, each of which may be several that are joined by "or".
func (f *scopeFlags) selector() (labels.Selector, error) {
	var any replay.AnyOf
	for _, text := range f.orSelectors {
		for one := range strings.SplitSeq(text, " or ") {
			s, err := labels.Parse(one)
			if err != nil {
				return nil, usage("--or-selector %q: %v", one, err)
			}
			any = append(any, s)
		}
	}
	if any == nil {
		return nil, nil
	}
	return any, nil
}

// narrow applies the flags to the scope of a restore at the cut.
func (f *scopeFlags) narrow(ctx context.Context, h *history, r *replay.RestoreRequest) error {
	for _, t := range f.excludeResources {
		ledgers, err := h.kinds.find(t)
		if err != nil {
			return err
		}
		for _, l := range ledgers {
			r.ExcludeResources = append(r.ExcludeResources, l.GroupResource())
		}
	}
	any, err := f.selector()
	if err != nil {
		return err
	}
	if any != nil {
		r.Scope.Selector = any
	}
	if !f.namespaces() {
		return nil
	}
	if picksFew(h.targets) {
		return usage("single objects are looked for in one namespace: choose it with -n, not with --include-namespaces")
	}
	names, err := f.matching(ctx, h, r.Cut)
	if err != nil {
		return err
	}
	// With patterns that only leave out, the whole cluster is meant, as in Velero.
	if everything := len(f.includeNamespaces) == 0 || slices.Contains(f.includeNamespaces, "*"); everything && r.Cluster != replay.ClusterNone {
		names = append(names, replay.ClusterScope)
	}
	r.Scope.Namespaces = names
	return nil
}

// matching are the namespaces of the cut that the patterns choose.
func (f *scopeFlags) matching(ctx context.Context, h *history, cut journal.Cut) ([]string, error) {
	var all []string
	scope := replay.Scope{Namespaces: []string{replay.ClusterScope}, Resources: []schema.GroupResource{namespaceKind}}
	for e, err := range h.src.Fold(ctx, cut, scope) {
		if err != nil {
			return nil, err
		}
		all = append(all, e.Name)
	}
	for _, name := range f.includeNamespaces { // one that is named need not be recorded itself: its objects may be
		if !strings.ContainsAny(name, `*?[\`) && !slices.Contains(all, name) {
			all = append(all, name)
		}
	}
	names := chosen(all, f.includeNamespaces, f.excludeNamespaces)
	if len(names) == 0 {
		return nil, failure(ErrNotInHistory, "no namespace of that moment matches: %d were recorded; 'tidemark get ns --at ...' lists them", len(all))
	}
	return names, nil
}

// chosen are the names that match one of the patterns to include (none: all), and none to exclude.
func chosen(names, include, exclude []string) []string {
	matches := func(patterns []string, name string) bool {
		return slices.ContainsFunc(patterns, func(p string) bool {
			ok, err := path.Match(p, name)
			return err == nil && ok
		})
	}
	var out []string
	for _, n := range names {
		if (len(include) == 0 || matches(include, n)) && !matches(exclude, n) {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out
}
