package mover

import (
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"filippo.io/age"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"

	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/volumes/repository"
)

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// brokered is a broker with a repository behind it.
type brokered struct {
	*testing.T
	*Broker
	store    archive.Store
	password string
}

func newBrokered(t *testing.T) *brokered {
	store, err := archive.NewDirStore(t.TempDir())
	ok(t, err)
	return newBrokeredAt(t, store, BrokerOptions{})
}

func newBrokeredAt(t *testing.T, store archive.Store, o BrokerOptions) *brokered {
	id, err := age.GenerateX25519Identity()
	ok(t, err)
	r, err := repository.Create(t.Context(), repository.Options{Store: store, Cluster: "c1", Identities: []age.Identity{id}, Recipients: []age.Recipient{id.Recipient()}})
	ok(t, err)
	defer r.Close(t.Context())
	o.Listen, o.Host, o.Spool = "127.0.0.1:0", "127.0.0.1", t.TempDir()
	b := NewBroker(o)
	t.Cleanup(func() { ok(t, b.Close()) })
	return &brokered{t, b, store, r.Password()}
}

// mover takes a job on and gives what its mover would use.
func (b *brokered) mover(job Job, progress func(repository.Progress)) (*Ticket, *remote) {
	b.Helper()
	job.Cluster, job.Password = "c1", b.password
	t, err := b.add(b.Context(), job, b.store, func() (map[string]string, error) { return map[string]string{"backup": "name"}, nil }, progress)
	ok(b.T, err)
	t.offer()
	s, err := newRemote(b.url, t.token, b.ca)
	ok(b.T, err)
	s.patience = 5 * time.Second
	return t, s
}

func TestBackupAndRestoreThroughTheBroker(t *testing.T) {
	b := newBrokered(t)
	dir, to := t.TempDir(), t.TempDir()
	for name, text := range map[string]string{"a": "alpha", "b": strings.Repeat("beta", 1<<20)} {
		ok(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o640))
	}
	ticket, s := b.mover(Job{Kind: Backup, Source: repository.Source{Namespace: "shop", Name: "data"}}, nil)
	ok(t, run(t.Context(), s, Backup, dir, t.TempDir()))
	o, err := ticket.wait(t.Context())
	ok(t, err)
	if o.Error != "" || o.Result.Backup.Files != 2 || o.Result.Tags["backup"] != "name" {
		t.Fatalf("%+v", o)
	}
	ticket, s = b.mover(Job{Kind: Restore, ID: o.Result.ID}, nil)
	ok(t, run(t.Context(), s, Restore, to, t.TempDir()))
	if o, err = ticket.wait(t.Context()); err != nil || o.Restored.Files != 2 {
		t.Fatalf("%+v, %v", o, err)
	}
	if text, err := os.ReadFile(filepath.Join(to, "a")); err != nil || string(text) != "alpha" {
		t.Errorf("%q, %v", text, err)
	}
}

