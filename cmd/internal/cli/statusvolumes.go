package cli

import (
	"fmt"
	"strings"
	"time"

	"github.com/dustin/go-humanize/english"
	"github.com/tidemark-backup/tidemark/cmd/internal/api"
)

// volumeTroubles are the policies that do not keep up with what they promise.
func volumeTroubles(st *api.Status) (out []string) {
	const hint = "'tidemark volumes list' shows which, 'tidemark volumes describe NAME' why"
	for i := range st.Volumes {
		v := &st.Volumes[i]
		what := "volumes of policy " + v.Policy
		if v.Driver != "" {
			what += " (" + v.Driver + ")"
		}
		if v.TooOld(st.Now) {
			out = append(out, fmt.Sprintf("%s: the newest backup of one is %s old, and by the policy's schedule %s is the most: %s", what, ago(v.Age(st.Now)), ago(v.Limit), hint))
		}
		if v.Failing > 0 {
			out = append(out, fmt.Sprintf("%s: the newest backup of %d of %d failed: %s", what, v.Failing, v.Claims, hint))
		}
	}
	return out
}

// writeVolumes sums up the backups of volumes; nothing, where there are none and none is wanted.
func writeVolumes(b *strings.Builder, st *api.Status) {
	if len(st.Volumes) == 0 {
		return
	}
	policies := map[string]bool{}
	claims, failing, running := 0, 0, 0
	var age, took time.Duration
	var done, failed time.Time
	for i := range st.Volumes {
		v := &st.Volumes[i]
		if v.Claims > 0 {
			policies[v.Policy] = true
		}
		claims, failing, running = claims+v.Claims, failing+v.Failing, running+v.Running
		age = max(age, v.Age(st.Now))
		if v.LastDone.After(done) {
			done, took = v.LastDone, v.LastDuration
		}
		if v.LastFailed.After(failed) {
			failed = v.LastFailed
		}
	}
	switch {
	case claims > 0:
		fmt.Fprintf(b, "volumes: %s of %s, the newest whole backup of each at most %s old", english.Plural(claims, "claim", ""), english.Plural(len(policies), "policy", "policies"), ago(age))
	case done.IsZero() && failed.IsZero():
		b.WriteString("volumes: no backup yet")
	default:
		b.WriteString("volumes: no schedule backs any up")
	}
	if failing > 0 {
		fmt.Fprintf(b, "; %d FAILED the last time", failing)
	}
	if running > 0 {
		fmt.Fprintf(b, "; %d being backed up", running)
	}
	b.WriteString("\n")
	if !done.IsZero() || !failed.IsZero() {
		fmt.Fprintf(b, "  last success %s", stamp(done))
		if !done.IsZero() {
			fmt.Fprintf(b, " (took %s)", ago(took))
		}
		fmt.Fprintf(b, ", last failure %s\n", stamp(failed))
	}
}
