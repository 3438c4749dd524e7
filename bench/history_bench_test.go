package bench

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/tidemark-backup/tidemark/journal"
)

// history makes up events as a busy cluster has them: Pods and Deployments of 4.7 KB on
// average, of which each revision changes a few fields. The same seed gives the same events.
type history struct {
	random  *rand.Rand
	objects []*madeUp
	rv      uint64
	now     time.Time
}

var (
	podInfo        = journal.ResourceInfo{Version: "v1", Resource: "pods", Singular: "pod", Kind: "Pod", Namespaced: true}
	deploymentInfo = journal.ResourceInfo{Group: "apps", Version: "v1", Resource: "deployments", Singular: "deployment", Kind: "Deployment", Namespaced: true}
	configMapInfo  = journal.ResourceInfo{Version: "v1", Resource: "configmaps", Singular: "configmap", Kind: "ConfigMap", Namespaced: true}
)

func newHistory(seed uint64) *history {
	return &history{random: rand.New(rand.NewPCG(seed, 4700)), rv: 1_000_000, now: time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)}
}

// add makes n objects of the kinds, evenly over the namespaces.
func (h *history) add(n int, namespaces []string, kinds ...*madeUpKind) *history {
	for i := range n {
		o := &madeUp{
			kind: kinds[i%len(kinds)], namespace: namespaces[i/len(kinds)%len(namespaces)],
			name: fmt.Sprintf("%s-%s", words[i%len(words)], h.hex(10)),
		}
		h.rv++
		o.begin(h)
		h.objects = append(h.objects, o)
	}
	return h
}

// podsAndDeployments is the usual history of a benchmark.
func podsAndDeployments(seed uint64, objects, namespaces int) *history {
	return newHistory(seed).add(objects, spaces(namespaces), madeUpPod, madeUpDeployment)
}

func spaces(n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf("team-%03d", i)
	}
	return all
}

// next changes one object, picked at random.
func (h *history) next() journal.Event {
	return h.change(h.objects[h.random.IntN(len(h.objects))])
}

func (h *history) change(o *madeUp) journal.Event {
	h.rv++
	h.now = h.now.Add(5 * time.Millisecond)
	o.change(h)
	return o.event(journal.Modified)
}

func (h *history) hex(n int) string {
	const digits = "0123456789abcdef"
	var b strings.Builder
	for range n {
		b.WriteByte(digits[h.random.IntN(16)])
	}
	return b.String()
}

func (h *history) stamp() string { return h.now.Format(time.RFC3339) }

// Fields of a template: {{x}} in its text stands for the field x.
const (
	fName = iota
	fNamespace
	fUID
	fRV
	fGeneration
	fCreated
	fChanged // when the newest change was made
	fOwner
	fHash
	fNode
	fIP
	fTag
	fReady // True or False
	fIsReady
	fReadyAt
	fRestarts
	fContainer
	fStarted
	fReplicas
	fAvailable
	fNote
	fields
)

var fieldNames = [fields]string{
	"name", "namespace", "uid", "rv", "generation", "created", "changed", "owner", "hash", "node", "ip", "tag",
	"Ready", "ready", "readyAt", "restarts", "container", "started", "replicas", "available", "note",
}

// madeUpKind is a kind with the template of its objects, split at the fields.
type madeUpKind struct {
	info     journal.ResourceInfo
	literals []string
	fields   []int // fields[i] follows literals[i]
}

func newMadeUpKind(info journal.ResourceInfo, text string) *madeUpKind {
	k := &madeUpKind{info: info}
	for {
		before, rest, found := strings.Cut(text, "{{")
		k.literals = append(k.literals, before)
		if !found {
			return k
		}
		name, after, _ := strings.Cut(rest, "}}")
		for i, n := range fieldNames {
			if n == name {
				k.fields = append(k.fields, i)
			}
		}
		if len(k.fields) != len(k.literals) {
			panic("template has no field " + name)
		}
		text = after
	}
}

// madeUp is one object of a history.
type madeUp struct {
	kind            *madeUpKind
	namespace, name string
	rv              uint64
	values          [fields]string
	generation      int
	restarts        int
	ready           bool
}

func (o *madeUp) begin(h *history) {
	o.generation, o.ready = 1, true
	v := &o.values
	v[fName], v[fNamespace] = o.name, o.namespace
	v[fUID] = fmt.Sprintf("%s-%s-4%s-9%s-%s", h.hex(8), h.hex(4), h.hex(3), h.hex(3), h.hex(12))
	v[fOwner] = fmt.Sprintf("%s-%s-4%s-9%s-%s", h.hex(8), h.hex(4), h.hex(3), h.hex(3), h.hex(12))
	v[fCreated], v[fStarted], v[fReadyAt] = h.stamp(), h.stamp(), h.stamp()
	v[fHash], v[fContainer] = h.hex(10), h.hex(64)
	v[fNode] = "node-" + strconv.Itoa(h.random.IntN(50))
	v[fIP] = fmt.Sprintf("10.%d.%d.%d", h.random.IntN(256), h.random.IntN(256), h.random.IntN(256))
	v[fTag] = "v1." + strconv.Itoa(h.random.IntN(40)) + ".0"
	v[fReplicas], v[fAvailable], v[fNote] = "3", "3", h.hex(8)
	o.stamp(h)
}

// change makes one of the changes that controllers and people make all the time.
func (o *madeUp) change(h *history) {
	v := &o.values
	switch h.random.IntN(8) {
	case 0: // a roll-out
		o.generation++
		v[fTag] = "v1." + strconv.Itoa(h.random.IntN(40)) + "." + strconv.Itoa(o.generation)
		v[fNote] = h.hex(8)
	case 1: // a restart
		o.restarts++
		v[fContainer], v[fStarted] = h.hex(64), h.stamp()
	case 2, 3, 4: // the number of healthy pods
		v[fAvailable] = strconv.Itoa(h.random.IntN(4))
		fallthrough
	default:
		o.ready = !o.ready
		v[fReadyAt] = h.stamp()
	}
	o.stamp(h)
}

func (o *madeUp) stamp(h *history) {
	o.rv = h.rv
	v := &o.values
	v[fRV], v[fGeneration], v[fRestarts] = strconv.FormatUint(h.rv, 10), strconv.Itoa(o.generation), strconv.Itoa(o.restarts)
	v[fReady], v[fIsReady] = "False", "false"
	if o.ready {
		v[fReady], v[fIsReady] = "True", "true"
	}
	v[fChanged] = h.stamp()
}

// render appends the object's JSON.
func (o *madeUp) render(b []byte) []byte {
	for i, f := range o.kind.fields {
		b = append(append(b, o.kind.literals[i]...), o.values[f]...)
	}
	return append(b, o.kind.literals[len(o.kind.fields)]...)
}

func (o *madeUp) event(op journal.Op) journal.Event {
	return journal.Event{
		Resource: o.kind.info.GroupResource(), Namespace: o.namespace, Name: o.name, UID: o.values[fUID],
		Op: op, Revision: journal.Revision{RV: o.rv}, Object: o.render(make([]byte, 0, 5200)),
	}
}

var words = []string{"checkout", "ledger", "search", "gateway", "mailer", "invoices", "sessions", "pricing", "catalog", "telemetry"}