// TestWhatAMoverMayNot tries what would hurt other backups.
func TestWhatAMoverMayNot(t *testing.T) {
	b := newBrokered(t)
	_, s := b.mover(Job{Kind: Backup}, nil)
	ctx := t.Context()
	prefix := repository.Files("c1")
	body := strings.NewReader("text")
	ok(t, s.Create(ctx, prefix+"pnew", body, 4, archive.CreateOptions{}))
	ok(t, s.Create(ctx, prefix+"pnew", body, 4, archive.CreateOptions{})) // the answer was lost
	other := strings.NewReader("other text")
	for what, err := range map[string]error{
		"replace content":          s.Create(ctx, prefix+"pnew", other, other.Size(), archive.CreateOptions{Replace: true}),
		"replace the format":       s.Create(ctx, prefix+"kopia.repository", other, other.Size(), archive.CreateOptions{Replace: true}),
		"remove content":           s.Remove(ctx, prefix+"pnew"),
		"read the password":        s.ReadAt(ctx, "volumes/c1/keys/00000001.age", make([]byte, 1), 0),
		"read another cluster's":   s.ReadAt(ctx, "volumes/c2/kopia/p1", make([]byte, 1), 0),
		"leave the directory":      s.Create(ctx, prefix+"../keys/00000002.age", body, 4, archive.CreateOptions{}),
		"list what is not its own": errOf(s, "volumes/"),
	} {
		if err == nil {
			t.Errorf("a mover may %s", what)
		}
	}
	if _, err := s.Stat(ctx, prefix+"nothing"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
	_, err := ask[Job](ctx, s, "/job")
	ok(t, err)
	if _, err := ask[Job](ctx, s, "/job"); !errors.Is(err, archive.ErrDenied) {
		t.Errorf("the job is handed out twice: %v", err)
	}
	_, s = b.mover(Job{Kind: Restore}, nil)
	if err := s.Create(ctx, prefix+"pother", body, 4, archive.CreateOptions{}); !errors.Is(err, archive.ErrDenied) {
		t.Errorf("a restore may write: %v", err)
	}
}

func errOf(s *remote, prefix string) error {
	for _, err := range s.List(context.Background(), prefix, "") {
		return err
	}
	return nil
}

func TestACancelledJobEndsItsMover(t *testing.T) {
	b := newBrokered(t)
	ticket, s := b.mover(Job{Kind: Backup, Source: repository.Source{Namespace: "shop", Name: "data"}}, nil)
	b.remove(ticket)
	if err := run(t.Context(), s, Backup, t.TempDir(), t.TempDir()); !errors.Is(err, errOver) {
		t.Errorf("with a token that is not good any more: %v", err)
	}
	_, s = b.mover(Job{Kind: Backup}, nil)
	s.token = "guessed"
	if _, err := ask[Job](t.Context(), s, "/job"); !errors.Is(err, errOver) {
		t.Errorf("with another token: %v", err)
	}
}

// TestTheBrokerComesBack has a request wait for a broker that is away.
func TestTheBrokerComesBack(t *testing.T) {
	b := newBrokered(t)
	_, s := b.mover(Job{Kind: Backup}, nil)
	fails := 2
	s.client.Transport = roundTripper{s.client.Transport, &fails}
	ok(t, s.Create(t.Context(), repository.Files("c1")+"pnew", strings.NewReader("text"), 4, archive.CreateOptions{}))
	fails, s.patience = 1<<30, 300*time.Millisecond
	if err := s.Create(t.Context(), repository.Files("c1")+"pmore", strings.NewReader("text"), 4, archive.CreateOptions{}); err == nil || !strings.Contains(err.Error(), "no way to the store for 300ms") {
		t.Errorf("a broker that stays away: %v", err)
	}
}

type roundTripper struct {
	http.RoundTripper
	fails *int
}

func (r roundTripper) RoundTrip(q *http.Request) (*http.Response, error) {
	if *r.fails > 0 {
		*r.fails--
		return nil, errors.New("connection refused")
	}
	return r.RoundTripper.RoundTrip(q)
}

func TestThePodCanBePatched(t *testing.T) {
	pod := func(patch string, at Place) (*corev1.PodSpec, *corev1.Container) {
		t.Helper()
		b, err := ParsePod([]byte(patch))
		ok(t, err)
		at.Namespace, at.Claim = "shop", "data"
		p, err := (&Settings{Image: "tidemark:1", Pod: b}).pod(&at, "m", Backup)
		ok(t, err)
		return &p.Spec, &p.Spec.Containers[0]
	}
	p, c := pod("spec:\n  nodeSelector: {disk: fast}\n  containers:\n  - name: mover\n    resources: {limits: {memory: 1Gi}}\n", Place{Node: "n1"})
	if p.NodeSelector["disk"] != "fast" || c.Image != "tidemark:1" || c.Resources.Limits.Memory().String() != "1Gi" || c.Resources.Requests.Cpu().IsZero() || len(c.VolumeMounts) != 3 {
		t.Errorf("%+v", p)
	}
	p, c = pod("spec:\n  securityContext: {runAsUser: 1000, supplementalGroups: [7]}\n  containers:\n  - name: mover\n    securityContext: {seLinuxOptions: {type: spc_t}, capabilities: {add: [SYS_ADMIN]}}\n", Place{})
	if s := p.SecurityContext; *s.RunAsUser != 1000 || s.SeccompProfile == nil || len(s.SupplementalGroups) != 1 {
		t.Errorf("the Pod's security context: %+v", s)
	}
	if s := c.SecurityContext; s.SELinuxOptions.Type != "spc_t" || *s.AllowPrivilegeEscalation || !*s.ReadOnlyRootFilesystem || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) ||
		!slices.Equal(s.Capabilities.Add, []corev1.Capability{"SYS_ADMIN"}) { // a list is replaced, so that capabilities can be taken away too
		t.Errorf("the container's security context: %+v", s)
	}
	if _, err := ParsePod([]byte("spec: {container: []}")); err == nil {
		t.Error("a field that Pods do not have is taken")
	}
}

