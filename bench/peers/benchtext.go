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

// benchmark is one line of what Go's benchmarks print.
type benchmark struct {
	name   string
	rounds int
	values map[string]float64 // by unit
}

// readBenchmarks reads what `make bench OUT=FILE` has written, in the format of Go's benchmarks
// (https://go.dev/design/14313-benchmark-format). better has the units of which a line says whether higher or lower is better.
func readBenchmarks(path string) (all []benchmark, better map[string]string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	better = map[string]string{}
	lines := bufio.NewScanner(f)
	for number := 1; lines.Scan(); number++ {
		words := strings.Fields(lines.Text())
		switch {
		case len(words) == 3 && words[0] == "Unit":
			better[words[1]] = words[2]
		case len(words) >= 4 && strings.HasPrefix(words[0], "Benchmark"):
			b := benchmark{name: processors.ReplaceAllString(strings.TrimPrefix(words[0], "Benchmark"), ""), values: map[string]float64{}}
			if b.rounds, err = strconv.Atoi(words[1]); err != nil {
				return nil, nil, fmt.Errorf("%s:%d: %w", path, number, err)
			}
			for i := 2; i+1 < len(words); i += 2 {
				if b.values[words[i+1]], err = strconv.ParseFloat(words[i], 64); err != nil {
					return nil, nil, fmt.Errorf("%s:%d: %w", path, number, err)
				}
			}
			all = append(all, b)
		}
	}
	return all, better, lines.Err()
}

// loadBenchmarks takes the units that are better higher or lower for ratios; of several lines of one benchmark it is the median.
func loadBenchmarks(path string) (*results, error) {
	all, better, err := readBenchmarks(path)
	if err != nil {
		return nil, err
	}
	values := map[string][]float64{}
	for _, b := range all {
		for unit, v := range b.values {
			name := b.name + ", " + unit
			switch better[unit] {
			case "better=higher":
				values[name] = append(values[name], v)
			case "better=lower":
				values[name] = append(values[name], 1/v)
			}
		}
	}
	r := &results{}
	for name, all := range values {
		r.Ratios = append(r.Ratios, ratio{Name: name, Value: sorted(all).median()})
	}
	slices.SortFunc(r.Ratios, func(a, b ratio) int { return cmp.Compare(a.Name, b.Name) })
	return r, nil
}
