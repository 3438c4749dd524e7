package cli

import (
	"io"
	"strings"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/tidemark-backup/tidemark/cmd/internal/daemon"
)

// Env is what a command line runs in.
type Env struct {
	In       io.Reader
	Out, Err io.Writer
	// Name is the name the program was called by, without its directory.
	Name string
	// Version is the program's version.
	Version string
}

const rootLong = `Tidemark records every change of every object in a Kubernetes cluster as it happens, and puts
any object or namespace back to any moment in the recorded past.

Something was deleted?      tidemark undelete ns/shop  (or deploy/web -n shop)
Something was changed?      tidemark log deploy/web -n shop --since 1h
How was it then?            tidemark get all -n shop --at 15m
What would change?          tidemark diff -n shop --at 15m
Put it back:                tidemark restore -n shop --at 15m
Take a restore back:        tidemark undo ID
What can be asked for?      tidemark status
The machine is gone?        tidemark recover --archive s3://backups/prod --identity key.txt --data-dir DIR

A moment (--at) is a time (2026-11-22T10:30:00Z), a duration (15m: ago), a revision
(rv:123456), the name of a mark, before:restore/ID, or now.`

// New makes the root command.
func New(env Env) *cobra.Command {
	root := &cobra.Command{
		Use:           "tidemark",
		Short:         "Continuous backup for Kubernetes: any object, at any moment",
		Long:          rootLong,
		SilenceErrors: true, // main prints them
		SilenceUsage:  true,
		Version:       env.Version,
		Args:          cobra.ArbitraryArgs,

		SuggestionsMinimumDistance: 2,
	}
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		daemon.BridgeKlog(zap.NewNop()) // errors are returned; what client-go says besides is noise. run has a logger of its own
		return onlyJSON(cmd)
	}
	root.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		return unknownCommand(cmd, args[0])
	}
	if env.Name == "kubectl-tidemark" {
		root.Annotations = map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl tidemark"}
	}
	root.SetIn(env.In)
	root.SetOut(env.Out)
	root.SetErr(env.Err)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		if cmd.HasSubCommands() && cmd.Flags().NArg() > 0 { // the flag is that of a command which is not there
			return unknownCommand(cmd, cmd.Flags().Arg(0))
		}
		return usage("%v: see '%s --help'", err, cmd.CommandPath())
	})
	root.SetVersionTemplate("tidemark {{.Version}}\n")
	root.AddGroup(
		&cobra.Group{ID: "look", Title: "Looking at history:"},
		&cobra.Group{ID: "change", Title: "Putting things back:"},
		&cobra.Group{ID: "operate", Title: "Running Tidemark:"},
	)
	root.SetHelpCommand(newHelp(root))
	root.SetCompletionCommandGroupID("operate")
	root.AddCommand(
		newStatus(), newLog(), newGet(), newDiff(),
		newRestore(), newUndelete(), newUndo(), newRestores(), newMark(),
		newRun(env), newSnapshot(), newVolumes(), newMover(), newRetain(), newVerify(), newRepair(), newRecover(), newKey(), newConfig(env), newVersion(env),
		&cobra.Command{Use: "exit-codes", Args: noArgs, Short: "The exit codes of all commands", Long: exitCodes},
	)
	return root
}

// newHelp is cobra's own help command, but a command that is not there is an error.
func newHelp(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:     "help [COMMAND]",
		GroupID: "operate",
		Short:   "Help about any command",
		RunE: func(_ *cobra.Command, args []string) error {
			cmd, rest, err := root.Find(args)
			if err != nil || cmd == nil || len(rest) > 0 {
				return usage("there is no command %q: see '%s --help'", strings.Join(args, " "), root.CommandPath())
			}
			cmd.InitDefaultHelpFlag()
			return cmd.Help()
		},
	}
}

// unknownCommand tells of a command that is not there.
func unknownCommand(cmd *cobra.Command, name string) error {
	if cmd.SuggestionsMinimumDistance == 0 {
		cmd.SuggestionsMinimumDistance = 2
	}
	if near := cmd.SuggestionsFor(name); len(near) > 0 {
		return usage("there is no command %q: did you mean \"%s\"? See '%s --help'", name, strings.Join(near, `" or "`), cmd.CommandPath())
	}
	return usage("there is no command %q: see '%s --help'", name, cmd.CommandPath())
}

// onlyJSON refuses formats that a command does not have, of those whose help says that JSON is the only one.
func onlyJSON(cmd *cobra.Command) error {
	f := cmd.Flags().Lookup("output")
	if f != nil && strings.HasPrefix(f.Usage, "json (default") && f.Value.String() != "" && f.Value.String() != "json" {
		return usage("-o %s: want json", f.Value)
	}
	return nil
}

// noArgs refuses arguments.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 && cmd.HasSubCommands() {
		return unknownCommand(cmd, args[0])
	}
	if len(args) > 0 {
		return usage("%s takes no arguments, and got %q: see '%s --help'", cmd.Name(), args[0], cmd.CommandPath())
	}
	return nil
}

// someArgs wants from least to most arguments; no most: any number.
func someArgs(least, most int, want string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < least || most > 0 && len(args) > most {
			return usage("%s wants %s: see '%s --help'", cmd.Name(), want, cmd.CommandPath())
		}
		return nil
	}
}
