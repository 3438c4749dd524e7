package cli

import (
	"fmt"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/dustin/go-humanize/english"

	"github.com/tidemark-backup/tidemark/cmd/internal/api"
	"github.com/tidemark-backup/tidemark/replay/audit"
)

// auditTroubles are what the comparison of history with the cluster found, and what it cannot prove any more.
func auditTroubles(st *api.Status) []string {
	if st.Audit == nil {
		return nil
	}
	var out, old []string
	why := ""
	for i := range st.Audit.Resources {
		r := &st.Audit.Resources[i]
		if r.NotAudited != "" {
			continue
		}
		if r.Different > 0 {
			out = append(out, fmt.Sprintf("history differs from the cluster: %s: %s; found at %s. What is restored of them may be wrong: compare with 'tidemark get' before you do; the state is true again from their next change on",
				r.Resource, differences(r), stamp(r.FoundAt)))
		}
		if !r.Proven(st.Now, st.Audit.Limit) && r.Age(st.Now) > st.Audit.Limit {
			old = append(old, r.Resource)
			why = firstOf(why, r.Trouble)
		}
	}
	if len(old) > 0 {
		out = append(out, fmt.Sprintf("nothing has proven for over %s that history equals the cluster, for %s: %s",
			ago(st.Audit.Limit), some(old, "others"), firstOf(why, "the audit did not get to it")))
	}
	return out
}

// differences names the first of them.
func differences(r *audit.Record) string {
	var names []string
	for _, d := range r.Differences[:min(len(r.Differences), mostShown)] {
		name := d.Name
		if d.Namespace != "" {
			name = d.Namespace + "/" + d.Name
		}
		what := map[audit.Kind]string{
			audit.Missing: "not in history", audit.Extra: "not in the cluster", audit.Differs: "another state", audit.Unreadable: "cannot be read",
		}[d.Kind]
		names = append(names, fmt.Sprintf("%s (%s, rv:%s)", name, what, d.At))
	}
	list := strings.Join(names, ", ")
	if more := r.Different - len(names); more > 0 {
		list += fmt.Sprintf(" and %d more", more)
	}
	return list
}

// writeAudit says what is proven. Nothing but a proof of everything, none of it too old, reads as good.
func writeAudit(b *strings.Builder, st *api.Status) {
	a := st.Audit
	if a == nil {
		b.WriteString("audit: off; nothing shows that history equals the cluster\n")
		return
	}
	audited, proven, objects, reshaped, gone := 0, 0, 0, 0, uint64(0)
	var oldest time.Duration
	var not []string
	for i := range a.Resources {
		r := &a.Resources[i]
		gone += r.Found - min(r.Found, uint64(r.Different))
		if r.NotAudited != "" {
			not = append(not, fmt.Sprintf("%s (%s)", r.Resource, r.NotAudited))
			continue
		}
		audited++
		if r.Proven(st.Now, a.Limit) && r.Different == 0 {
			proven++
			objects += r.Proof.Objects
			reshaped += r.Proof.Reshaped
			oldest = max(oldest, r.Age(st.Now))
		}
	}
	what := fmt.Sprintf("%d of %d resources proven equal to the cluster, %s objects, within %s (limit %s)",
		proven, audited, humanize.Comma(int64(objects)), ago(oldest), ago(a.Limit))
	switch a.Judge(st.Now) {
	case audit.Equal:
		fmt.Fprintf(b, "audit: %s\n", what)
	case audit.Different:
		fmt.Fprintf(b, "audit: HISTORY DIFFERS FROM THE CLUSTER; %s\n", what)
	default:
		fmt.Fprintf(b, "audit: not proven; %s\n", what)
	}
	if len(not) > 0 {
		fmt.Fprintf(b, "  not audited: %s\n", some(not, "others (see -o json)"))
	}
	if reshaped > 0 {
		fmt.Fprintf(b, "  %s objects are given in another form than when they were recorded (an upgrade, a changed definition): what such a change can add or drop was not compared\n", humanize.Comma(int64(reshaped)))
	}
	if gone > 0 {
		fmt.Fprintf(b, "  %d differences were found earlier; they are gone, and history before that may be wrong there\n", gone)
	}
}

// check is an error unless all is well: no trouble, and every proof there.
func check(st *api.Status) error {
	if n := len(troubles(st)); n > 0 {
		return fmt.Errorf("%s: see above", english.Plural(n, "trouble", ""))
	}
	if st.Audit != nil && st.Audit.Judge(st.Now) != audit.Equal {
		return fmt.Errorf("history is not proven to equal the cluster yet")
	}
	return nil
}
