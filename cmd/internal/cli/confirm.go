package cli

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/tidemark-backup/tidemark/replay"
)

// confirm asks whether to do what the plan shows. Without a terminal to ask on it refuses.
func (f *applyFlags) confirm(cmd *cobra.Command, plan *replay.Plan) error {
	if f.yes {
		return nil
	}
	if f.output != "" {
		return errNobody
	}
	err := confirm(cmd, "\n"+question(plan)+"?")
	if errors.Is(err, errNoTerminal) {
		return errNobody
	}
	return err
}

var (
	// errNobody is returned when there is nobody to ask about a plan.
	errNobody = usage("nothing was written: there is nobody to ask; read the plan with --dry-run, then say --yes")
	// errNoTerminal is returned when there is nobody to ask.
	errNoTerminal = usage("nothing was done: there is nobody to ask; say --yes")
)

// confirm asks on a terminal whether to go on.
func confirm(cmd *cobra.Command, question string) error {
	in, ok := cmd.InOrStdin().(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return errNoTerminal
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%s [y/N] ", question)
	answer := make(chan string, 1)
	go func() { // reading a terminal cannot be interrupted; the process ends soon after
		line, _ := bufio.NewReader(in).ReadString('\n')
		answer <- strings.ToLower(strings.TrimSpace(line))
	}()
	select {
	case a := <-answer:
		if a == "y" || a == "yes" {
			return nil
		}
	case <-cmd.Context().Done():
		fmt.Fprintln(cmd.ErrOrStderr())
	}
	return usage("nothing was written: the answer was not yes")
}

// question says what would be done: "Create 45, update 2 and delete 1 objects".
func question(plan *replay.Plan) string {
	var parts []string
	for _, a := range []replay.Action{replay.ActionCreate, replay.ActionUpdate, replay.ActionRecreate, replay.ActionDelete, replay.ActionFill, replay.ActionStart} {
		if n := plan.Count(a); n > 0 {
			parts = append(parts, fmt.Sprintf("%s %d", a, n))
		}
	}
	text := parts[0]
	if last := len(parts) - 1; last > 0 {
		text = strings.Join(parts[:last], ", ") + " and " + parts[last]
	}
	objects := "objects"
	if plan.Writes() == 1 {
		objects = "object"
	}
	return strings.ToUpper(text[:1]) + text[1:] + " " + objects
}
