package main

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// results are what one run of the program measured, as kept in bench/results.
type results struct {
	Date     string            `json:"date"`
	Machine  machine           `json:"machine"`
	Versions map[string]string `json:"versions"`
	Flags    map[string]string `json:"flags"` // of each tool
	Objects  []int             `json:"objects"`
	Runs     int               `json:"runs"`
	Rate     int               `json:"churnPerSecond"`
	Churn    float64           `json:"churnSeconds"`
	Applied  *int              `json:"appliedPercent,omitempty"` // of the objects; nil: older results, in which all were
	Turns    []string          `json:"turns,omitempty"`          // that were taken at each size; empty: those of the report
	Took     float64           `json:"tookSeconds,omitempty"`    // all of it, without building the peers
	// Note says what a reader of these figures has to know.
	Note    string   `json:"note,omitempty"`
	Samples []sample `json:"samples"`
	Ratios  []ratio  `json:"ratios"`

	began time.Time // zero: these were loaded
}

type machine struct {
	Cores  int    `json:"cores"`
	CPU    string `json:"cpu"`
	MemMB  int    `json:"memoryMB"`
	Kernel string `json:"kernel"`
	Go     string `json:"go"`
	// Load is the system's load average before the run: whether others used the machine.
	Load string `json:"loadBefore"`
}

// sample is one tool doing one thing once.
type sample struct {
	Objects  int                `json:"objects"` // that the cluster was filled with
	Run      int                `json:"run"`
	Tool     string             `json:"tool"`
	Scenario string             `json:"scenario"`
	Values   map[string]float64 `json:"values"`
}

// ratio compares two medians. More is better for us in all of them.
type ratio struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"` // zero: not measured
	// Goal is what it is to reach; zero: there is none. One that has a goal is there even when it was not measured, and is 0 then.
	Goal float64 `json:"goal,omitempty"`
}

func (r *results) save(path string) error {
	if !r.began.IsZero() {
		r.Took = time.Since(r.began).Round(time.Second).Seconds()
	}
	text, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}

func load(path string) (*results, error) {
	if strings.HasSuffix(path, ".txt") {
		return loadBenchmarks(path)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var r results
	if err := json.Unmarshal(text, &r); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	for _, s := range r.Samples { // older results do not have zeros
		for _, verb := range []string{"requests_list", "requests_audit"} {
			if _, counted := s.Values["requests"]; counted && s.Values[verb] == 0 {
				s.Values[verb] = 0
			}
		}
	}
	return &r, nil
}

// spread are the values of all runs.
type spread []float64

func (r *results) values(objects int, tool, scenario, value string) (all spread) {
	for _, s := range r.Samples {
		if v, ok := s.Values[value]; ok && s.Objects == objects && s.Tool == tool && s.Scenario == scenario {
			all = append(all, v)
		}
	}
	slices.Sort(all)
	return all
}

func (s spread) median() float64 {
	if len(s) == 0 {
		return 0
	}
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

// quantile of a sorted spread.
func (s spread) quantile(q float64) float64 {
	if len(s) == 0 {
		return 0
	}
	return s[min(len(s)-1, int(q*float64(len(s))))]
}

func sorted(s spread) spread {
	slices.Sort(s)
	return s
}
