package cli

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/tidemark-backup/tidemark/replay"
)

func newRestores() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "restores",
		GroupID: "change",
		Short:   "See, go on with and forget the restores made from this machine",
		Long: `See, go on with and forget the restores made from this machine.

Each restore and undo is recorded here with its plan, what was live before, and what became of
each object. The records hold objects as they were, Secrets as well, and are for you only;
'restores remove' forgets one, and it can be undone no more.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newRestoresList(), newRestoresDescribe(), newRestoresResume(), newRestoresRemove())
	return cmd
}

func newRestoresList() *cobra.Command {
	var f applyFlags
	cmd := &cobra.Command{
		Use: "list", Short: "List the restores, the newest first", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			records, err := f.mustRecords()
			if err != nil {
				return err
			}
			all, err := records.List()
			if err != nil {
				return err
			}
			if f.output == "json" {
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetIndent("", "  ")
				return enc.Encode(all)
			}
			if len(all) == 0 {
				fmt.Fprintf(cmd.ErrOrStderr(), "No restores are recorded in %s.\n", records.Dir())
				return nil
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 6, 4, 3, ' ', 0)
			fmt.Fprintln(w, "ID\tMADE\tOBJECTS\tSTATE\tWHAT\tCLUSTER")
			for _, r := range all {
				if r.Err != "" {
					fmt.Fprintf(w, "%s\t-\t-\tunreadable\t%s\t-\n", r.ID, text(r.Err))
					continue
				}
				what := r.Purpose
				if what == "" {
					what = "state at " + stamp(r.Cut.Time)
				}
				fmt.Fprintf(w, "%s\t%s ago\t%d of %d\t%s\t%s\t%s\n", r.ID, ago(time.Since(r.Made)), r.Items.Done, r.Items.Total, recordState(r.Items, r.Ended), what, r.Server)
			}
			return w.Flush()
		},
	}
	f.addRecords(cmd)
	cmd.Flags().StringVarP(&f.output, "output", "o", "", "json (default: a table)")
	return cmd
}

// recordState says in a word or two how a restore ended.
func recordState(n replay.RecordProgress, ended time.Time) string {
	switch {
	case ended.IsZero():
		return "cut off"
	case n.Failed > 0:
		return fmt.Sprintf("%d failed", n.Failed)
	}
	return "done"
}

func newRestoresDescribe() *cobra.Command {
	var f applyFlags
	cmd := &cobra.Command{
		Use: "describe ID", Short: "Show a restore's plan and what became of each object", Args: someArgs(1, 1, "the ID of a restore"),
		Aliases: []string{"logs"},
		RunE: func(cmd *cobra.Command, args []string) error {
			rec, err := f.openRecord(args[0], false)
			if err != nil {
				return err
			}
			if f.output == "json" {
				return describeJSON(cmd, rec)
			}
			if err := rec.Plan.WriteText(cmd.OutOrStdout(), f.detail()); err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			n := rec.Progress()
			fmt.Fprintf(out, "\nmade %s, %s: %d of %d done", stamp(rec.Plan.Made), recordState(n, rec.Ended), n.Done, n.Total)
			for _, c := range []struct {
				n    int
				what string
			}{{n.Failed, "failed"}, {n.Left, "left alone"}, {n.Unsure, "cut off in the middle"}, {n.Pending, "not begun"}} {
				if c.n > 0 {
					fmt.Fprintf(out, ", %d %s", c.n, c.what)
				}
			}
			fmt.Fprintln(out)
			rec.Each(func(it *replay.Item, state, why string) {
				switch {
				case state == "done" && !f.verbose:
				case state == "":
					fmt.Fprintf(out, "  not begun: %s %s\n", it.Action, it)
				case why != "":
					fmt.Fprintf(out, "  %s: %s %s: %s\n", stateNames[state], it.Action, it, text(why))
				default:
					fmt.Fprintf(out, "  %s: %s %s\n", stateNames[state], it.Action, it)
				}
			})
			rec.EachHook(func(h *replay.Hooked, state, why string) {
				switch {
				case state == "":
					fmt.Fprintf(out, "  not run: the hook of %s\n", h)
				case why != "":
					fmt.Fprintf(out, "  %s: the hook of %s: %s\n", stateNames[state], h, text(why))
				default:
					fmt.Fprintf(out, "  %s: the hook of %s\n", stateNames[state], h)
				}
			})
			return nil
		},
	}
	f.addRecords(cmd)
	cmd.Flags().BoolVarP(&f.verbose, "verbose", "v", false, "name every object, and show what differed")
	cmd.Flags().StringVarP(&f.output, "output", "o", "", "json (default: for people)")
	return cmd
}

var stateNames = map[string]string{"done": "done", "left": "left alone", "failed": "failed", "begin": "cut off in the middle"}

func describeJSON(cmd *cobra.Command, rec *replay.Record) error {
	type object struct {
		Object string `json:"object"`
		Action string `json:"action"`
		State  string `json:"state"`
		Why    string `json:"why,omitempty"`
	}
	objects := []object{}
	rec.Each(func(it *replay.Item, state, why string) {
		name := stateNames[state]
		if name == "" {
			name = "not begun"
		}
		objects = append(objects, object{it.String(), string(it.Action), name, why})
	})
	hooks := []object{}
	rec.EachHook(func(h *replay.Hooked, state, why string) {
		hooks = append(hooks, object{h.String(), "hook", cmp.Or(stateNames[state], "not run"), why})
	})
	enc := json.NewEncoder(cmd.OutOrStdout())
	enc.SetIndent("", "  ")
	return enc.Encode(struct {
		ID       string                `json:"id"`
		Plan     *replay.Plan          `json:"plan"`
		Progress replay.RecordProgress `json:"progress"`
		Ended    time.Time             `json:"ended,omitzero"`
		Objects  []object              `json:"objects"`
		Hooks    []object              `json:"hooks,omitempty"`
	}{rec.ID, rec.Plan, rec.Progress(), rec.Ended, objects, hooks})
}

// openRecord opens one record of this person.
func (f *applyFlags) openRecord(id string, write bool) (*replay.Record, error) {
	records, err := f.mustRecords()
	if err != nil {
		return nil, err
	}
	rec, err := records.Open(id, write)
	switch {
	case errors.Is(err, replay.ErrNoRecord):
		return nil, failure(ErrNotInHistory, "%v", err)
	case errors.Is(err, replay.ErrRunning):
		return nil, usage("%v: wait for it, or end it first", err)
	}
	return rec, err
}

func newRestoresResume() *cobra.Command {
	var f applyFlags
	var kube kubeFlags
	var server serverFlags
	var volumes volumeFlags
	cmd := &cobra.Command{
		Use: "resume ID", Short: "Go on with a restore that was stopped, killed or failed in part", Args: someArgs(1, 1, "the ID of a restore"),
		Long: `Go on with a restore that was stopped, killed or failed in part.

