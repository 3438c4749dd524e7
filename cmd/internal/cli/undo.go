package cli

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/replay"
)

// undoSpare is how many more deletions an undo allows than the restore made objects: what
// controllers make beside them has no owner at times.
const undoSpare = 10

// undo is how a restore is taken back.
type undo struct {
	// Commands are to be typed one after the other.
	Commands []string `json:"undo,omitempty"`
	// Stays is what they leave, and how to get rid of it.
	Stays []string `json:"undoLeaves,omitempty"`
}

// undo makes the commands that take back what the plan writes: one for each namespace it
// writes to, and one for each type of objects that have names of their own.
func (f *restoreFlags) undo(cmd *cobra.Command, h *history, plan *replay.Plan) *undo {
	if recorded := h.catalog.ClusterID; plan.Cluster != "" && recorded != "" && plan.Cluster != recorded {
		return &undo{Stays: []string{"there is no command that undoes it: history is of another cluster than the one that was written to"}}
	}
	u := &undo{Stays: f.stays(plan)}
	if f.selector != "" && slices.ContainsFunc(plan.Items, relabels) {
		u.Stays = append(u.Stays, "objects whose labels did not match before, and do now, stay as they are")
	}
	groups := [][]target{h.targets}
	if len(h.targets) > 1 && !sameNames(h.targets) {
		groups = nil
		for i := range h.targets {
			groups = append(groups, h.targets[i:i+1])
		}
	}
	for _, where := range f.undoPlaces() {
		for _, ts := range groups {
			words := append([]string{cmd.Root().DisplayName(), "restore"}, typed(ts)...)
			made := 0
			for _, it := range plan.Items {
				if it.Action == replay.ActionCreate && (where == "-A" || it.Namespace == where || it.Namespace == "") {
					made++
				}
			}
			switch where {
			case replay.ClusterScope:
			case "-A":
				words = append(words, where)
			default:
				words = append(words, "-n", where)
			}
			words = append(words, f.undoFlags(plan.ID, made)...)
			for i := 1; i < len(words); i++ { // the first may be "kubectl tidemark"
				words[i] = quote(words[i])
			}
			u.Commands = append(u.Commands, strings.Join(words, " "))
		}
	}
	return u
}

// relabels reports whether the item changes labels of a live object.
func relabels(it *replay.Item) bool {
	return (it.Action == replay.ActionUpdate || it.Action == replay.ActionRecreate) &&
		slices.ContainsFunc(it.Diff, func(d replay.FieldDiff) bool { return strings.HasPrefix(d.Path, ".metadata.labels") })
}

// undoPlaces are the namespaces that the restore writes to; "-A" is all of them.
func (f *restoreFlags) undoPlaces() []string {
	spaces := f.request.Scope.Namespaces
	if spaces == nil {
		return []string{"-A"}
	}
	var out []string
	for _, ns := range spaces {
		if to, mapped := f.request.NamespaceMappings[ns]; mapped {
			ns = to
		}
		if ns != replay.ClusterScope {
			out = append(out, ns)
		}
	}
	if len(out) == 0 {
		return []string{replay.ClusterScope}
	}
	return out
}

func (f *restoreFlags) undoFlags(id string, made int) []string {
	existing := replay.ExistingUpdate
	if f.request.Existing == replay.ExistingRecreate {
		existing = replay.ExistingRecreate
	}
	words := []string{"--at", "before:restore/" + id, "--existing", existing.String(), "--prune"}
	if n := made + undoSpare; n > replay.DefaultMaxDeletes {
		words = append(words, "--max-deletes", strconv.Itoa(n))
	}
	return append(words, given(
		"-l", f.selector, "--kubeconfig", f.namespace.kube.kubeconfig, "--context", f.namespace.kube.context,
		"--server", f.server.server, "--token-file", f.server.tokenFile, "--server-ca", f.server.ca)...)
}

// given are those of the flags, each followed by its value, that have one.
func given(flags ...string) (out []string) {
	for i := 0; i < len(flags); i += 2 {
		if flags[i+1] != "" {
			out = append(out, flags[i], flags[i+1])
		}
	}
	return out
}

// stays lists what pruning does not delete: namespaces and other cluster-scoped objects whose
// type was not named.
func (f *restoreFlags) stays(plan *replay.Plan) []string {
	remove := func(words ...string) string {
		words = append(words, given("--kubeconfig", f.namespace.kube.kubeconfig, "--context", f.namespace.kube.context)...)
		for i := range words {
			words[i] = quote(words[i])
		}
		return "kubectl delete " + strings.Join(words, " ")
	}
	var out []string
	for _, it := range plan.Items {
		if it.Action != replay.ActionCreate || it.Namespace != "" || it.Resource != namespaceKind && slices.Contains(f.request.Scope.Resources, it.Resource) {
			continue
		}
		if it.Resource == namespaceKind {
			out = append(out, fmt.Sprintf("the namespace %s itself stays: %s", it.Name, remove("namespace", it.Name)))
			continue
		}
		out = append(out, fmt.Sprintf("%s stays: %s", it, remove(it.Resource.String(), it.Name)))
	}
	return out
}

var namespaceKind = schema.GroupResource{Resource: "namespaces"}

// typed are the targets as a command line names them.
func typed(ts []target) []string {
	var types, out []string
	for i := range ts {
		gr := ts[i].ledger.GroupResource().String()
		if len(ts[i].names) == 0 {
			types = append(types, gr)
		}
		for _, n := range ts[i].names {
			out = append(out, gr+"/"+n)
		}
	}
	if len(types) > 0 {
		out = append(out, strings.Join(types, ","))
	}
	return out
}

// sameNames reports whether all targets have the same names, so that they are one scope.
func sameNames(ts []target) bool {
	for i := range ts {
		for _, n := range ts[i].names {
			if !slices.Contains(ts[0].names, n) {
				return false
			}
		}
		if len(ts[i].names) != len(ts[0].names) {
			return false
		}
	}
	return true
}

// quote makes one word of a shell's command line.
func quote(word string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./:=,@%+", r)
	}
	if word != "" && !strings.ContainsFunc(word, func(r rune) bool { return !plain(r) }) {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}
