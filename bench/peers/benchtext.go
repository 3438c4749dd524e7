package main

import (
	"bufio"
	"cmp"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

var processors = regexp.MustCompile(`-\d+$`) // how many there were, at the end of a benchmark's name

// loadBenchmarks reads what `make bench OUT=FILE` has written, in the format of Go's benchmarks
// (https://go.dev/design/14313-benchmark-format). The ratios are the units of which a line of it says whether higher or lower is better;
// of several lines of one benchmark it is the median.
func loadBenchmarks(path string) (*results, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	better, values := map[string]string{}, map[string][]float64{}
	lines := bufio.NewScanner(f)
	for number := 1; lines.Scan(); number++ {
		words := strings.Fields(lines.Text())
		switch {
		case len(words) == 3 && words[0] == "Unit":
			better[words[1]] = words[2]
		case len(words) >= 4 && strings.HasPrefix(words[0], "Benchmark"):
			name := processors.ReplaceAllString(strings.TrimPrefix(words[0], "Benchmark"), "")
			for i := 2; i+1 < len(words); i += 2 {
				v, err := strconv.ParseFloat(words[i], 64)
				if err != nil {
					return nil, fmt.Errorf("%s:%d: %w", path, number, err)
				}
				switch better[words[i+1]] {
				case "better=higher":
				case "better=lower":
					v = 1 / v
				default:
					continue
				}
				name := name + ", " + words[i+1]
				values[name] = append(values[name], v)
			}
		}
	}
	r := &results{}
	for name, all := range values {
		r.Ratios = append(r.Ratios, ratio{Name: name, Value: sorted(all).median()})
	}
	slices.SortFunc(r.Ratios, func(a, b ratio) int { return cmp.Compare(a.Name, b.Name) })
	return r, lines.Err()
}
