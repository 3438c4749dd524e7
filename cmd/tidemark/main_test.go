package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/tidemark-backup/tidemark/cmd/internal/api"
	"github.com/tidemark-backup/tidemark/cmd/internal/cli"
	"github.com/tidemark-backup/tidemark/compactor"
	"github.com/tidemark-backup/tidemark/deploy/locals3"
	"github.com/tidemark-backup/tidemark/replay"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"tidemark": main, "kubectl-tidemark": main})
}

func TestReportOfWhatWasInterrupted(t *testing.T) {
	canceled := fmt.Errorf("list the archives: %w", context.Canceled)
	for want, got := range map[string][2]error{
		"error: list the archives: interrupt signal received\n": {canceled, errors.New("interrupt signal received")},
		"error: list the archives: context canceled\n":          {canceled, nil}, // not by a signal
		"": {cli.ErrDifferent, nil},
	} {
		var b strings.Builder
		if report(&b, got[0], got[1]); b.String() != want {
			t.Errorf("%q, want %q", b.String(), want)
		}
	}
}

// TestScripts runs the real binary, daemon and all, over a journal that holds the story of
// story_test.go. No script needs a cluster: history must be readable without one.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:   "testdata/script",
		Setup: setup,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"s3":        objectStore,
			"failing":   func(ts *testscript.TestScript, _ bool, args []string) { untilFailing(ts, args[0], true) },
			"working":   func(ts *testscript.TestScript, _ bool, args []string) { untilFailing(ts, args[0], false) },
			"story":     tellStory,
			"await":     await,
			"archived":  archived,
			"stopped":   stopped,
			"scheduled": scheduled, "until-retain": untilRetain,
			"hangup": func(ts *testscript.TestScript, _ bool, _ []string) {
				for _, c := range ts.BackgroundCmds() {
					ts.Check(c.Process.Signal(syscall.SIGHUP))
				}
			},
			"code": code,
			"sigterm": func(ts *testscript.TestScript, _ bool, _ []string) {
				for _, c := range ts.BackgroundCmds() {
					ts.Check(c.Process.Signal(syscall.SIGTERM))
				}
			},
		},
		RequireExplicitExec: true,
	})
}

// tellStory is "story DIR".
func tellStory(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(tell(ts.MkAbs(args[0]), ts.MkAbs("objects")))
}

// setup gives each script a home of its own and a kubeconfig of a cluster that is away.
func setup(env *testscript.Env) error {
	path := filepath.Join(env.WorkDir, "kubeconfig")
	env.Values[objectStoreKey{}] = new(*locals3.Server)
	env.Setenv("HOME", env.WorkDir)
	env.Setenv("KUBECONFIG", path)
	env.Setenv("TIDEMARK_SERVER", "unix://"+filepath.Join(env.WorkDir, "d", "tidemark.sock"))
	env.Setenv("TZ", "UTC")
	return os.WriteFile(path, []byte(`{"apiVersion":"v1","kind":"Config","current-context":"c",
"clusters":[{"name":"c","cluster":{"server":"https://127.0.0.1:1"}}],"users":[{"name":"u","user":{"token":"t"}}],
"contexts":[{"name":"c","context":{"cluster":"c","user":"u","namespace":"shop"}}]}`), 0o600)
}

// archived waits until every archive has everything that the journal has.
func archived(ts *testscript.TestScript, _ bool, _ []string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := api.NewClient(api.ClientOptions{Server: ts.Getenv("TIDEMARK_SERVER")})
	ts.Check(err)
	defer c.Close()
	poll(ctx, ts, func() bool {
		st, err := c.Status(ctx)
		ts.Check(err)
		return len(st.Archives) > 0 && !slices.ContainsFunc(st.Archives, func(a compactor.Status) bool {
			return a.PendingEvents > 0 || a.ArchivedTo.Time.IsZero()
		})
	})
}

// objectStore is "s3 BUCKET [lock]", which starts a real S3 server with that bucket (with object lock), gives
// the script its credentials and puts an archive's URL into $S3; "s3 down" and "s3 up"; and "s3 held N"
// and "s3 locked", which ask the server whether N objects are under a legal hold, and all are locked.
// Each script has a server of its own, since "down" is meant for one script only.
func objectStore(ts *testscript.TestScript, _ bool, args []string) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	server, _ := ts.Value(objectStoreKey{}).(**locals3.Server)
	switch args[0] {
	case "down":
		(*server).Kill()
	case "up":
		ts.Check((*server).Restart(ctx))
	case "held", "locked":
		checkLocks(ctx, ts, *server, args)
	default:
		if *server == nil {
			s, err := locals3.Start(ctx, locals3.Options{})
			ts.Check(err)
			*server = s
			ts.Defer(func() { ts.Check(s.Stop()) })
		}
		ts.Check((*server).MakeBucket(ctx, args[0], len(args) > 1))
		access, secret := (*server).Credentials()
		ts.Setenv("AWS_ACCESS_KEY_ID", access)
		ts.Setenv("AWS_SECRET_ACCESS_KEY", secret)
		ts.Setenv("S3", (*server).URL(args[0], "prod"))
	}
}

// objectStoreKey finds the script's server among its environment's values.
type objectStoreKey struct{}

