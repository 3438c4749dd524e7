package capture

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/semaphore"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"github.com/tidemark-backup/tidemark/journal"
)

// Options configure a Capture. Config and Journal are required.
type Options struct {
	Config  *rest.Config
	Journal *journal.Journal
	Logger  *zap.Logger // default: none
	// Include and Exclude choose resources by patterns: "secrets", "*.example.com",
	// "deployments.apps". Include empty: all. Exclude nil: events and leases.
	Include, Exclude []string
	// Namespaces limits namespaced objects to these; cluster-scoped ones are recorded all
	// the same. Empty: all.
	Namespaces []string
	// Selector limits objects by label. Empty: all.
	Selector string
	// MinWatchTimeout is the shortest watch that is asked for. Default: 30 minutes. (The
	// Reflector takes nothing below 5 minutes.)
	MinWatchTimeout time.Duration
	// Lists bounds the lists that run at once. Default: 2.
	Lists int
	// Rediscover is how often resources are looked for without being told of new ones.
	// Default: 30 seconds.
	Rediscover time.Duration
}

// DefaultExclude is not recorded unless asked for: it changes all the time and nobody restores it.
var DefaultExclude = []string{"events", "events.events.k8s.io", "leases.coordination.k8s.io"}

// Capture streams a cluster into a journal.
type Capture struct {
	opts      Options
	log       *zap.Logger
	filter    string // the ledger's words for Namespaces and Selector
	client    rest.Interface
	discovery discovery.DiscoveryInterface
	lists     *semaphore.Weighted
	wake      chan struct{}   // holds one token when resources should be looked for
	tried     chan struct{}   // holds one token when it should be looked whether all were tried
	ctx       context.Context // Run's; set before any resource starts
	again     bool            // another look for resources is wanted soon; owned by Run

	checking  sync.Mutex // guards checkedAt, and lets one check serve all who wait
	checkedAt time.Time

	readingMain sync.Mutex // guards read, the newest reading of the main counter, and when it was begun
	read        uint64
	readAt      time.Time

	mu        sync.Mutex // guards what follows
	bound     bool       // the journal is this cluster's
	connected bool
	err       string
	running   map[schema.GroupResource]*resource
	missing   map[schema.GroupResource]int // how many discoveries in a row have missed it
	leftOut   []journal.LeftOut
	epoch     uint32
}

// Check finds what cannot work in what is to be recorded.
func (o *Options) Check() error {
	if _, err := labels.Parse(o.Selector); err != nil {
		return fmt.Errorf("label selector %q: %w", o.Selector, err)
	}
	return checkPatterns(slices.Concat(o.Include, o.Exclude))
}

// New prepares a capture; Run starts it. It returns an error for options that cannot work.
func New(o Options) (*Capture, error) {
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	if o.Exclude == nil {
		o.Exclude = DefaultExclude
	}
	if o.MinWatchTimeout == 0 {
		o.MinWatchTimeout = 30 * time.Minute
	}
	if o.Lists == 0 {
		o.Lists = 2
	}
	if o.Rediscover == 0 {
		o.Rediscover = 30 * time.Second
	}
	if err := o.Check(); err != nil {
		return nil, err
	}
	config := rest.CopyConfig(o.Config)
	config.QPS, config.RateLimiter = -1, nil // the server's priority and fairness decides
	config.DisableCompression = true         // CPU is dearer than the pod network
	config.Timeout, config.WarningHandler = 0, rest.NoWarnings{}
	if config.UserAgent == "" {
		config.UserAgent = "tidemark-capture"
	}
	http, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("connect to the cluster: %w", err)
	}
	raw := dynamic.ConfigFor(config)
	raw.GroupVersion, raw.APIPath = &schema.GroupVersion{}, "/"
	client, err := rest.UnversionedRESTClientForConfigAndClient(raw, http)
	if err != nil {
		return nil, fmt.Errorf("connect to the cluster: %w", err)
	}
	asking := rest.CopyConfig(config)
	asking.Timeout = 10 * time.Second // discovery takes no context, and a stop must not wait for it
	disco, err := discovery.NewDiscoveryClientForConfig(asking)
	if err != nil {
		return nil, fmt.Errorf("connect to the cluster: %w", err)
	}
	return &Capture{
		opts: o, log: o.Logger.Named("capture"), filter: filterText(o), client: client, discovery: disco,
		lists: semaphore.NewWeighted(int64(o.Lists)), wake: make(chan struct{}, 1), tried: make(chan struct{}, 1),
		running: map[schema.GroupResource]*resource{}, missing: map[schema.GroupResource]int{},
	}, nil
}

func filterText(o Options) string {
	var parts []string
	if len(o.Namespaces) > 0 {
		parts = append(parts, "only namespaces "+strings.Join(o.Namespaces, ", "))
	}
	if o.Selector != "" {
		parts = append(parts, "only labels "+o.Selector)
	}
	return strings.Join(parts, "; ")
}

