package cli

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/tidemark-backup/tidemark/replay"
)

// confirm asks whether to do what the plan shows. Without a terminal to ask on it refuses.
func (f *restoreFlags) confirm(cmd *cobra.Command, plan *replay.Plan) error {
	if f.yes {
		return nil
	}
	in, ok := cmd.InOrStdin().(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) || f.output == "json" {
		return usage("nothing was written: there is nobody to ask; read the plan with --dry-run, then say --yes")
	}
	question := fmt.Sprintf("Write %d objects", plan.Writes())
	if n := plan.Count(replay.ActionDelete) + plan.Count(replay.ActionRecreate); n > 0 {
		question = fmt.Sprintf("Write %d objects, deleting %d", plan.Writes(), n)
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "\n%s? [y/N] ", question)
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
