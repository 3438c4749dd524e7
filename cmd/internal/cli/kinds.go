package cli

import (
	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/replay"
)

// kinds are the recorded resources, with what main needs to know of a name that none has.
type kinds struct{ *replay.Kinds }

func newKinds(c *replay.Catalog) *kinds { return &kinds{replay.NewKinds(c)} }

func (k *kinds) find(name string) ([]*journal.Ledger, error) {
	ledgers, err := k.Find(name)
	if err != nil {
		return nil, failure(ErrNotInHistory, "%v", err)
	}
	return ledgers, nil
}
