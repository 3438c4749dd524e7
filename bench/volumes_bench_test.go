package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tidemark-backup/tidemark/deploy/locals3"
	"github.com/tidemark-backup/tidemark/deploy/localserver"
)

var kopiaVersion = regexp.MustCompile(`(?m)^(?:require|\s)\s*github\.com/kopia/kopia (v\S+)`)

// kopiaBinary is the kopia command line of the version that we link, built once per machine.
func kopiaBinary(b *testing.B) string {
	_, source, _, _ := runtime.Caller(0)
	build := localserver.Build{
		What: "kopia", Module: "bench/kopia", Source: source, Cache: "kopia",
		Version: func(gomod []byte) (version, ldflags string) {
			if m := kopiaVersion.FindSubmatch(gomod); m != nil {
				version = string(m[1])
			}
			return version, "-s -w"
		},
		Programs: []localserver.Program{{Name: "kopia", Package: "github.com/kopia/kopia"}},
		Takes:    "about 10 minutes on 2 cores",
	}
	dir, err := build.Dir(b.Context(), os.Stderr)
	must(b, err)
	return filepath.Join(dir, "kopia")
}

// used is what one run of a program took.
type used struct {
	wall, cpu time.Duration
	durable   time.Duration // until all that it wrote is on the disk
	peak      int64         // bytes
}

func timed(b *testing.B, env []string, name string, args ...string) used {
	b.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), env...)
	touchMemory(b)
	syscall.Sync() // nobody pays for what was written before
	began := time.Now()
	out, err := cmd.CombinedOutput()
	if err != nil {
		b.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	s, wall := cmd.ProcessState, time.Since(began)
	syscall.Sync()
	return used{wall, s.UserTime() + s.SystemTime(), time.Since(began), s.SysUsage().(*syscall.Rusage).Maxrss << 10}
}

// touchMemory makes sure that files are cached in memory that was used before: in a virtual machine each page costs much when it is
// used for the first time, and whoever runs first would pay for it.
func touchMemory(b *testing.B) {
	f, err := os.CreateTemp(b.TempDir(), "")
	must(b, err)
	zeros := make([]byte, 1<<20)
	for range 3 << 10 {
		_, err := f.Write(zeros)
		must(b, err)
	}
	must(b, errors.Join(f.Close(), os.Remove(f.Name())))
}

// backuper is a program that keeps a directory.
type backuper struct {
	back    func() used
	restore func(to string) used
	stored  string // the directory it stores in
}

// BenchmarkVolumes backs up a directory with `tidemark volumes backup`, and beside it with the kopia command line of the same version
// with the same hash, encryption, compression and number of readers, each into a repository of its own, in a directory on the same
// disk or in a bucket of one S3 server: first, unchanged, with 1 % of the files changed, and restored. Both are whole processes, whose
// repositories were made before, and are not cleaned up in between; who goes first changes with every round. tar | zstd keeps the same files in the same run, and
// brings them back: of-tar-* is ours by its.
// of-kopia-* is our time by kopia's, the median of the rounds (BENCHTIME=6x makes six). Who comes second finds memory that the first has used, so
// there are as many rounds of either order.
func BenchmarkVolumes(b *testing.B) {
	for _, set := range []struct {
		name         string
		files, bytes int
		bucket       bool
	}{{"small", 100_000, 4 << 10, false}, {"large", 2, 1 << 30, false}, {"large-bucket", 2, 1 << 30, true}} {
		b.Run(set.name, func(b *testing.B) {
			dir := b.TempDir()
			fill(b, dir, set.files, set.bytes)
			c := &comparison{b: b, dir: dir, files: set.files, total: float64(set.files) * float64(set.bytes), figures: map[string][]float64{}}
			for b.Loop() {
				c.round(set.bucket)
			}
			if c.rounds%2 == 1 {
				c.round(set.bucket)
			}
			c.report()
		})
	}
}

// fill makes files whose content shrinks to about a half.
func fill(b *testing.B, dir string, files, size int) {
	r := rand.NewChaCha8([32]byte{7})
	buf := make([]byte, min(size, 1<<20))
	for i := range files {
		p := filepath.Join(dir, fmt.Sprintf("%03d/%03d", i%100, i/100%100))
		must(b, os.MkdirAll(p, 0o755))
		f, err := os.Create(filepath.Join(p, fmt.Sprintf("file-%d", i)))
		must(b, err)
		for left := size; left > 0; left -= len(buf) {
			_, _ = r.Read(buf[:len(buf)/2]) // it never fails
			_, err := f.Write(buf[:min(left, len(buf))])
			must(b, err)
		}
		must(b, f.Close())
	}
}

