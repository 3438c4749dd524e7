package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tidemark-backup/tidemark/replay"
)

// restoreReport tells about a restore, for people as it goes and for programs at its end.
type restoreReport struct {
	cmd           *cobra.Command
	json, verbose bool
	plan          *replay.Plan
	done          map[replay.Action]int // objects written so far
}

func (r *restoreReport) showPlan() error {
	if r.json {
		return nil
	}
	return r.plan.WriteText(r.cmd.OutOrStdout(), r.verbose)
}

func (r *restoreReport) encode(result *replay.Result, undo, resume string) error {
	enc := json.NewEncoder(r.cmd.OutOrStdout())
	enc.SetIndent("", "  ")
	return enc.Encode(struct {
		Plan   *replay.Plan   `json:"plan"`
		Result *replay.Result `json:"result,omitempty"`
		Undo   string         `json:"undo,omitempty"`   // the command that takes it back
		Resume string         `json:"resume,omitempty"` // the command that goes on, when it was stopped or failed in part
	}{r.plan, result, undo, resume})
}

func (r *restoreReport) dryRun() error {
	if r.json {
		return r.encode(nil, "", "")
	}
	fmt.Fprintln(r.cmd.ErrOrStderr(), "Dry run: nothing was written.")
	return nil
}

// rehearsal lets the API server try all writes, and tells what it would refuse.
func (r *restoreReport) rehearsal(ctx context.Context, target *replay.Target) error {
	rejected, tried, untried, err := r.plan.Rehearse(ctx, target)
	if err != nil {
		return fmt.Errorf("--dry-run=server: %w", err)
	}
	if r.json {
		enc := json.NewEncoder(r.cmd.OutOrStdout())
		enc.SetIndent("", "  ")
		if err := enc.Encode(struct {
			Plan     *replay.Plan       `json:"plan"`
			Rejected []replay.Rejection `json:"rejected"`
			Tried    int                `json:"tried"`
			Untried  int                `json:"untried"`
		}{r.plan, rejected, tried, untried}); err != nil {
			return err
		}
	} else {
		for i := range rejected {
			fmt.Fprintf(r.cmd.OutOrStdout(), "refused: %s %s: %s\n", rejected[i].Item.Action, rejected[i].Item, rejected[i].Why)
		}
		fmt.Fprintf(r.cmd.ErrOrStderr(), "Dry run on the server: nothing was written; of %d writes it would refuse %d", tried, len(rejected))
		if untried > 0 {
			fmt.Fprintf(r.cmd.ErrOrStderr(), "; %d could not be tried, because their namespace or definition is not there yet", untried)
		}
		fmt.Fprintln(r.cmd.ErrOrStderr(), ".")
	}
	if len(rejected) > 0 || r.plan.Count(replay.ActionFail) > 0 {
		return failure(ErrPartly, "%d of the plan's objects would fail", len(rejected)+r.plan.Count(replay.ActionFail))
	}
	return nil
}

func (r *restoreReport) nothingToDo() error {
	if r.json {
		if err := r.encode(nil, "", ""); err != nil {
			return err
		}
	}
	if n := r.plan.Count(replay.ActionFail); n > 0 {
		return failure(ErrPartly, "nothing was written: %d objects cannot be restored, the plan says why", n)
	}
	fmt.Fprintln(r.cmd.ErrOrStderr(), "Nothing to do.")
	return nil
}

// count is told of every object that Apply is done with.
func (r *restoreReport) count(at replay.Progress) {
	if at.Item != nil && at.Err == nil {
		r.done[at.Item.Action]++
	}
}

// applied reports the end, and the commands that undo it and that go on with it, if it was recorded.
// An interrupted restore counts as partly done.
func (r *restoreReport) applied(result *replay.Result, failed error, undo, resume string) error {
	if result != nil && result.Done == 0 && r.plan.Count(replay.ActionRecreate) == 0 {
		undo = "" // nothing was written
	}
	if failed == nil {
		resume = ""
	}
	if r.json {
		if err := r.encode(result, undo, resume); err != nil {
			return err
		}
	} else if result != nil {
		r.summary(result, undo, resume)
	}
	switch {
	case failed == nil:
		return nil
	case errors.Is(failed, replay.ErrPartly), errors.Is(failed, replay.ErrStopped), r.cmd.Context().Err() != nil:
		if resume == "" {
			return failure(ErrPartly, "%v; run the same command again to continue", failed)
		}
		return failure(ErrPartly, "%v", failed)
	}
	return failed
}

func (r *restoreReport) summary(result *replay.Result, undo, resume string) {
	out := r.cmd.OutOrStdout()
	for i := range result.Errors {
		fmt.Fprintf(out, "failed: %v\n", &result.Errors[i])
	}
	words := []string{fmt.Sprintf("%d created", r.done[replay.ActionCreate])}
	for _, a := range []struct {
		n    int
		what string
	}{
		{r.done[replay.ActionUpdate], "updated"},
		{r.done[replay.ActionRecreate], "recreated"},
		{r.done[replay.ActionDelete], "deleted"},
		{result.Unchanged, "unchanged"},
		{result.Skipped, "left out"},
	} {
		if a.n > 0 {
			words = append(words, fmt.Sprintf("%d %s", a.n, a.what))
		}
	}
	fmt.Fprintf(out, "\n%s, %d failed\n", strings.Join(words, ", "), result.Failed)
	if resume != "" {
		fmt.Fprintf(out, "to go on: %s\n", resume)
	}
	if undo != "" {
		fmt.Fprintf(out, "to undo: %s\n", undo)
	}
}
