package cli

import (
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/replay"
)

// target is one resource that a command is about, with the names asked for; no names: all.
type target struct {
	ledger *journal.Ledger
	names  []string
}

// targets reads what kubectl reads: "TYPE", "TYPE,TYPE", "TYPE NAME NAME", "TYPE/NAME TYPE/NAME".
func (k *kinds) targets(args []string) ([]target, error) {
	if len(args) == 0 {
		return nil, nil
	}
	var out []target
	add := func(types string, names []string) error {
		for t := range strings.SplitSeq(types, ",") {
			if t == "" {
				return usage("%q: there is a type missing beside a comma", types)
			}
			ledgers, err := k.find(t)
			if err != nil {
				return err
			}
			for _, l := range ledgers {
				out = merge(out, l, names)
			}
		}
		return nil
	}
	slashes := 0
	for _, a := range args {
		if strings.Contains(a, "/") {
			slashes++
		}
	}
	switch slashes {
	case 0:
		return out, add(args[0], args[1:])
	case len(args):
		for _, a := range args {
			kind, name, _ := strings.Cut(a, "/")
			if kind == "" || name == "" || strings.Contains(name, "/") {
				return nil, usage("%q: want TYPE/NAME", a)
			}
			if err := add(kind, []string{name}); err != nil {
				return nil, err
			}
		}
		return out, nil
	}
	return nil, usage("write either TYPE NAME, or TYPE/NAME for each object, not both: %s", strings.Join(args, " "))
}

// merge adds the names of a type that is there already to it, as kubectl does.
func merge(ts []target, l *journal.Ledger, names []string) []target {
	for i := range ts {
		if ts[i].ledger != l {
			continue
		}
		if len(names) == 0 || len(ts[i].names) == 0 {
			ts[i].names = nil
			return ts
		}
		for _, n := range names {
			if !slices.Contains(ts[i].names, n) {
				ts[i].names = append(ts[i].names, n)
			}
		}
		return ts
	}
	return append(ts, target{l, slices.Clone(names)})
}

// scope is the scope of one target in a namespace; an empty namespace means all.
func (t *target) scope(namespace string) replay.Scope {
	s := replay.Scope{Resources: []schema.GroupResource{t.ledger.GroupResource()}}
	if len(t.names) > 0 {
		s.Names = t.names
	}
	switch {
	case !t.ledger.Namespaced:
		s.Namespaces = []string{replay.ClusterScope}
	case namespace != "":
		s.Namespaces = []string{namespace}
	}
	return s
}

// scopeOf is the smallest scope that holds all targets; without targets, everything in the
// namespace. It can hold more than the targets: covers tells.
func scopeOf(ts []target, namespace string) replay.Scope {
	var s replay.Scope
	if len(ts) == 0 {
		if namespace != "" {
			s.Namespaces = []string{namespace}
		}
		return s
	}
	anyName, anyNamespace := false, false
	for i := range ts {
		one := ts[i].scope(namespace)
		s.Resources = append(s.Resources, one.Resources...)
		for _, n := range one.Names {
			if !slices.Contains(s.Names, n) {
				s.Names = append(s.Names, n)
			}
		}
		for _, n := range one.Namespaces {
			if !slices.Contains(s.Namespaces, n) {
				s.Namespaces = append(s.Namespaces, n)
			}
		}
		anyName = anyName || one.Names == nil
		anyNamespace = anyNamespace || one.Namespaces == nil
	}
	if anyName {
		s.Names = nil
	}
	if anyNamespace {
		s.Namespaces = nil
	}
	return s
}

// covers reports whether the targets hold the object; no targets hold everything.
func covers(ts []target, namespace string, e *journal.Event) bool {
	if len(ts) == 0 {
		return true
	}
	for i := range ts {
		if s := ts[i].scope(namespace); s.Covers(e.Resource, e.Namespace, e.Name) {
			return true
		}
	}
	return false
}
