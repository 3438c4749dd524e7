package cli

import (
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/tidemark-backup/tidemark/cmd/internal/daemon"
	"github.com/tidemark-backup/tidemark/compactor/archive"
)

// noArchive is the value of --archive that turns archiving off.
const noArchive = "none"

// archiveFlags are those of run about archives.
type archiveFlags struct {
	urls, recipients, recipientFiles []string
	identity, sealBytes              string
	sealInterval                     time.Duration
	lock                             string
	shared                           bool
	store                            archive.StoreOptions
}

func (f *archiveFlags) add(fs *pflag.FlagSet) {
	fs.StringArrayVar(&f.urls, "archive", nil, "archive to s3://BUCKET/PREFIX or dir:///PATH, optionally as NAME=URL; repeatable; none: do not archive (default: DATA-DIR/archive)")
	fs.StringArrayVar(&f.recipients, "recipient", nil, "encrypt the archive for this recipient (age1...); repeatable; without --identity the daemon cannot read its own archive")
	fs.StringArrayVar(&f.recipientFiles, "recipients-file", nil, "file with recipients, one on a line; repeatable")
	fs.StringVar(&f.identity, "identity", "", "key file with which the daemon reads its archive (without recipients: also encrypts for it; default without both: DATA-DIR/archive.key, made at the first start)")
	fs.DurationVar(&f.sealInterval, "seal-interval", 5*time.Second, "archive what is new at least this often")
	fs.StringVar(&f.sealBytes, "seal-size", "8Mi", "archive earlier when about this much waits")
	fs.StringVar(&f.lock, "object-lock", "", "keep archived files from being removed by anybody, MODE:TIME, such as governance:30d or compliance:30d; the bucket must have object lock")
	fs.BoolVar(&f.shared, "archive-shared", false, "allow archives of other clusters under the same URL")
	f.addStore(fs)
}

func (f *archiveFlags) addStore(fs *pflag.FlagSet) { addStoreFlags(fs, &f.store) }

func addStoreFlags(fs *pflag.FlagSet, o *archive.StoreOptions) {
	fs.StringVar(&o.CredentialsFile, "archive-credentials", "", "credentials file for S3 (default: AWS_* in the environment, the user's file, the machine's role)")
	fs.StringVar(&o.Profile, "archive-profile", "", "profile in the credentials file")
	fs.StringVar(&o.CAFile, "archive-ca", "", "PEM file of a CA to trust for S3, besides the system's")
}

// locations are the archives of the flags; the embedded one when there is none.
func (f *archiveFlags) locations(dataDir string) ([]daemon.Archive, error) {
	bytes, err := size("--seal-size", f.sealBytes)
	if err != nil {
		return nil, err
	}
	if f.sealInterval < 100*time.Millisecond {
		return nil, usage("--seal-interval %s is too short: want at least 100ms", f.sealInterval)
	}
	lock, compliance, err := objectLock(f.lock)
	if err != nil {
		return nil, err
	}
	urls := f.urls
	if len(urls) == 0 {
		dir, err := filepath.Abs(filepath.Join(dataDir, "archive"))
		if err != nil {
			return nil, err
		}
		urls = []string{"dir://" + dir}
	}
	var all []daemon.Archive
	for i, text := range urls {
		if text == noArchive {
			if len(urls) > 1 {
				return nil, usage("--archive none cannot stand beside others")
			}
			return nil, nil
		}
		name, url := splitLocation(text)
		if name == "" {
			if name = "main"; i > 0 {
				name += "-" + strconv.Itoa(i+1)
			}
		}
		all = append(all, daemon.Archive{
			Name: name, URL: url, Recipients: f.recipients, RecipientFiles: f.recipientFiles, IdentityFile: f.identity,
			Store: f.store, SealInterval: f.sealInterval, SealBytes: int64(bytes), Lock: lock, Compliance: compliance, Shared: f.shared,
		})
	}
	return all, nil
}

// splitLocation reads NAME=URL or URL. An = within a URL comes after its scheme.
func splitLocation(text string) (name, url string) {
	name, url, found := strings.Cut(text, "=")
	if !found || strings.Contains(name, ":") {
		return "", text
	}
	return name, url
}

// objectLock reads MODE:TIME.
func objectLock(text string) (time.Duration, bool, error) {
	if text == "" {
		return 0, false, nil
	}
	mode, period, _ := strings.Cut(text, ":")
	d, err := window(period)
	if err != nil || d == 0 || mode != "governance" && mode != "compliance" {
		return 0, false, usage("--object-lock %s: want governance:TIME or compliance:TIME, such as governance:30d", text)
	}
	return d, mode == "compliance", nil
}
