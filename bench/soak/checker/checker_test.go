package checker

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestNothingIsShared: a checker that has a line in common with what it checks may have its bugs as well.
func TestNothingIsShared(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		if p := strings.TrimSpace(line); !strings.HasSuffix(p, "/bench/soak/checker") {
			t.Errorf("the checker uses %s", p)
		}
	}
}

func sumOf(text string) sum { return sha256.Sum256([]byte(text)) }

// mustDiffer wants a Difference that speaks of part.
func mustDiffer(t *testing.T, err error, part string) {
	t.Helper()
	d, ok := errors.AsType[*Difference](err)
	if !ok || !strings.Contains(d.Error(), part) {
		t.Errorf("found %v, want a difference about %q", err, part)
	}
}

func TestEveryDifferenceOfAnAnswerIsFound(t *testing.T) {
	mo := &Moment{RV: 7, sums: map[string]map[string]sum{"configmaps": {"a/one": sumOf("1"), "a/two": sumOf("2")}}}
	same := map[string]sum{"a/one": sumOf("1"), "a/two": sumOf("2")}
	if err := compare(mo, "configmaps", "it", same); err != nil {
		t.Errorf("equal answers differ: %v", err)
	}
	mustDiffer(t, compare(mo, "configmaps", "it", map[string]sum{"a/one": sumOf("1")}), "a/two")
	mustDiffer(t, compare(mo, "configmaps", "it", map[string]sum{"a/one": sumOf("1"), "a/two": sumOf("3")}), "a/two")
	mustDiffer(t, compare(mo, "configmaps", "it", map[string]sum{"a/one": sumOf("1"), "a/two": sumOf("2"), "a/three": sumOf("")}), "a/three")
}

func configMap(text string) string {
	return `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"namespace":"a","name":"one","resourceVersion":"1"},"data":{"k":"` + text + `"}}`
}

// watched is a stream that saw these versions of one object, and was blind between the lists.
func watched() *stream {
	s := &stream{Resource: Resource{Name: "configmaps", APIVersion: "v1", Kind: "ConfigMap"}, objects: map[string][]version{}}
	m := &Model{all: map[string]*stream{"configmaps": s}}
	put := func(kind, text string, rv uint64) {
		m.see(s, kind, item{key: "a/one", rv: rv, raw: []byte(configMap(text))})
	}
	m.learn(s, []item{{key: "a/one", rv: 5, raw: []byte(configMap("five"))}}, 10)
	put("MODIFIED", "twelve", 12)
	put("DELETED", "fourteen", 14)
	put("BOOKMARK", "", 20)
	m.learn(s, []item{{key: "a/one", rv: 25, raw: []byte(configMap("twenty-five"))}}, 30)
	put("MODIFIED", "thirty-two", 32)
	return s
}

func TestModelKnowsWhatItSawAndWhereItWasBlind(t *testing.T) {
	s := watched()
	for _, c := range []struct {
		rv   uint64
		text string // empty: nothing is there
		know bool
	}{{10, "five", true}, {11, "five", true}, {12, "twelve", true}, {13, "twelve", true}, {14, "", true}, {20, "", true}, {24, "", false}, {27, "twenty-five", false}, {30, "twenty-five", true}, {32, "thirty-two", true}, {33, "thirty-two", false}} {
		if s.knows(c.rv) != c.know {
			t.Errorf("at %d it knows: %v", c.rv, !c.know)
		}
		have, there := s.at(c.rv)["a/one"]
		if there != (c.text != "") || there && have != sumOf(configMap(c.text)) {
			t.Errorf("at %d it has another object, or none (there: %v)", c.rv, there)
		}
	}
	if s.sighted(25) || s.sighted(10) || !s.sighted(12) || !s.sighted(32) {
		t.Error("what came while it was blind counts as seen, or the other way round")
	}
}

// history is what a log says of a/one.
func history(records ...record) map[string]map[uint64]record {
	out := map[string]map[uint64]record{"a/one": {}}
	for _, r := range records {
		out["a/one"][r.Revision] = r
	}
	return out
}

