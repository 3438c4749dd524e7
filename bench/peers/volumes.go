package main

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"
)

// keptRun is what one of Go's benchmarks has measured, as kept in a file.
type keptRun struct {
	benchmark
	file string
}

// volumeRun is what `make bench BENCH=Volumes` has measured of one kind of content beside kopia.
type volumeRun keptRun

// others is what other benchmarks have measured and the report has besides.
type others struct {
	volumes []volumeRun
	merged  []keptRun // of `make bench BENCH=ArchiveSize`
}

// jsonByArchived is the unit of how many times smaller history is in an archive that has been merged for a day.
const jsonByArchived = "json/archived"

// mergedContents are the names of that benchmark's parts in words.
var mergedContents = map[string]string{"ArchiveSize/synthetic": "made-up changes", "ArchiveSize/corpus": "a recorded cluster"}

// loadOthers reads the kept results of a directory: of volumes all, the oldest first, and of merged archives the newest.
func loadOthers(dir string) (o others, err error) {
	volumes, err := loadKept(filepath.Join(dir, "*-volumes-*.txt"))
	if err != nil {
		return o, err
	}
	for _, v := range volumes {
		o.volumes = append(o.volumes, volumeRun(v))
	}
	merged, err := loadKept(filepath.Join(dir, "*-archive-size*.txt"))
	for _, m := range merged {
		if m.file == merged[len(merged)-1].file && m.values[jsonByArchived] > 0 {
			o.merged = append(o.merged, m)
		}
	}
	return o, err
}

func loadKept(pattern string) (all []keptRun, err error) {
	files, err := filepath.Glob(pattern)
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		runs, _, err := readBenchmarks(file)
		if err != nil {
			return nil, err
		}
		for _, b := range runs {
			all = append(all, keptRun{b, filepath.Base(file)})
		}
	}
	return all, nil
}

// volumeContents are the names of the benchmark's parts in words.
var volumeContents = map[string]string{
	"Volumes/small": "100,000 files of 4 KiB", "Volumes/large": "2 files of 1 GiB",
	"Volumes/small-bucket": "100,000 files of 4 KiB, into a bucket", "Volumes/large-bucket": "2 files of 1 GiB, into a bucket",
}

func (v volumeRun) content() string {
	if text := volumeContents[v.name]; text != "" {
		return text
	}
	return v.name
}

// volumeMeasures are the units of the benchmark: what comes before the step in them, and in words.
var volumeMeasures = []struct{ unit, words string }{
	{"of-kopia-", "time"},
	{"of-kopia-on-disk-", "time until it is on the disk"},
	{"of-kopia-CPU-", "CPU"},
	{"of-tar-", "time, by tar \\| zstd's"},
	{"of-tar-on-disk-", "time until it is on the disk, by tar \\| zstd's"},
	{"of-tar-CPU-", "CPU, by tar \\| zstd's"},
}

var volumeSteps = []string{"first", "unchanged", "changed", "restore"}

func writeVolumes(b *bytes.Buffer, all []volumeRun) {
	if len(all) == 0 {
		return
	}
	fmt.Fprintf(b, "\n## Content of volumes beside the kopia command line\n\nOurs by kopia's (or by tar | zstd's, where that is said), less than 1 is better for Tidemark: medians of so many rounds, whole processes in turn with the same settings. These are not of the run above but of\n"+
		"`make bench BENCH=Volumes`, as kept in `%s`; the files have date, commit, times and memory of both.\n\n| content | what | first backup | unchanged | changed | restore | rounds | file |\n|---|---|---|---|---|---|---|---|\n", keptResults)
	for _, v := range all {
		cell := func(unit string) string {
			if value, ok := v.values[unit]; ok {
				return fmt.Sprintf("%.2f", value)
			}
			return "-"
		}
		for _, m := range volumeMeasures {
			var cells []string
			measured := false
			for _, step := range volumeSteps {
				c := cell(m.unit + step)
				cells, measured = append(cells, c), measured || c != "-"
			}
			if !measured {
				continue
			}
			fmt.Fprintf(b, "| %s | %s | %s | %d | %s |\n", v.content(), m.words, strings.Join(cells, " | "), v.rounds, v.file)
		}
		fmt.Fprintf(b, "| %s | bytes stored, all together | %s | | | | %d | %s |\n", v.content(), cell("of-kopia-bytes"), v.rounds, v.file)
		if _, ok := v.values["of-tar-bytes"]; ok {
			fmt.Fprintf(b, "| %s | bytes stored, by tar \\| zstd's | %s | | | | %d | %s |\n", v.content(), cell("of-tar-bytes"), v.rounds, v.file)
		}
	}
}

// losses are what takes more than kopia, as it is shown.
func (v volumeRun) losses() (texts []string) {
	tell := func(what, unit string) {
		if value := fmt.Sprintf("%.2f", v.values[unit]); v.values[unit] > 1 && value != "1.00" {
			texts = append(texts, fmt.Sprintf("volumes, %s, %s: %s of kopia's (%s)", v.content(), what, value, v.file))
		}
	}
	for _, m := range volumeMeasures {
		if strings.HasPrefix(m.unit, "of-tar-") {
			continue // it keeps one state, and no backup after it is any cheaper
		}
		for _, step := range volumeSteps {
			tell(step+", "+m.words, m.unit+step)
		}
	}
	tell("bytes stored", "of-kopia-bytes")
	return texts
}