// checkLocks asks the server itself, of the bucket in $S3.
func checkLocks(ctx context.Context, ts *testscript.TestScript, server *locals3.Server, args []string) {
	u, err := url.Parse(ts.Getenv("S3"))
	ts.Check(err)
	c := server.Client()
	held, unlocked := 0, 0
	for o := range c.ListObjects(ctx, u.Host, minio.ListObjectsOptions{Recursive: true}) {
		ts.Check(o.Err)
		on, err := c.GetObjectLegalHold(ctx, u.Host, o.Key, minio.GetObjectLegalHoldOptions{})
		if err == nil && on != nil && on.IsValid() && *on == minio.LegalHoldEnabled {
			held++
		}
		info, err := c.StatObject(ctx, u.Host, o.Key, minio.StatObjectOptions{})
		ts.Check(err)
		until, err := time.Parse(time.RFC3339, info.Metadata.Get("X-Amz-Object-Lock-Retain-Until-Date"))
		if err != nil || time.Until(until) < time.Minute {
			unlocked++
			ts.Logf("%s is not locked", o.Key)
		}
	}
	switch {
	case args[0] == "held" && fmt.Sprint(held) != args[1]:
		ts.Fatalf("%d objects are held, want %s", held, args[1])
	case args[0] == "locked" && unlocked > 0:
		ts.Fatalf("%d objects are not locked", unlocked)
	}
}

// untilFailing waits until a location fails, or does not any more.
func untilFailing(ts *testscript.TestScript, name string, want bool) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	c, err := api.NewClient(api.ClientOptions{Server: ts.Getenv("TIDEMARK_SERVER")})
	ts.Check(err)
	defer c.Close()
	poll(ctx, ts, func() bool {
		st, err := c.Status(ctx)
		ts.Check(err)
		return slices.ContainsFunc(st.Archives, func(a compactor.Status) bool {
			return a.Name == name && (a.Error != "") == want && (want || a.PendingEvents == 0)
		})
	})
}

// stopped waits until an archive is not written any more.
func stopped(ts *testscript.TestScript, _ bool, _ []string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := api.NewClient(api.ClientOptions{Server: ts.Getenv("TIDEMARK_SERVER")})
	ts.Check(err)
	defer c.Close()
	poll(ctx, ts, func() bool {
		st, err := c.Status(ctx)
		ts.Check(err)
		return slices.ContainsFunc(st.Archives, func(a compactor.Status) bool { return a.Stopped })
	})
}

// scheduled waits until a schedule has taken a snapshot.
func scheduled(ts *testscript.TestScript, _ bool, _ []string) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	c, err := api.NewClient(api.ClientOptions{Server: ts.Getenv("TIDEMARK_SERVER")})
	ts.Check(err)
	defer c.Close()
	poll(ctx, ts, func() bool {
		all, err := c.Snapshots(ctx)
		ts.Check(err)
		return len(all[0].Snapshots) > 0
	})
}

// untilRetain waits until a dry run of retention says what is wanted.
func untilRetain(ts *testscript.TestScript, _ bool, args []string) {
	re := regexp.MustCompile(args[0])
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		ts.Check(ts.Exec("tidemark", "retain", "--dry-run"))
		if re.MatchString(ts.ReadFile("stdout")) {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("retention does not say %q", args[0])
		}
	}
}

// code runs a command that must end with that exit code: "code 4 tidemark get cm".
func code(ts *testscript.TestScript, _ bool, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	var exit *exec.ExitError
	if want, _ := strconv.Atoi(args[0]); !errors.As(err, &exit) || exit.ExitCode() != want {
		ts.Fatalf("it ended with %v, want exit code %d", err, want)
	}
}

// await waits until the daemon answers: "await [ADDRESS]".
func await(ts *testscript.TestScript, _ bool, args []string) {
	address := ts.Getenv("TIDEMARK_SERVER")
	if len(args) > 0 {
		address = args[0]
	}
	c, err := api.NewClient(api.ClientOptions{Server: address})
	ts.Check(err)
	defer c.Close()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		_, err := c.Ledgers(context.Background())
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%v", err)
		}
	}
}

// The table in 'tidemark help exit-codes' is a promise to scripts.
func TestExitCodes(t *testing.T) {
	for code, err := range exitCodeExamples {
		if got := exitCode(err); got != code.code {
			t.Errorf("%s: exit code %d, want %d", code.name, got, code.code)
		}
		if got := exitCode(fmt.Errorf("doing something: %w", wrap(err))); err != nil && got != code.code {
			t.Errorf("%s, wrapped: exit code %d, want %d", code.name, got, code.code)
		}
	}
}

func wrap(err error) error {
	if err == nil {
		return os.ErrInvalid
	}
	return err
}

type example struct {
	name string
	code int
}

var exitCodeExamples = map[example]error{
	{"done", 0}:                  nil,
	{"any error", 1}:             os.ErrPermission,
	{"differences", 1}:           cli.ErrDifferent,
	{"not there at the cut", 1}:  cli.ErrNotFound,
	{"wrong usage", 2}:           cli.ErrUsage,
	{"could not compare", 2}:     cli.ErrTrouble,
	{"partly restored", 3}:       cli.ErrPartly,
	{"never recorded", 4}:        cli.ErrNotInHistory,
	{"outside the recording", 4}: &replay.RangeError{},
}
