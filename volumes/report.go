package volumes

import (
	"sync"

	"github.com/tidemark-backup/tidemark/volumes/repository"
)

// report tells how far a run is.
type report struct {
	mu   sync.Mutex
	tell func(repository.Progress)
	by   map[*task]repository.Progress
}

func newReport(tell func(repository.Progress)) *report {
	return &report{tell: tell, by: map[*task]repository.Progress{}}
}

func (r *report) step(t *task, text string) {
	r.send(t, repository.Progress{Step: t.key() + ": " + text})
}

func (r *report) files(t *task, p repository.Progress) {
	p.Step = t.key()
	r.send(t, p)
}

func (r *report) send(t *task, p repository.Progress) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p.Bytes == 0 && p.Files == 0 {
		p.Files, p.Bytes, p.Cached, p.Read, p.Sent = r.by[t].Files, r.by[t].Bytes, r.by[t].Cached, r.by[t].Read, r.by[t].Sent
	}
	r.by[t] = p
	sum := repository.Progress{Step: p.Step, Waiting: p.Waiting}
	for _, q := range r.by {
		sum.Files, sum.Bytes, sum.Cached, sum.Read, sum.Sent = sum.Files+q.Files, sum.Bytes+q.Bytes, sum.Cached+q.Cached, sum.Read+q.Read, sum.Sent+q.Sent
	}
	if r.tell != nil {
		r.tell(sum)
	}
}