// comparison are the rounds of one set of files.
type comparison struct {
	b       *testing.B
	dir     string
	files   int
	total   float64 // bytes
	rounds  int
	figures map[string][]float64 // by unit, one of each round
}

func (c *comparison) round(bucket bool) {
	c.rounds++
	home := c.b.TempDir()
	place := repositoryPlace{ours: "dir://" + home + "/us", oursStored: home + "/us", kopia: []string{"filesystem", "--path", home + "/kopia"}, kopiaStored: home + "/kopia"}
	if bucket {
		server, err := locals3.Start(c.b.Context(), locals3.Options{Dir: home + "/s3"})
		must(c.b, err)
		defer func() { must(c.b, server.Stop()) }()
		place = inBuckets(c.b, server)
	}
	us, kopia := ourBackuper(c.b, c.dir, place), kopiaBackuper(c.b, c.dir, place)
	first := c.step("first", us.back, kopia.back)
	stored := float64(onDisk(c.b, us.stored))
	c.add("of-kopia-bytes", stored/float64(onDisk(c.b, kopia.stored)))
	c.step("unchanged", us.back, kopia.back)
	c.change()
	c.step("changed", us.back, kopia.back)
	restored := c.step("restore", func() used { return us.restore(home + "/restored-us") }, func() used { return kopia.restore(home + "/restored-kopia") })
	c.tar(home, first, restored, stored)
	must(c.b, os.RemoveAll(home))
}

// tar keeps all in one compressed file, and brings it back.
func (c *comparison) tar(home string, first, restored used, stored float64) {
	if _, err := exec.LookPath("zstd"); err != nil {
		c.b.Log("without zstd there is no tar | zstd beside it: " + err.Error())
		return
	}
	file, to := home+"/all.tar.zst", home+"/restored-tar"
	t := timed(c.b, nil, "sh", "-c", "tar -C "+c.dir+" -cf - . | zstd -1 -q -T2 > "+file)
	must(c.b, os.Mkdir(to, 0o700))
	back := timed(c.b, nil, "sh", "-c", "zstd -d -c -q "+file+" | tar -C "+to+" -xf -")
	info, err := os.Stat(file)
	must(c.b, err)
	c.add("of-tar-bytes", stored/float64(info.Size()))
	c.add("MiB-tar", float64(t.peak>>20))
	for name, x := range map[string][2]used{"first": {first, t}, "restore": {restored, back}} {
		c.add("of-tar-"+name, x[0].wall.Seconds()/x[1].wall.Seconds())
		c.add("of-tar-on-disk-"+name, x[0].durable.Seconds()/x[1].durable.Seconds())
		c.add("of-tar-CPU-"+name, x[0].cpu.Seconds()/x[1].cpu.Seconds())
		c.b.Logf("tar | zstd -1, %s: wall %.2f s, on disk after %.2f s, CPU %.2f s, peak %d MiB", name, x[1].wall.Seconds(), x[1].durable.Seconds(), x[1].cpu.Seconds(), x[1].peak>>20)
	}
}

// step runs both, in an order that changes with every round, and gives what ours took.
func (c *comparison) step(name string, ours, theirs func() used) (a used) {
	var k used
	if c.rounds%2 == 1 {
		a, k = ours(), theirs()
	} else {
		k, a = theirs(), ours()
	}
	c.add("of-kopia-"+name, a.wall.Seconds()/k.wall.Seconds())
	c.add("of-kopia-on-disk-"+name, a.durable.Seconds()/k.durable.Seconds())
	c.add("of-kopia-CPU-"+name, a.cpu.Seconds()/k.cpu.Seconds())
	c.add("MB/s-"+name, c.total/a.wall.Seconds()/1e6)
	c.add("MiB-"+name, float64(a.peak>>20))
	c.b.Logf("%s: wall %.2f s and %.2f s, on disk after %.2f s and %.2f s, CPU %.2f s and %.2f s, peak %d MiB and %d MiB", name,
		a.wall.Seconds(), k.wall.Seconds(), a.durable.Seconds(), k.durable.Seconds(), a.cpu.Seconds(), k.cpu.Seconds(), a.peak>>20, k.peak>>20)
	return a
}