// Run captures until ctx ends and returns nil then. It keeps trying while the cluster cannot
// be reached; it returns an error only when going on makes no sense: the journal failed
// (journal.ErrClosed and others) or belongs to another cluster (journal.ErrOtherCluster).
func (c *Capture) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	c.ctx = ctx
	if err := c.connect(ctx); err != nil {
		return endOf(ctx, err)
	}
	tick := time.NewTicker(c.opts.Rediscover)
	defer tick.Stop()
	for delay := firstRetry; ; {
		c.again = false
		err := c.rediscover(ctx, &running)
		if ctx.Err() == nil && errors.Is(err, journal.ErrClosed) {
			return err
		}
		c.setError(err)
		var retry <-chan time.Time
		if c.again || err != nil {
			retry = time.After(delay)
			delay = min(2*delay, c.opts.Rediscover)
		} else {
			delay = firstRetry
		}
		told, err := c.await(ctx, retry, tick.C)
		if err != nil || ctx.Err() != nil {
			return endOf(ctx, err)
		}
		if told {
			delay = firstRetry
		}
	}
}

// firstRetry is how soon resources are looked for again when the last look left something open;
// each further try waits twice as long.
const firstRetry = 300 * time.Millisecond

// await waits until resources should be looked for again; told reports that the cluster said so.
func (c *Capture) await(ctx context.Context, retry, tick <-chan time.Time) (told bool, err error) {
	for {
		select {
		case <-ctx.Done():
			return false, nil
		case <-c.opts.Journal.Failed():
			return false, c.opts.Journal.Err()
		case <-c.tried:
			if err := c.begun(ctx); err != nil {
				return false, err
			}
		case <-retry:
			return false, nil
		case <-tick:
			return false, nil
		case <-c.wake:
			select { // many changes come at once: one discovery serves them all
			case <-ctx.Done():
			case <-time.After(200 * time.Millisecond):
			}
			return true, nil
		}
	}
}

// endOf makes the end of the context the good end.
func endOf(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// connect waits for the cluster and ties the journal to it.
func (c *Capture) connect(ctx context.Context) error {
	for delay := 250 * time.Millisecond; ; delay = min(2*delay, 10*time.Second) {
		id, err := c.clusterID(ctx)
		if err == nil {
			if err = c.opts.Journal.Bind(ctx, id); err != nil {
				return err
			}
			err = c.checkWitnesses(ctx)
		}
		if err == nil {
			err = c.noteOutage(ctx, nil, c.opts.Journal.LastAlive())
		}
		if err == nil {
			c.mu.Lock()
			c.bound, c.connected, c.err, c.epoch = true, true, "", c.opts.Journal.Newest().Epoch
			c.mu.Unlock()
			c.log.Info("connected", zap.String("cluster", id))
			return nil
		}
		c.setError(err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(delay):
		}
	}
}

// clusterID is the uid of the kube-system namespace: it lives exactly as long as the cluster.
func (c *Capture) clusterID(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	body, err := c.client.Get().AbsPath("/api/v1/namespaces/kube-system").SetHeader("Accept", "application/json").Do(ctx).Raw()
	if apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) {
		var why metav1.Status // whom it refuses what; client-go leaves it out of the error of a raw answer
		if json.Unmarshal(body, &why) == nil && why.Message != "" {
			err = &apierrors.StatusError{ErrStatus: why}
		}
		return "", fmt.Errorf("the cluster refuses: %w (tidemark needs 'get' on namespace kube-system, whose uid tells clusters apart, and 'get', 'list' and 'watch' on what it is to record)", err)
	}
	if err != nil {
		return "", fmt.Errorf("cluster cannot be reached: %w", plain(err))
	}
	o, err := scanObject(body)
	if err != nil || o.uid == "" {
		return "", errors.New("namespace kube-system has no uid: is this a Kubernetes API server?")
	}
	return o.uid, nil
}

// lateAfter is how long a watch may be away before the times of what it missed count as unknown.
const lateAfter = 10 * time.Second

// noteOutage notes that the resource (nil: every one) was not watched from then until now.
func (c *Capture) noteOutage(ctx context.Context, gr *schema.GroupResource, from time.Time) error {
	now := time.Now()
	if from.IsZero() || now.Sub(from) < lateAfter {
		return nil
	}
	return c.opts.Journal.AddOutage(ctx, journal.Outage{Resource: gr, From: from.UTC(), To: now.UTC()})
}

func (c *Capture) setError(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != c.err && err != nil {
		c.log.Warn("cannot go on yet, trying again", zap.Error(err))
	}
	c.err = text
	if c.bound {
		c.connected = err == nil || isAnswer(err)
	}
}