It does the rest of the same plan. What is done is not done again; what failed is tried again, hooks too;
an object that somebody has changed since the plan was made is left alone and told.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.check(); err != nil {
				return err
			}
			rec, err := f.openRecord(args[0], true)
			if err != nil {
				return err
			}
			defer rec.Close()
			target, err := newTarget(&kube)
			if err != nil {
				return err
			}
			if err := rec.Plan.SameCluster(cmd.Context(), target); err != nil {
				return usage("%v", err)
			}
			if n := rec.Progress(); n.Done+n.Left == n.Total && len(rec.HooksOwed()) == 0 {
				fmt.Fprintln(cmd.ErrOrStderr(), "Nothing to do: it was completed.")
				return nil
			}
			e := &execution{cmd: cmd, flags: &f, kube: &kube, plan: rec.Plan, target: target, record: rec, server: &server, volumes: &volumes}
			return e.run()
		},
	}
	kube.add(cmd)
	f.add(cmd)
	server.add(cmd)
	volumes.mover.add(cmd.Flags())
	return cmd
}

func newRestoresRemove() *cobra.Command {
	var f applyFlags
	var olderThan string
	cmd := &cobra.Command{
		Use: "remove ID... | remove --older-than AGE", Short: "Forget restores: they can be undone no more",
		Long: `Forget restores: they can be undone no more.

--older-than 30d forgets all that ended longer ago than that; what was cut off stays, to be gone on
with or to be forgotten by its ID.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			records, err := f.mustRecords()
			if err != nil {
				return err
			}
			if (len(args) == 0) == (olderThan == "") {
				return usage("name the IDs of restores, or say --older-than, such as 30d")
			}
			if olderThan != "" {
				if args, err = endedBefore(records, olderThan); err != nil {
					return err
				}
				fmt.Fprintf(cmd.ErrOrStderr(), "Forgetting %d restores.\n", len(args))
			}
			for _, id := range args {
				switch err := records.Remove(id); {
				case errors.Is(err, replay.ErrNoRecord):
					return failure(ErrNotInHistory, "%v", err)
				case err != nil:
					return err
				}
			}
			return nil
		},
	}
	f.addRecords(cmd)
	cmd.Flags().StringVar(&olderThan, "older-than", "", "forget all that ended longer ago than this, such as 30d or 12h")
	return cmd
}

// endedBefore are the records that ended longer ago than a duration such as 30d.
func endedBefore(records *replay.Records, age string) (ids []string, err error) {
	at, err := replay.ParseAt(age)
	if err != nil || at.Ago <= 0 {
		return nil, usage("--older-than %q: want a duration, such as 30d or 12h", age)
	}
	all, err := records.List()
	for _, r := range all {
		if !r.Ended.IsZero() && time.Since(r.Ended) > at.Ago {
			ids = append(ids, r.ID)
		}
	}
	return ids, err
}
