package checker

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// errGone is returned when the server no longer knows a revision (410), errMissing when it serves no such thing (404),
// errBusy when it wants to be asked again later (429).
var (
	errGone    = errors.New("the server no longer knows that revision")
	errMissing = errors.New("the server does not serve that")
	errBusy    = errors.New("the server asks for patience")
)

// Client asks one API server.
type Client struct {
	server string
	http   *http.Client
}

// NewClient connects to an API server with a client certificate; all as PEM.
func NewClient(server string, ca, cert, key []byte) (*Client, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, errors.New("no certificate of an authority is given")
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("client certificate: %w", err)
	}
	// HTTP/1.1 on purpose: each watch has a connection of its own, and none waits for another.
	return &Client{server: server, http: &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12},
		TLSNextProto:    map[string]func(string, *tls.Conn) http.RoundTripper{}, MaxIdleConnsPerHost: 8,
		ResponseHeaderTimeout: 30 * time.Second,
	}}}, nil
}

// stream opens an answer. Of an error only the status is told: its text may quote objects.
func (c *Client) stream(ctx context.Context, method, path string, body []byte) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.server+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	switch {
	case resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusCreated || resp.StatusCode == http.StatusAccepted:
		return resp.Body, nil
	case resp.StatusCode == http.StatusGone:
		err = errGone
	case resp.StatusCode == http.StatusNotFound:
		err = errMissing
	case resp.StatusCode == http.StatusTooManyRequests:
		err = fmt.Errorf("%s %s: %w", method, path, errBusy)
	default:
		err = fmt.Errorf("%s %s: %s", method, path, resp.Status)
	}
	_, _ = io.Copy(io.Discard, resp.Body) // so that the connection can be used again
	resp.Body.Close()
	return nil, err
}

// do asks and decodes the answer into out, unless that is nil.
func (c *Client) do(ctx context.Context, method, path string, body []byte, out any) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	r, err := c.stream(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer r.Close()
	if out == nil {
		_, err = io.Copy(io.Discard, r)
		return err
	}
	return json.NewDecoder(r).Decode(out)
}

// Resource is one kind of object that the server lists and watches.
type Resource struct {
	Name       string // "deployments.apps"
	Group      string
	APIVersion string // "apps/v1"
	Kind       string
	Namespaced bool
	path       string // "/apis/apps/v1"
	plural     string
}

// all is the path of the list of all objects.
func (r *Resource) all() string { return r.path + "/" + r.plural }

// in is the path of the list of a namespace.
func (r *Resource) in(namespace string) string {
	return r.path + "/namespaces/" + namespace + "/" + r.plural
}

// Resources are those that can be listed and watched, in each group's preferred version.
func (c *Client) Resources(ctx context.Context) ([]Resource, error) {
	var groups struct {
		Groups []struct {
			Name             string
			PreferredVersion struct{ GroupVersion string }
		}
	}
	if err := c.do(ctx, http.MethodGet, "/apis", nil, &groups); err != nil {
		return nil, err
	}
	versions := map[string]string{"/api/v1": ""}
	order := []string{"/api/v1"}
	for _, g := range groups.Groups {
		path := "/apis/" + g.PreferredVersion.GroupVersion
		versions[path] = g.Name
		order = append(order, path)
	}
	var out []Resource
	for _, path := range order {
		var list struct {
			GroupVersion string
			Resources    []struct {
				Name, Kind string
				Namespaced bool
				Verbs      []string
			}
		}
		if err := c.do(ctx, http.MethodGet, path, nil, &list); errors.Is(err, errMissing) {
			continue // a definition that has just gone
		} else if err != nil {
			return nil, err
		}
		for _, r := range list.Resources {
			if strings.Contains(r.Name, "/") || !slices.Contains(r.Verbs, "list") || !slices.Contains(r.Verbs, "watch") {
				continue
			}
			name := r.Name
			if g := versions[path]; g != "" {
				name += "." + g
			}
			out = append(out, Resource{Name: name, Group: versions[path], APIVersion: list.GroupVersion, Kind: r.Kind, Namespaced: r.Namespaced, path: path, plural: r.Name})
		}
	}
	return out, nil
}

// item is one object as the server sent it.
type item struct {
	key string // namespace/name
	rv  uint64
	raw []byte
}

// header is the little of an object that is needed to tell which it is.
type header struct {
	APIVersion string
	Kind       string
	Metadata   struct{ Namespace, Name, ResourceVersion string }
}

func (h *header) key() string { return h.Metadata.Namespace + "/" + h.Metadata.Name }

func parseItem(raw []byte) (item, *header, error) {
	var h header
	if err := json.Unmarshal(raw, &h); err != nil {
		return item{}, nil, errors.New("an object is no JSON") // the cause would quote it
	}
	rv, err := strconv.ParseUint(h.Metadata.ResourceVersion, 10, 64)
	if err != nil {
		return item{}, nil, fmt.Errorf("object %s has no revision that is a number", h.key())
	}
	return item{key: h.key(), rv: rv, raw: raw}, &h, nil
}

// list reads all of a resource, and the revision of the list. query may ask for an exact one.
func (c *Client) list(ctx context.Context, r *Resource, path, query string) ([]item, uint64, error) {
	var list struct {
		APIVersion string
		Metadata   struct{ ResourceVersion string }
		Items      []json.RawMessage
	}
	if err := c.do(ctx, http.MethodGet, path+query, nil, &list); err != nil {
		return nil, 0, err
	}
	rv, err := strconv.ParseUint(list.Metadata.ResourceVersion, 10, 64)
	if err != nil {
		return nil, 0, fmt.Errorf("list of %s has no revision that is a number", r.Name)
	}
	out := make([]item, 0, len(list.Items))
	for _, raw := range list.Items {
		it, h, err := parseItem(raw)
		if err != nil {
			return nil, 0, err
		}
		if h.Kind == "" { // built-in kinds leave it out inside lists; a watch event has it in front
			it.raw = append(fmt.Appendf(nil, `{"kind":%q,"apiVersion":%q,`, r.Kind, list.APIVersion), bytes.TrimPrefix(raw, []byte("{"))...)
		}
		out = append(out, it)
	}
	return out, rv, nil
}

// Revision is the newest revision of the cluster, by a read that goes to etcd.
func (c *Client) Revision(ctx context.Context) (uint64, error) {
	var list struct {
		Metadata struct{ ResourceVersion string }
	}
	if err := c.do(ctx, http.MethodGet, "/api/v1/namespaces?limit=1", nil, &list); err != nil {
		return 0, err
	}
	return strconv.ParseUint(list.Metadata.ResourceVersion, 10, 64)
}

// ClusterID is what tells clusters apart: the uid of the namespace kube-system.
func (c *Client) ClusterID(ctx context.Context) (string, error) {
	var ns struct{ Metadata struct{ UID string } }
	err := c.do(ctx, http.MethodGet, "/api/v1/namespaces/kube-system", nil, &ns)
	return ns.Metadata.UID, err
}
