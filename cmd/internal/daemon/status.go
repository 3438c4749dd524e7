package daemon

import (
	"context"

	"github.com/tidemark-backup/tidemark/cmd/internal/api"
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
	c := d.capture.Status()
	s.Capture = api.CaptureStatus{Connected: c.Connected, Error: c.Error, Server: d.server, LeftOut: c.LeftOut}
	for _, r := range c.Resources {
		s.Capture.Resources = append(s.Capture.Resources, api.ResourceStatus{
			Resource: r.Resource.String(), State: string(r.State), Error: r.Error, Since: r.Since.UTC(),
		})
	}
	return s, nil
}
