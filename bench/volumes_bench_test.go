package bench

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"syscall"
	"testing"
	"time"

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

// backuper is a program that keeps a directory.
type backuper struct {
	back    func() used
	restore func(to string) used
	stored  string // the directory it stores in
}

// BenchmarkVolumes backs up a directory with `tidemark volumes backup`, and beside it with the kopia command line of the same version
// with the same hash, encryption, compression and number of readers, each into a directory of its own on the same
// disk: first, unchanged, with 1 % of the files changed, and restored. Both are whole processes; tar | zstd reads the same
// files in the same run. of-kopia-* is our time by kopia's.
func BenchmarkVolumes(b *testing.B) {
	for _, set := range []struct {
		name         string
		files, bytes int
	}{{"small", 100_000, 4 << 10}, {"large", 2, 1 << 30}} {
		b.Run(set.name, func(b *testing.B) {
			dir := b.TempDir()
			fill(b, dir, set.files, set.bytes)
			for b.Loop() {
				compareBackups(b, dir, set.files, set.bytes)
			}
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

func compareBackups(b *testing.B, dir string, files, size int) {
	us, kopia := ourBackuper(b, dir), kopiaBackuper(b, dir)
	total := float64(files) * float64(size)
	step := func(name string, ours, theirs func() used) {
		a, k := ours(), theirs()
		b.ReportMetric(a.wall.Seconds()/k.wall.Seconds(), "of-kopia-"+name)
		b.ReportMetric(a.durable.Seconds()/k.durable.Seconds(), "of-kopia-on-disk-"+name)
		b.ReportMetric(total/a.wall.Seconds()/1e6, "MB/s-"+name)
		b.Logf("%s: wall %.2f s and %.2f s, on disk after %.2f s and %.2f s, CPU %.2f s and %.2f s, peak %d MiB and %d MiB", name,
			a.wall.Seconds(), k.wall.Seconds(), a.durable.Seconds(), k.durable.Seconds(), a.cpu.Seconds(), k.cpu.Seconds(), a.peak>>20, k.peak>>20)
		b.ReportMetric(float64(a.peak>>20), "MiB-"+name)
	}
	step("first", us.back, kopia.back)
	b.ReportMetric(float64(onDisk(b, us.stored))/float64(onDisk(b, kopia.stored)), "of-kopia-bytes")
	step("unchanged", us.back, kopia.back)
	for i := 0; i < files; i += 100 {
		p := filepath.Join(dir, fmt.Sprintf("%03d/%03d/file-%d", i%100, i/100%100, i))
		f, err := os.OpenFile(p, os.O_WRONLY|os.O_APPEND, 0)
		must(b, err)
		_, err = f.WriteString("changed")
		must(b, err)
		must(b, f.Close())
	}
	step("changed", us.back, kopia.back)
	to := b.TempDir()
	step("restore", func() used { return us.restore(filepath.Join(to, "us")) }, func() used { return kopia.restore(filepath.Join(to, "kopia")) })
	must(b, os.RemoveAll(to))
	tar := timed(b, nil, "sh", "-c", "tar -C "+dir+" -cf - . | zstd -1 -q -T2 > "+filepath.Join(b.TempDir(), "all.tar.zst"))
	b.Logf("tar | zstd -1: %.2f s", tar.wall.Seconds())
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

func ourBackuper(b *testing.B, dir string) *backuper {
	bin, err := buildTidemark()
	must(b, err)
	home := b.TempDir()
	key := filepath.Join(home, "key")
	timed(b, nil, bin, "key", "generate", "-o", key)
	flags := []string{"--archive", "dir://" + home + "/store", "--identity", key, "--cluster", "bench"}
	return &backuper{
		stored: home + "/store",
		back: func() used {
			return timed(b, nil, bin, append([]string{"volumes", "backup", "--path", dir, "-n", "bench", "--claim", "data"}, flags...)...)
		},
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

func kopiaBackuper(b *testing.B, dir string) *backuper {
	bin, home := kopiaBinary(b), b.TempDir()
	env := []string{
		"KOPIA_PASSWORD=secret", "KOPIA_CONFIG_PATH=" + home + "/config", "KOPIA_CACHE_DIRECTORY=" + home + "/cache", "KOPIA_LOG_DIR=" + home + "/logs", "KOPIA_CHECK_FOR_UPDATES=false",
	}
	timed(b, env, bin, "repository", "create", "filesystem", "--path", home+"/store", "--block-hash=BLAKE3-256", "--encryption=AES256-GCM-HMAC-SHA256", "--no-check-for-updates")
	timed(b, env, bin, "policy", "set", "--global", "--compression=zstd-fastest", "--max-parallel-file-reads=4")
	return &backuper{
		stored:  home + "/store",
		back:    func() used { return timed(b, env, bin, "snapshot", "create", "--no-progress", dir) },
		restore: func(to string) used { return timed(b, env, bin, "snapshot", "restore", "--no-progress", dir, to) },
	}
}
