package api_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"

	"github.com/tidemark-backup/tidemark/cmd/internal/api"
	"github.com/tidemark-backup/tidemark/volumes"
	"github.com/tidemark-backup/tidemark/volumes/repository"
)

// damagedVolumes have a backup that cannot be restored as a whole.
type damagedVolumes struct{ api.Volumes }

// Restore implements api.Volumes.
func (damagedVolumes) Restore(context.Context, volumes.RestoreRequest, func(repository.Progress)) (repository.Progress, error) {
	return repository.Progress{Files: 3, Lost: 1, LostFirst: []string{"a: rotten"}}, fmt.Errorf("%w: a is damaged", repository.ErrPartly)
}

// What was restored, and what was not, comes with the error.
func TestPartlyRestoredOverTheAPI(t *testing.T) {
	f := &fakeSource{}
	s := api.NewServer(api.ServerOptions{Source: f, Status: f.status, Volumes: damagedVolumes{}})
	at := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", at)
	if err != nil {
		t.Fatal(err)
	}
	srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: s.Handler()}}
	srv.Start()
	defer srv.Close()
	c, err := api.NewClient(api.ClientOptions{Server: "unix://" + at})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	done, err := c.Restore(t.Context(), volumes.RestoreRequest{}, nil)
	if !api.Partly(err) || done.Files != 3 || done.Lost != 1 || len(done.LostFirst) != 1 {
		t.Errorf("%+v, %v", done, err)
	}
}
