package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

var errWorse = errors.New("ratios have become worse")

// check compares the ratios of two results, never their times: the machines may be different ones. A ratio may be
// smaller by the factor allowed, because runs vary. One that is gone is worse, unless what it is of had no turn.
func check(before, now *results, allowed float64, out io.Writer) error {
	found := map[string]float64{}
	for _, r := range now.Ratios {
		found[r.Name] = r.Value
	}
	compared, worse := 0, 0
	for _, r := range before.Ratios {
		if r.Value == 0 {
			continue
		}
		v := found[r.Name]
		switch {
		case v == 0 && now.leftOut(r.Name):
			fmt.Fprintf(out, "not measured now: %s\n", r.Name)
			continue
		case v == 0:
			worse++
			fmt.Fprintf(out, "MISSING: %s: was %.3g\n", r.Name, r.Value)
			continue
		}
		compared++
		if v*allowed < r.Value {
			worse++
			fmt.Fprintf(out, "WORSE: %s: %.3g, was %.3g\n", r.Name, v, r.Value)
		}
	}
	switch {
	case worse == 0 && compared == 0:
		return errors.New("the two results have no ratio in common: were they made with the same --objects and --only?")
	case worse > 0:
		return fmt.Errorf("%w: %d, by more than the factor %g, or missing", errWorse, worse, allowed)
	}
	fmt.Fprintf(out, "%d ratios compared, none is worse by more than the factor %g\n", compared, allowed)
	return nil
}

// leftOut reports that a ratio is not to be expected: of a size or of tools that had no turn, or of `make bench`, where any may run alone.
func (r *results) leftOut(name string) bool {
	if len(r.Turns) > 0 && slices.ContainsFunc(reported, func(turn string) bool { return !slices.Contains(r.Turns, turn) }) {
		return true
	}
	return !slices.ContainsFunc(r.Objects, func(n int) bool { return strings.HasPrefix(name, fmt.Sprintf("%d objects: ", n)) })
}
