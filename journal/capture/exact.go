package capture

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/tidwall/gjson"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/journal"
)

var (
	// ErrExpired is returned when the server no longer has the revision that was asked for.
	ErrExpired = errors.New("the API server no longer has that revision")
	// ErrNotExact is returned when the server answered for another revision than it was asked for.
	ErrNotExact = errors.New("the API server does not answer for an exact revision")
	// ErrNotWatched is returned for a resource that is not being watched right now.
	ErrNotWatched = errors.New("it is not being watched")
)

// AuditAgent is the user agent of the requests that compare the history with the cluster. By it they can be told from those that capture: in the API
// server's audit log, for one.
const AuditAgent = "tidemark-audit"

// Exact asks what of a resource's recorded objects there was at exactly one revision.
type Exact struct {
	Resource        schema.GroupResource
	Revision        uint64
	Namespace, Name string // of one object; Name empty: all
	Limit           int64  // objects per page; 0: no limit
	Continue        string // of the page before; empty: the first page
}

// ExactPage is what a page says besides its objects.
type ExactPage struct {
	Next  string // continues the list; empty: this was the last page
	Bytes int64  // what the answer's body had, uncompressed
}

// ListExact requests a page of the objects that a watched resource had at exactly one revision, and
// calls item with each that is to be recorded, in the bytes that a watch would give it. What
// item was told counts only when there is no error.
func (c *Capture) ListExact(ctx context.Context, q Exact, item func(journal.Event) error) (p ExactPage, err error) {
	c.mu.Lock()
	r := c.running[q.Resource]
	c.mu.Unlock()
	if r == nil {
		return p, ErrNotWatched
	}
	r.mu.Lock()
	state, why := r.state, r.err
	r.mu.Unlock()
	if state != StateWatching {
		return p, fmt.Errorf("%w: %s %s", ErrNotWatched, state, why)
	}
	path := r.path
	o := metav1.ListOptions{Limit: q.Limit, Continue: q.Continue, LabelSelector: c.opts.Selector}
	if q.Continue == "" { // a continued list has its revision in the token
		o.ResourceVersion, o.ResourceVersionMatch = strconv.FormatUint(q.Revision, 10), metav1.ResourceVersionMatchExact
	}
	if q.Name != "" {
		path, o.FieldSelector = collectionPath(r.info, q.Namespace), "metadata.name="+q.Name
	}
	body, err := c.client.Get().AbsPath(path).SpecificallyVersionedParams(&o, metav1.ParameterCodec, metav1Version).
		SetHeader("Accept", "application/json").SetHeader("User-Agent", AuditAgent).Stream(ctx)
	if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
		return p, ErrExpired
	}
	if err != nil {
		return p, plain(err)
	}
	defer body.Close()
	read := &counter{r: body}
	list, err := readList(read, r.typeName(), func(raw []byte) error {
		obj, err := scanObject(raw)
		if err == nil && obj.name == "" {
			err = errMetadata
		}
		if err != nil || !r.wants(obj) {
			return err
		}
		return item(r.event(0, obj))
	})
	p.Next, p.Bytes = list.next, read.n
	if err == nil && list.rv != q.Revision {
		err = ErrNotExact
	}
	return p, err
}

// counter counts what is read.
type counter struct {
	r io.Reader
	n int64
}

// Read implements io.Reader.
func (c *counter) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += int64(n)
	return n, err
}

// ServerVersion is what the API server that answers calls itself, such as "v1.36.2".
func (c *Capture) ServerVersion(ctx context.Context) (string, error) {
	body, err := c.client.Get().AbsPath("/version").SetHeader("Accept", "application/json").SetHeader("User-Agent", AuditAgent).Do(ctx).Raw()
	if err != nil {
		return "", plain(err)
	}
	return gjson.GetBytes(body, "gitVersion").String(), nil
}