func (c *comparison) add(unit string, x float64) { c.figures[unit] = append(c.figures[unit], x) }

func (c *comparison) report() {
	for unit, all := range c.figures {
		slices.Sort(all)
		c.b.ReportMetric((all[(len(all)-1)/2]+all[len(all)/2])/2, unit)
	}
}

// change changes 1 % of the files, and at least one.
func (c *comparison) change() {
	for i := 0; i < c.files; i += 100 {
		f, err := os.OpenFile(filepath.Join(c.dir, fmt.Sprintf("%03d/%03d/file-%d", i%100, i/100%100, i)), os.O_WRONLY|os.O_APPEND, 0)
		must(c.b, err)
		_, err = f.WriteString("changed")
		must(c.b, err)
		must(c.b, f.Close())
	}
}

// repositoryPlace is where both make their repositories.
type repositoryPlace struct {
	ours, oursStored string // URL, and the directory that grows
	oursFlags        []string
	kopia            []string // what `repository create` is told
	kopiaStored      string
}

// inBuckets gives each of the two a bucket of one server.
func inBuckets(b *testing.B, server *locals3.Server) repositoryPlace {
	must(b, server.MakeBucket(b.Context(), "bench-us", false))
	must(b, server.MakeBucket(b.Context(), "bench-kopia", false))
	access, secret := server.Credentials()
	return repositoryPlace{
		ours: server.URL("bench-us", ""), oursStored: server.Dir() + "/data/bench-us", oursFlags: []string{"--archive-credentials", server.CredentialsFile()},
		kopia:       []string{"s3", "--bucket", "bench-kopia", "--endpoint", strings.TrimPrefix(server.Endpoint(), "http://"), "--disable-tls", "--access-key", access, "--secret-access-key", secret},
		kopiaStored: server.Dir() + "/data/bench-kopia",
	}
}

func onDisk(b *testing.B, dir string) (n int64) {
	must(b, filepath.Walk(dir, func(_ string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() {
			n += info.Size()
		}
		return err
	}))
	return n
}

func ourBackuper(b *testing.B, dir string, place repositoryPlace) *backuper {
	bin, err := buildTidemark()
	must(b, err)
	home := b.TempDir()
	key, empty := filepath.Join(home, "key"), filepath.Join(home, "empty")
	timed(b, nil, bin, "key", "generate", "-o", key)
	flags := append([]string{"--archive", place.ours, "--identity", key, "--cluster", "bench"}, place.oursFlags...)
	back := func(dir, claim string) used {
		return timed(b, nil, bin, append([]string{"volumes", "backup", "--path", dir, "-n", "bench", "--claim", claim}, flags...)...)
	}
	must(b, os.Mkdir(empty, 0o700))
	back(empty, "empty") // makes the repository
	return &backuper{
		stored: place.oursStored,
		back:   func() used { return back(dir, "data") },
		restore: func(to string) used {
			out, err := exec.Command(bin, append([]string{"volumes", "list", "-o", "json"}, flags...)...).Output()
			must(b, err)
			var all []struct {
				Metadata struct{ Name string }
			}
			must(b, json.Unmarshal(out, &all))
			return timed(b, nil, bin, append([]string{"volumes", "restore", all[len(all)-1].Metadata.Name, "--to", to}, flags...)...)
		},
	}
}

func kopiaBackuper(b *testing.B, dir string, place repositoryPlace) *backuper {
	bin, home := kopiaBinary(b), b.TempDir()
	env := []string{
		"KOPIA_PASSWORD=secret", "KOPIA_CONFIG_PATH=" + home + "/config", "KOPIA_CACHE_DIRECTORY=" + home + "/cache", "KOPIA_LOG_DIR=" + home + "/logs", "KOPIA_CHECK_FOR_UPDATES=false",
	}
	create := slices.Concat([]string{"repository", "create"}, place.kopia, []string{"--block-hash=BLAKE3-256", "--encryption=AES256-GCM-HMAC-SHA256", "--no-check-for-updates"})
	timed(b, env, bin, create...)
	timed(b, env, bin, "policy", "set", "--global", "--compression=zstd-fastest", "--max-parallel-file-reads=4")
	return &backuper{
		stored: place.kopiaStored,
		back: func() used {
			return timed(b, env, bin, "snapshot", "create", "--no-progress", "--no-auto-maintenance", dir)
		},
		restore: func(to string) used { return timed(b, env, bin, "snapshot", "restore", "--no-progress", dir, to) },
	}
}