// TestAPatchLeavesThePodOnItsNode has patches say where Pods may be, while the volume is in use on a node.
func TestAPatchLeavesThePodOnItsNode(t *testing.T) {
	const zones = "spec:\n  affinity:\n    nodeAffinity:\n      requiredDuringSchedulingIgnoredDuringExecution:\n        nodeSelectorTerms:\n" +
		"        - matchExpressions: [{key: zone, operator: In, values: [a]}]\n        - matchExpressions: [{key: zone, operator: In, values: [b]}]\n"
	for patch, c := range map[string]struct{ terms, expressions, tolerations int }{
		"{}":  {1, 0, 1},
		zones: {2, 1, 1},
		"spec: {tolerations: [{key: backup, operator: Exists, effect: NoSchedule}]}":                                                                                         {1, 0, 2},
		"spec: {affinity: {podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: host}]}}}":                                                       {1, 0, 1},
		"spec: {affinity: null, tolerations: null}":                                                                                                                          {1, 0, 1},
		"spec: {affinity: {nodeAffinity: {preferredDuringSchedulingIgnoredDuringExecution: [{weight: 1, preference: {matchExpressions: [{key: ssd, operator: Exists}]}}]}}}": {1, 0, 1},
	} {
		b, err := ParsePod([]byte(patch))
		ok(t, err)
		s := Settings{Image: "tidemark:1", Pod: b}
		p, err := s.pod(&Place{Namespace: "shop", Claim: "data", Node: "n1"}, "m", Backup)
		ok(t, err)
		terms := p.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms
		if len(terms) != c.terms || len(p.Spec.Tolerations) != c.tolerations || !slices.ContainsFunc(p.Spec.Tolerations, func(t corev1.Toleration) bool { return t.Key == "" && t.Operator == corev1.TolerationOpExists }) {
			t.Errorf("%s: %+v, %+v", patch, terms, p.Spec.Tolerations)
		}
		for _, term := range terms {
			if len(term.MatchExpressions) != c.expressions || len(term.MatchFields) != 1 || term.MatchFields[0].Values[0] != "n1" {
				t.Errorf("%s: it may run where the volume is not: %+v", patch, term)
			}
		}
		p, err = s.pod(&Place{Namespace: "shop", Claim: "data"}, "m", Backup)
		ok(t, err)
		if len(p.Spec.Tolerations) != c.tolerations-1 {
			t.Errorf("%s: without a node: %+v", patch, p.Spec.Tolerations)
		}
	}
}

// TestALimitSlowsAMoverAndFailsNothing has four files wait for their turn for longer than a mover is patient, and longer than it may be silent.
func TestALimitSlowsAMoverAndFailsNothing(t *testing.T) {
	const rate, size = 256 << 10, 128 << 10
	b := newBrokered(t)
	b.store = repository.Limited(b.store, rate, rate)
	ticket, s := b.mover(Job{Kind: Backup}, nil)
	ticket.beat, s.patience = 10*time.Millisecond, 200*time.Millisecond
	if transport, is := s.client.Transport.(*http.Transport); !is || transport.ResponseHeaderTimeout != 0 || s.client.Timeout != 0 {
		t.Error("an answer may take only so long, and a low limit lets it take longer")
	}
	var lost atomic.Int64
	lost.Store(1)
	s.client.Transport = losing{s.client.Transport, &lost}
	began, ended, silent := time.Now(), make(chan struct{}), make(chan time.Duration)
	go func() {
		longest := time.Duration(0)
		for {
			select {
			case <-time.After(5 * time.Millisecond):
				if heard := ticket.heard(); !heard.IsZero() {
					longest = max(longest, time.Since(heard))
				}
			case <-ended:
				silent <- longest
				return
			}
		}
	}()
	content := rand.Text() + strings.Repeat("x", size)
	content = content[:size]
	name := func(i int) string { return repository.Files("c1") + "p" + strconv.Itoa(i) }
	var g errgroup.Group
	for i := range 4 {
		g.Go(func() error {
			return s.Create(t.Context(), name(i), strings.NewReader(content), size, archive.CreateOptions{})
		})
	}
	ok(t, g.Wait())
	if took := time.Since(began); took < time.Second {
		t.Errorf("uploads took %s, so there was no limit", took)
	}
	began = time.Now()
	for i := range 4 {
		g.Go(func() error {
			got := make([]byte, size)
			err := s.ReadAt(t.Context(), name(i), got, 0)
			if string(got) != content {
				t.Errorf("file %d comes back as something else", i)
			}
			return err
		})
	}
	ok(t, g.Wait())
	if took := time.Since(began); took < time.Second {
		t.Errorf("downloads took %s, so there was no limit", took)
	}
	close(ended)
	if d := <-silent; d > 1200*time.Millisecond {
		t.Errorf("nothing was heard for %s", d)
	}
}

// losing loses answers.
type losing struct {
	http.RoundTripper
	answers *atomic.Int64
}

func (l losing) RoundTrip(q *http.Request) (*http.Response, error) {
	r, err := l.RoundTripper.RoundTrip(q)
	if err == nil && l.answers.Add(-1) >= 0 {
		r.Body.Close()
		return nil, errors.New("the connection broke")
	}
	return r, err
}

// What backups are read from is written once, also by a mover gone wrong: packs, indexes and what notes them.
func TestMoversReplaceMarkersOnly(t *testing.T) {
	for name, want := range map[string]bool{
		"volumes/c/kopia/p1": false, "volumes/c/kopia/q1": false, "volumes/c/kopia/xn0_1": false, "volumes/c/kopia/kopia.repository": false,
		"volumes/c/kopia/tidemark-indexes-A": false, "volumes/c/kopia/_log_1": true,
	} {
		if replaceable(name) != want {
			t.Errorf("%s: %v", name, !want)
		}
	}
}