func TestLostAndInventedVersionsAreFound(t *testing.T) {
	src, s := &Source{Name: "it"}, watched()
	whole := []record{{Op: "MODIFIED", Revision: 12}, {Op: "DELETED", Revision: 14}, {Op: "MODIFIED", Revision: 32}}
	both := func(l *ledger, have map[string]map[uint64]record) error {
		var n Heard
		if err := src.forward(&n, s, l, have, 10, 40); err != nil {
			return err
		}
		return src.backward(s, have, 10, 40)
	}
	if err := both(&ledger{}, history(whole...)); err != nil {
		t.Errorf("a whole history differs: %v", err)
	}
	mustDiffer(t, both(&ledger{}, history(whole[0], whole[2])), "rv:14")
	mustDiffer(t, both(&ledger{}, history(whole[0], record{Op: "MODIFIED", Revision: 14}, whole[2])), "rv:14")
	mustDiffer(t, both(&ledger{}, history(append(whole, record{Op: "MODIFIED", Revision: 13})...)), "rv:13")
	if err := both(&ledger{}, history(append(whole, record{Op: "MODIFIED", Revision: 27}, record{Op: "MODIFIED", Revision: 13, Inferred: true})...)); err != nil {
		t.Errorf("what the checker cannot have seen, or was inferred, counts as invented: %v", err)
	}
	gap := &ledger{}
	gap.Gaps = append(gap.Gaps, struct {
		From, To cut
		Cause    string
	}{From: cut{Revision: 13}, To: cut{Revision: 14}})
	if err := both(gap, history(whole[0], whole[2])); err != nil {
		t.Errorf("what lies in a gap counts as lost: %v", err)
	}
}