// isAnswer reports whether the error is the server's own word, so the server is there.
func isAnswer(err error) bool {
	var status apierrors.APIStatus
	return errors.As(err, &status)
}

// begun tells the journal once every resource of the first discovery was recorded, or has
// failed: from then on there is a state of the whole cluster to restore.
func (c *Capture) begun(ctx context.Context) error {
	if !c.opts.Journal.Began().Time.IsZero() {
		return nil
	}
	c.mu.Lock()
	ready := len(c.running) > 0
	for _, r := range c.running {
		r.mu.Lock()
		ready = ready && r.tried
		r.mu.Unlock()
	}
	c.mu.Unlock()
	if !ready {
		return nil
	}
	return c.opts.Journal.SetBegan(ctx)
}

// attempted is told whenever a resource's first list or watch may have succeeded or failed.
func (c *Capture) attempted() {
	select {
	case c.tried <- struct{}{}:
	default:
	}
}

func (c *Capture) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// noticed sees which resource had an event: definitions of resources ask for a discovery.
func (c *Capture) noticed(gr schema.GroupResource) {
	if gr.Group == "apiextensions.k8s.io" || gr.Group == "apiregistration.k8s.io" {
		c.poke()
	}
}

// listed is told of each completed comparison. A new epoch of the main counter means that no
// watermark of the old one can be trusted: every other watch begins again with a list.
func (c *Capture) listed(by *resource, epoch uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if l := c.opts.Journal.Ledger(by.info.GroupResource()); l == nil || l.OwnCounter || epoch <= c.epoch {
		return
	}
	before := c.epoch
	c.epoch = epoch
	if before == 0 {
		return
	}
	c.log.Warn("the server's history went backwards: a new epoch begins", zap.Uint32("epoch", epoch))
	for _, r := range c.running {
		if r != by {
			r.stale = true
			r.cancel()
		}
	}
	c.poke()
}

const mainPath = "/api/v1/namespaces"

// freshReading is how old a reading of the main counter may be that others look at, too: at a start all resources are listed,
// and each with readings of its own would be two requests more.
const freshReading = time.Second

// counter asks where the counter behind a collection stands, and whether it is one of its own: a consistent read of the
// main counter before and one after must enclose it. The answer also says whether there is any object.
func (c *Capture) counter(ctx context.Context, path string) (p reading, own bool, err error) {
	before, shared, err := c.readMain(ctx, freshReading)
	told := !apierrors.IsForbidden(err) // if not, it is nearly always the main one
	if told && err != nil {
		return p, false, err
	}
	if p, err = c.probe(ctx, path); err != nil || !told {
		return p, false, err
	}
	if shared && p.rv < before { // perhaps the main counter itself went back since the reading
		if before, _, err = c.readMain(ctx, 0); err != nil {
			return p, false, err
		}
		if p, err = c.probe(ctx, path); err != nil {
			return p, false, err
		}
	}
	if p.rv == before { // and so not above a later reading
		return p, false, nil
	}
	after, _, err := c.readMain(ctx, 0)
	if err != nil {
		return p, false, err
	}
	if after < before { // the main counter itself went back meanwhile
		return p, false, nil
	}
	return p, p.rv < before || p.rv > after, nil
}

// readMain reads the main counter, or gives a reading that is not older than that; shared says so.
func (c *Capture) readMain(ctx context.Context, old time.Duration) (rv uint64, shared bool, err error) {
	c.readingMain.Lock()
	defer c.readingMain.Unlock()
	if !c.readAt.IsZero() && time.Since(c.readAt) < old {
		return c.read, true, nil
	}
	began := time.Now()
	p, err := c.probe(ctx, mainPath)
	if err == nil {
		c.read, c.readAt = p.rv, began
	}
	return p.rv, false, err
}

// Fence is the exact place in history of the moment between the call and its return: what was written before the call is at or
// before it. The journal may not have got that far yet.
func (c *Capture) Fence(ctx context.Context) (journal.Cut, error) {
	p, err := c.probe(ctx, mainPath)
	if err != nil {
		return journal.Cut{}, err
	}
	return journal.Cut{Revision: journal.Revision{Epoch: max(c.opts.Journal.Newest().Epoch, 1), RV: p.rv}, Time: time.Now().UTC()}, nil
}

// reading is the answer to a small list.
type reading struct {
	rv    uint64
	empty bool // there is no object, so that this was all of the list
}

func (c *Capture) probe(ctx context.Context, path string) (reading, error) {
	objects := 0
	p, err := getPage(ctx, c.client, path, partialMetadata, metav1.ListOptions{Limit: 1}, typeName{}, func([]byte) error { objects++; return nil })
	if err == nil && p.rv == 0 {
		return reading{}, errNotNumeric
	}
	return reading{rv: p.rv, empty: objects == 0 && p.next == ""}, err
}
