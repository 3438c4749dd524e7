package main

import (
	"errors"
	"fmt"
	"io"
)

var errWorse = errors.New("ratios have become worse")

// check compares the ratios of two results, never their times: the machines may be different ones. A ratio may be
// smaller by the factor allowed, because runs vary.
func check(before, now *results, allowed float64, out io.Writer) error {
	found := map[string]float64{}
	for _, r := range now.Ratios {
		found[r.Name] = r.Value
	}
	compared, worse := 0, 0
	for _, r := range before.Ratios {
		v, ok := found[r.Name]
		if !ok {
			fmt.Fprintf(out, "not measured now: %s\n", r.Name)
			continue
		}
		compared++
		if v*allowed < r.Value {
			worse++
			fmt.Fprintf(out, "WORSE: %s: %.3g, was %.3g\n", r.Name, v, r.Value)
		}
	}
	switch {
	case compared == 0:
		return errors.New("the two results have no ratio in common: were they made with the same --objects?")
	case worse > 0:
		return fmt.Errorf("%w: %d of %d, by more than the factor %g", errWorse, worse, compared, allowed)
	}
	fmt.Fprintf(out, "%d ratios compared, none is worse by more than the factor %g\n", compared, allowed)
	return nil
}