// answering is a program whose log is that of watched, and whose journal is trimmed while it is read.
func answering(t *testing.T, get string) *Source {
	t.Helper()
	dir := t.TempDir()
	status := `{"catalog":{"from":{"revision":%d},"to":{"revision":40},"resources":[{"resource":"configmaps","first":{"revision":1},"watermark":{"revision":40}}]}}`
	program := filepath.Join(dir, "tidemark")
	script := "#!/bin/sh\ncase $1 in\nlog) echo '" + `{"op":"DELETED","resource":"configmaps","namespace":"a","name":"one","revision":14}` + "'; " +
		"echo '" + `{"op":"MODIFIED","resource":"configmaps","namespace":"a","name":"one","revision":32}` + "'; touch " + dir + "/trimmed ;;\n" +
		"get) " + get + " ;;\n" +
		"*) if [ -e " + dir + "/trimmed ]; then echo '" + fmt.Sprintf(status, 13) + "'; else echo '" + fmt.Sprintf(status, 10) + "'; fi ;;\nesac\n"
	if err := os.WriteFile(program, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	return &Source{Name: "it", Binary: program, Dir: dir}
}

// A journal may be trimmed between a status and the log.
func TestWhatWasTrimmedMeanwhileIsNotLost(t *testing.T) {
	src := answering(t, `echo '{"items":[`+configMap("thirty-two")+`]}'`)
	n, upTo, err := src.CompareHistory(t.Context(), &Model{all: map[string]*stream{"configmaps": watched()}}, 10, time.Now())
	if err != nil || n.Versions != 2 || upTo != 32 || n.Bodies != 1 {
		t.Errorf("%+v up to %d, %v", n, upTo, err)
	}
}

func TestAVersionWithAnotherBodyIsFound(t *testing.T) {
	src := answering(t, `echo '{"items":[`+configMap("thirty-three")+`]}'`)
	_, _, err := src.CompareHistory(t.Context(), &Model{all: map[string]*stream{"configmaps": watched()}}, 10, time.Now())
	mustDiffer(t, err, "rv:32")
	_, _, err = answering(t, "exit 1").CompareHistory(t.Context(), &Model{all: map[string]*stream{"configmaps": watched()}}, 10, time.Now())
	if !errors.Is(err, ErrFailed) {
		t.Errorf("found %v", err)
	}
}

func TestRestoredObjectsAreComparedButForWhatIsGivenAnew(t *testing.T) {
	deployment := func(uid, revision, image string) []byte {
		return fmt.Appendf(nil, `{"metadata":{"name":"web","uid":%q,"annotations":{"deployment.kubernetes.io/revision":%q,"x":"y"}},"spec":{"image":%q},"status":{"n":1}}`, uid, revision, image)
	}
	src := &Source{Name: "it", Dir: t.TempDir()}
	r := &Resource{Name: "deployments.apps", Namespaced: true}
	then := map[string]map[string][]byte{r.Name: {"a/web": deployment("1", "7", "i:1")}}
	try := func(have map[string][]byte) error {
		_, err := src.restored(&Moment{RV: 9}, r, then, have, "a", "b")
		return err
	}
	if err := try(map[string][]byte{"web": deployment("2", "1", "i:1")}); err != nil {
		t.Errorf("a true restore differs: %v", err)
	}
	mustDiffer(t, try(map[string][]byte{"web": deployment("2", "1", "i:2")}), "a/web")
	mustDiffer(t, try(map[string][]byte{}), "no object")
	mustDiffer(t, try(map[string][]byte{"web": deployment("2", "1", "i:1"), "more": deployment("3", "1", "i:1")}), "a/more")
}

func TestNumbersAreComparedAsTheyWereWritten(t *testing.T) {
	one, err := decode([]byte(`{"spec":{"n":9007199254740993,"a":1}}`))
	if err != nil {
		t.Fatal(err)
	}
	other, err := decode([]byte(`{"spec":{"a":1,"n":9007199254740992}}`))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(canonical(one), canonical(other)) {
		t.Error("two numbers are one")
	}
}

func TestACommandThatFailsIsToldFromOneThatIsNotThatFar(t *testing.T) {
	program := filepath.Join(t.TempDir(), "tidemark")
	status := `{"catalog":{"from":{"revision":1},"to":{"revision":%d},"resources":[{"resource":"configmaps","first":{"revision":1},"watermark":{"revision":%d}}]}}`
	mo := &Moment{RV: 7, Resources: []Resource{{Name: "configmaps"}}}
	for _, c := range []struct {
		status, get string
		failed      bool
	}{
		{"exit 1", "", true},
		{"echo '" + fmt.Sprintf(status, 9, 9) + "'", "exit 2", true},
		{"echo '" + fmt.Sprintf(status, 9, 6) + "'", "exit 2", false},
		{"echo '" + fmt.Sprintf(status, 6, 9) + "'", "exit 2", false},
	} {
		script := "#!/bin/sh\ncase $1 in\nstatus) " + c.status + " ;;\n*) " + c.get + " ;;\nesac\n"
		if err := os.WriteFile(program, []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
		_, err := (&Source{Name: "it", Binary: program}).Compare(t.Context(), mo)
		if !errors.Is(err, ErrNotYet) || errors.Is(err, ErrFailed) != c.failed {
			t.Errorf("status: %s, get: %s: %v", c.status, c.get, err)
		}
	}
}

func TestALedgerMayNotTakeBackWhatItSaid(t *testing.T) {
	one := func(first, watermark uint64, gap ...uint64) *Ledgers {
		l := &ledger{Resource: "configmaps", First: cut{Revision: first}, Watermark: cut{Revision: watermark}}
		if len(gap) > 0 {
			l.Gaps = append(l.Gaps, struct {
				From, To cut
				Cause    string
			}{From: cut{Revision: gap[0]}, To: cut{Revision: gap[1]}})
		}
		return &Ledgers{all: map[string]*ledger{"configmaps": l}}
	}
	s := &Source{Name: "it"}
	for _, l := range []*Ledgers{{}, one(0, 0), one(5, 10), one(5, 10), one(5, 20), one(5, 40, 20, 40), one(5, 41, 20, 40), one(5, 50)} {
		if err := s.keeps(l); err != nil {
			t.Fatal(err)
		}
	}
	mustDiffer(t, s.keeps(&Ledgers{}), "no ledger")
	mustDiffer(t, s.keeps(one(51, 60)), "one at rv:51")
	mustDiffer(t, s.keeps(one(0, 60)), "one at rv:0")
	mustDiffer(t, s.keeps(one(5, 49)), "all up to rv:49")
	mustDiffer(t, s.keeps(one(5, 60, 49, 60)), "a gap from rv:49")
}

func TestModelKnowsWhenTheClusterWasWhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &stream{Resource: Resource{Name: "configmaps"}, objects: map[string][]version{}}
		m := &Model{all: map[string]*stream{"configmaps": s}}
		began := time.Now()
		m.learn(s, nil, 10)
		for rv := uint64(11); rv <= 20; rv++ {
			time.Sleep(time.Second)
			m.see(s, "BOOKMARK", item{rv: rv})
		}
		at := func(seconds int) time.Time { return began.Add(time.Duration(seconds) * time.Second) }
		if from, to := m.When(13, 17); !from.Equal(at(3)) || !to.Equal(at(7)) {
			t.Errorf("%s to %s", from, to)
		}
		if from, to := m.When(5, 99); !from.IsZero() || !to.Equal(at(10)) {
			t.Errorf("%s to %s", from, to)
		}
		if !m.Broke("configmaps", at(0), at(1)) || m.Broke("configmaps", at(1), at(9)) || m.Broke("secrets", at(0), at(1)) {
			t.Error("when its watch broke, it does not know")
		}
	})
}
