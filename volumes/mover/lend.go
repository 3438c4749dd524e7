package mover

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"go.uber.org/zap"

	"github.com/tidemark-backup/tidemark/compactor/archive"
)

// lent is how long a right is good for. Who holds one cannot be stopped from using it before it ends, also when the job is over by then: a file
// can be read for so long, or one be created that nothing refers to, which maintenance removes.
const lent = 15 * time.Minute

// wanted is a file that a mover wants to create.
type wanted struct {
	Size       int64     `json:"size"`
	Sum        string    `json:"sum"` // archive.Checksum
	Lock       time.Time `json:"lock,omitzero"`
	Compliance bool      `json:"compliance,omitempty"`
}

// life is how long a right of this job may be good for: not longer than the job. Zero: it gets none.
func (t *Ticket) life() time.Duration {
	life := lent
	if !t.until.IsZero() {
		life = min(life, time.Until(t.until))
	}
	if life < time.Second || t.toDo().Direct == nil {
		return 0
	}
	return life
}

// toDo is the job as it is handed out.
func (t *Ticket) toDo() Job {
	t.mu.Lock()
	defer t.mu.Unlock()
	job := t.job
	if t.lender != nil && !t.through {
		job.Direct = &Direct{Trusted: t.lender.Trusted()}
	}
	return job
}

// serveLendRead lends the right to read a file of the repository. An empty answer means: through the broker.
func serveLendRead(w http.ResponseWriter, r *http.Request, t *Ticket) error {
	name, err := t.file(r.PathValue("name"))
	if err != nil {
		return err
	}
	var p *archive.Presigned
	if life := t.life(); life > 0 {
		p, err = t.lender.PresignRead(r.Context(), name, life)
	}
	return answerLent(w, p, err)
}

// serveLendCreate lends the right to create a file. Those that may be replaced are few and small, and go through the broker.
func serveLendCreate(w http.ResponseWriter, r *http.Request, t *Ticket) error {
	name, err := t.newFile(r.PathValue("name"))
	if err != nil {
		return err
	}
	var f wanted
	if err := json.NewDecoder(io.LimitReader(r.Body, maxMessage)).Decode(&f); err != nil {
		return &badRequest{err}
	}
	if sum, err := base64.StdEncoding.DecodeString(f.Sum); err != nil || len(sum) != 4 {
		return &badRequest{fmt.Errorf("%q is not a checksum", f.Sum)}
	}
	var p *archive.Presigned
	if life := t.life(); life > 0 && !replaceable(name) {
		p, err = t.lender.PresignCreate(r.Context(), name, f.Size, f.Sum, archive.CreateOptions{Lock: f.Lock, Compliance: f.Compliance}, life)
	}
	return answerLent(w, p, err)
}

// answerLent answers with a right, or none. What keeps the store from lending it will be told, with more, by the request that
// the broker makes instead.
func answerLent(w http.ResponseWriter, p *archive.Presigned, err error) error {
	if p == nil || err != nil {
		p = &archive.Presigned{}
	}
	w.Header().Set("Cache-Control", "no-store")
	return json.NewEncoder(w).Encode(p)
}

// serveThrough hears that the mover does not reach the store. For the rest of the job, also in another Pod, everything goes through the broker.
func (b *Broker) serveThrough(_ http.ResponseWriter, r *http.Request, t *Ticket) error {
	var why string
	if err := json.NewDecoder(io.LimitReader(r.Body, maxMessage)).Decode(&why); err != nil {
		return &badRequest{err}
	}
	t.mu.Lock()
	told := t.through
	t.through = true
	t.mu.Unlock()
	if !told {
		b.o.Logger.Warn("a mover does not reach the archive's store, so its content goes through this process: let Pods reach the store, give its certificate as the archive's CA file, or set volumes.throughDaemon",
			zap.String("job", string(t.job.Kind)), zap.String("namespace", t.job.Source.Namespace), zap.String("claim", t.job.Source.Name), zap.String("error", why[:min(len(why), 300)]))
	}
	return nil
}
