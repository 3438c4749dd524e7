package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/tidemark-backup/tidemark/replay"
)

// restoreReport tells about a restore, for people as it goes and for programs at its end.
type restoreReport struct {
	cmd   *cobra.Command
	flags *applyFlags
	plan  *replay.Plan
	done  map[replay.Action]int // objects written so far
	// describe is the command that tells all; empty when nothing was recorded.
	describe string
	file     *os.File // that was asked for; nil: it is not open
}

// structured reports whether a program reads what is printed.
func (r *restoreReport) structured() bool { return r.flags.output != "" }

func (r *restoreReport) showPlan() error {
	if r.structured() {
		return nil
	}
	return r.plan.WriteText(r.cmd.OutOrStdout(), r.flags.detail())
}

func (r *restoreReport) encode(result *replay.Result, undo, resume string) error {
	return r.print(r.outcome(result, undo, resume))
}

func (r *restoreReport) outcome(result *replay.Result, undo, resume string) any {
	return struct {
		Plan   *replay.Plan   `json:"plan"`
		Result *replay.Result `json:"result,omitempty"`
		Undo   string         `json:"undo,omitempty"`   // the command that takes it back
		Resume string         `json:"resume,omitempty"` // the command that goes on, when it was stopped or failed in part
	}{r.plan, result, undo, resume}
}

// print writes for programs, as JSON or YAML.
func (r *restoreReport) print(v any) error {
	if r.flags.output == "yaml" {
		b, err := yaml.Marshal(v)
		if err != nil {
			return err
		}
		_, err = r.cmd.OutOrStdout().Write(b)
		return err
	}
	return writeJSON(r.cmd.OutOrStdout(), v)
}

// open opens the result file that was asked for, so that one that cannot be written is told before anything is restored. What it holds stays until
// there is a result.
func (r *restoreReport) open() (err error) {
	if r.flags.resultFile == "" || r.file != nil {
		return nil
	}
	r.file, err = os.OpenFile(r.flags.resultFile, os.O_CREATE|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return usage("--result-file: %v; nothing was written: name a file that can be", err)
	}
	if err != nil {
		return fmt.Errorf("--result-file: %w; nothing was written", err)
	}
	return nil
}

// keep writes the result file that was asked for.
func (r *restoreReport) keep(result *replay.Result, undo, resume string) error {
	if err := r.open(); err != nil || r.file == nil {
		return err
	}
	f := r.file
	r.file = nil
	info, err := f.Stat()
	if err == nil && info.Mode().IsRegular() { // a pipe has nothing to forget
		err = f.Truncate(0)
	}
	if err == nil {
		err = writeJSON(f, r.outcome(result, undo, resume))
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("--result-file: %w", err)
	}
	return nil
}

func (r *restoreReport) dryRun() error {
	if r.structured() {
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
	if r.structured() {
		if err := r.print(struct {
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
	if r.structured() {
		if err := r.encode(nil, "", ""); err != nil {
			return err
		}
	}
	if err := r.keep(nil, "", ""); err != nil {
		return err
	}
	if n := r.plan.Count(replay.ActionFail); n > 0 {
		return failure(ErrPartly, "nothing was written: %s cannot be restored, the plan says why", count(n, "object"))
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
	if r.structured() {
		if err := r.encode(result, undo, resume); err != nil {
			return err
		}
	} else if result != nil {
		r.summary(result, undo, resume)
	}
	if err := r.keep(result, undo, resume); err != nil && failed == nil {
		return err
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

// mostTold is how many failures the summary names: it is to fit a screen.
const mostTold = 12

// more says where the rest is told.
func (r *restoreReport) more() string {
	if r.describe == "" {
		return "; -o json tells all"
	}
	return ": " + r.describe
}

func (r *restoreReport) summary(result *replay.Result, undo, resume string) {
	out := r.cmd.OutOrStdout()
	tell := func(how string, list []replay.ItemError) {
		for i := range list {
			if i == mostTold && len(list) > mostTold+1 {
				fmt.Fprintf(out, "%s: %d more%s\n", how, len(list)-i, r.more())
				return
			}
			fmt.Fprintf(out, "%s: %v\n", how, &list[i])
		}
	}
	tell("failed", result.Errors)
	tell("left alone", result.Left)
	words := []string{fmt.Sprintf("%d created", r.done[replay.ActionCreate])}
	for _, a := range []struct {
		n    int
		what string
	}{
		{r.done[replay.ActionUpdate], "updated"},
		{r.done[replay.ActionRecreate], "recreated"},
		{r.done[replay.ActionDelete], "deleted"},
		{r.done[replay.ActionFill], "filled"},
		{r.done[replay.ActionStart], "started"},
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
