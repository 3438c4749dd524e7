package daemon

import (
	"context"
	"path"
	"slices"

	"github.com/tidemark-backup/tidemark/cmd/internal/api"
	"github.com/tidemark-backup/tidemark/journal/capture"
)

// status gathers what the parts say about themselves.
func (d *daemon) status(ctx context.Context, totals bool) (*api.Status, error) {
	cat, err := d.source.Ledgers(ctx)
	if err != nil {
		return nil, err
	}
	s := &api.Status{
		Version: d.o.Version, Started: d.started.UTC(), Now: d.o.Clock().UTC(), Condition: d.journal.Condition(), Catalog: *cat,
	}
	if totals {
		if s.Totals, err = d.journal.Totals(); err != nil {
			return nil, err
		}
	}
	for _, sh := range d.shippers {
		s.Archives = append(s.Archives, sh.Status())
	}
	s.Warnings = append(d.keyWarnings(), d.volumeWarnings()...)
	if s.Volumes, err = d.volumeStatus(ctx); err != nil {
		return nil, err
	}
	if d.audit != nil {
		s.Audit = d.audit.Report()
	}
	c := d.capture.Status()
	s.Capture = api.CaptureStatus{Connected: c.Connected, Error: c.Error, Server: d.server, LeftOut: c.LeftOut}
	for _, r := range c.Resources {
		s.Capture.Resources = append(s.Capture.Resources, api.ResourceStatus{
			Resource: r.Resource.String(), State: string(r.State), Error: r.Error, Since: r.Since.UTC(),
		})
	}
	if c.Connected && len(c.Resources)+len(c.LeftOut) > 0 {
		s.Capture.Unmatched = unmatched(d.o.Include, c.Resources)
	}
	return s, nil
}

// unmatched are the patterns that match no resource that is being recorded.
func unmatched(patterns []string, recorded []capture.ResourceStatus) []string {
	var out []string
	for _, p := range patterns {
		if !slices.ContainsFunc(recorded, func(r capture.ResourceStatus) bool {
			ok, err := path.Match(p, r.Resource.String())
			return ok && err == nil
		}) {
			out = append(out, p)
		}
	}
	return out
}
