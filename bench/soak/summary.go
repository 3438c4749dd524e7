package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tidemark-backup/tidemark/bench/soak/checker"
)

// group waits for several goroutines.
type group struct{ sync.WaitGroup }

func (g *group) run(f func()) { g.Go(f) }

// progress says twice a minute how far it is.
func (s *session) progress(ctx context.Context, out io.Writer) {
	for {
		hold(ctx, 30*time.Second)
		if ctx.Err() != nil {
			return
		}
		n, _ := s.breaker.quiet()
		c := s.told.Load()
		if c == nil {
			c = &counts{}
		}
		fmt.Fprintf(out, "%6s  %d changes seen, %d faults, %d moments, %d restores, no difference\n", time.Since(s.began).Round(time.Second), s.model.Events(), n, c.Moments, c.Restores)
	}
}

// summary tells what was done and found.
func (s *session) summary(out io.Writer, err error) {
	c := &s.counts
	took := time.Since(s.began).Round(time.Second)
	fmt.Fprintf(out, "\nSoak of %s\n", took)
	fmt.Fprintf(out, "  cluster      %d steps of churn (%d refused), %d changes seen by the checker, up to rv:%d\n", s.churned, s.refused, s.model.Events(), s.newest())
	fmt.Fprintf(out, "  faults       %s\n", listed(s.breaker.counts))
	if left := s.leftOut(); len(left) > 0 {
		fmt.Fprintf(out, "  left out     %s\n", strings.Join(left, ", "))
	}
	fmt.Fprintf(out, "  store errors %s\n", listed(s.proxy.failures()))
	fmt.Fprintf(out, "  daemon       %d starts\n", s.starts)
	fmt.Fprintf(out, "  moments      %d compared with the daemon, %d with the archive, %d once more with the archive; %d objects byte for byte, %d with the checker's own watches\n", c.Daemon.Moments, c.Archive.Moments, c.Again, c.Objects, c.ModelObjects)
	fmt.Fprintf(out, "               %d times a resource's moment lay in a gap (%d asked about, all flagged); %d not recorded yet; %d moments trimmed before they were asked about\n", c.InGap, c.Warned, c.Skipped, c.TooOld)
	fmt.Fprintf(out, "  histories    %d compared with the daemon, %d with the archive: %d and %d versions found, %d in gaps of the ledger; the objects at %d of them\n", c.Daemon.Histories, c.Archive.Histories, c.Daemon.Versions, c.Archive.Versions, c.Missed, c.Bodies)
	fmt.Fprintf(out, "  restores     %d compared, %d objects; %d disturbed by a fault\n", c.Restores, c.RestoredObjects, c.RestoresDisturbed)
	fmt.Fprintf(out, "  archive      %d manifests, %d files, %d events, followed from hash to hash\n", c.Manifests, c.Files, c.Events)
	fmt.Fprintf(out, "  gaps         %d made on purpose, %d in the ledger; %d of single resources in the ledgers have a reason\n", c.Gaps, c.Ledgered, c.Reasoned)
	fmt.Fprintf(out, "  differences  %s\n", verdict(err))
}

// verdict tells a difference from what else may end a run.
func verdict(err error) string {
	if err == nil {
		return "0"
	}
	if _, ok := errors.AsType[*checker.Difference](err); ok {
		return "1"
	}
	if errors.Is(err, context.Canceled) {
		return "0, but it was interrupted"
	}
	first, _, _ := strings.Cut(err.Error(), "\n")
	return "0, but it failed: " + first
}

func (s *session) newest() uint64 {
	if len(s.times) == 0 {
		return 0
	}
	return s.times[len(s.times)-1].rv
}

func listed(m map[string]int) string {
	var all []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		all = append(all, fmt.Sprintf("%s %d", k, m[k]))
	}
	if len(all) == 0 {
		return "none"
	}
	return strings.Join(all, ", ")
}
