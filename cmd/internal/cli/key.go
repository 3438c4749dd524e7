package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tidemark-backup/tidemark/cmd/internal/daemon"
	"github.com/tidemark-backup/tidemark/compactor"
	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/journal/durable"
	"github.com/tidemark-backup/tidemark/volumes/repository"
)

func newKey() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "key",
		GroupID: "operate",
		Short:   "Keys of archives: make, show and rotate them",
		Long: `Keys of archives. Archives are encrypted with age (age-encryption.org): with recipients, which may be
known to all and are all that the daemon needs, and read with an identity, which is the secret.

The identity file belongs apart from the cluster: whoever has it can read every backup made for it,
and whoever loses it has lost them all. Keys in a KMS, on a YubiKey and the like are used through
age's plug-ins: give their recipient (age1NAME1...) and their identity file (AGE-PLUGIN-NAME-1...).`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newKeyGenerate(), newKeyShow(), newKeySaved(), newKeyRotate())
	return cmd
}

func newKeyGenerate() *cobra.Command {
	var out string
	var pq bool
	cmd := &cobra.Command{
		Use:     "generate -o FILE",
		Short:   "Make a new key",
		Example: "  tidemark key generate -o tidemark-key.txt",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if out == "" {
				return usage("say where to with -o FILE")
			}
			recipient, err := archive.GenerateIdentity(out, pq, time.Now())
			if errors.Is(err, archive.ErrKey) {
				return usage("%v", err)
			}
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), recipient)
			fmt.Fprintf(cmd.ErrOrStderr(), `The identity is in %s. Keep it apart from the cluster, in two places: whoever loses it loses every
backup made for it, and nobody can help. The daemon needs only the recipient:
  tidemark run --archive URL %s
To read the archive: tidemark get ... --archive URL --identity %s
`, out, howToEncrypt(recipient), out)
			return nil
		},
	}
	cmd.Flags().StringVarP(&out, "output", "o", "", "file for the identity; it must not be there yet")
	cmd.Flags().BoolVar(&pq, "post-quantum", false, "a hybrid key (ML-KEM-768 with X25519), safe from quantum computers of the future; its recipient is long")
	return cmd
}

// howToEncrypt is the flag for run. Post-quantum recipients have 2,000 characters, which nobody wants
// in a command line.
func howToEncrypt(recipient string) string {
	if len(recipient) > 100 {
		return "--recipients-file FILE   (with the long line above in it)"
	}
	return "--recipient " + recipient
}

func newKeyShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show FILE",
		Short: "Print the recipients of the identities in a file; never the secret",
		Args:  someArgs(1, 1, "an identity file"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ids, err := archive.LoadIdentities(args[0])
			if err != nil {
				return usage("%v", err)
			}
			_, texts := archive.RecipientsOf(ids)
			if len(texts) == 0 {
				return usage("the identities in %s do not tell their recipients", args[0])
			}
			for _, t := range texts {
				fmt.Fprintln(cmd.OutOrStdout(), t)
			}
			return nil
		},
	}
}

func newKeySaved() *cobra.Command {
	return &cobra.Command{
		Use:   "saved FILE",
		Short: "Say that a copy of a key that the daemon made is in a safe place",
		Long: `Say that a copy of a key that the daemon made for itself is in a safe place apart from this machine.
FILE is the key itself, DATA-DIR/archive.key, and not the copy. Until then 'tidemark status' warns: with the
machine the key, and with the key the archive would be lost.`,
		Example: "  tidemark key saved /var/lib/tidemark/archive.key",
		Args:    someArgs(1, 1, "an identity file"),
		RunE: func(cmd *cobra.Command, args []string) error {
			path := args[0]
			ids, err := archive.LoadIdentities(path)
			if err != nil {
				return usage("%v", err)
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(path), "journal")); err != nil || filepath.Base(path) != daemon.ArchiveKeyName {
				return usage("%s is not the key that a daemon made for itself, which is %s in its data directory: 'tidemark status' names it", path, daemon.ArchiveKeyName)
			}
			_, recipients := archive.RecipientsOf(ids)
			text := fmt.Sprintf("said to be in a safe place at %s\n%s\n", time.Now().UTC().Format(time.RFC3339), strings.Join(recipients, "\n"))
			if err := durable.Replace(path+daemon.SavedSuffix, func(w io.Writer) error {
				_, err := io.WriteString(w, text)
				return err
			}); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "noted that a copy of %s is in a safe place: 'tidemark status' does not warn of it any more\n", path)
			return err
		},
	}
}

func newKeyRotate() *cobra.Command {
	var f readArchiveFlags
	var recipients, files []string
	var yes bool
	cmd := &cobra.Command{
		Use:   "rotate --archive URL --identity OLD --recipient NEW",
		Short: "Encrypt an archive anew, for other recipients",
		Long: `Encrypt every file of an archive anew, for the recipients given and nobody else, so that the old key is
not needed any more. Every file is read, encrypted and written once; the old ones are removed a quarter of
an hour later. Cut off, run it again with the same keys: what is for others than OLD already is left. Of the content of volumes, the
password is encrypted anew, and not the content: who has read the password with the old key still knows it.

First give the daemon the new recipients, or what it archives from now on is still for the old ones.`,
		Example: `  tidemark key generate -o new.txt
  tidemark key rotate --archive s3://backups/prod --identity old.txt --recipient age1...`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.url == "" || len(recipients)+len(files) == 0 {
				return usage("rotate wants --archive URL, --identity FILE and --recipient or --recipients-file")
			}
			o, store, err := f.options(cmd.Context())
			if err != nil {
				return err
			}
			if o.Recipients, err = archive.ParseRecipients(recipients, files); err != nil {
				return usage("%v", err)
			}
			a, err := archive.Open(cmd.Context(), store, o)
			if err != nil {
				return err
			}
			if !yes {
				if err := confirm(cmd, fmt.Sprintf("Encrypt %s anew? Afterwards only the new recipients can read them.", count(len(a.State().Files()), "file"))); err != nil {
					return err
				}
			}
			n, others, err := compactor.Rotate(cmd.Context(), a)
			left := ""
			if others > 0 {
				left = fmt.Sprintf("; %s for others than this identity already", count(others, "file"))
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s encrypted anew%s\n", count(n, "file"), left)
			if err != nil {
				return err
			}
			volumes, err := repository.Rewrap(cmd.Context(), repository.Options{Store: store, Cluster: a.Cluster(), Identities: o.Identities, Recipients: o.Recipients})
			if n == 0 && others > 0 && (errors.Is(err, archive.ErrKey) || err == nil && !volumes) {
				return fmt.Errorf("%w: nothing in %s is encrypted for the identity given: all was encrypted anew already, or it is another key ('tidemark key show FILE' tells whose it is)", archive.ErrNoIdentity, store)
			}
			return err
		},
	}
	f.add(cmd.Flags())
	cmd.Flags().StringArrayVar(&recipients, "recipient", nil, "encrypt for this recipient (age1...); repeatable")
	cmd.Flags().StringArrayVar(&files, "recipients-file", nil, "file with recipients, one on a line; repeatable")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}
