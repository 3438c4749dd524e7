package repository

import (
	"os"
	"strings"
	"testing"
)

// path is where a file of the store lies.
func (w *world) path(name string) string {
	return strings.TrimPrefix(w.store.String(), "dir://") + "/" + name
}

func maintain(t *testing.T, r *Repository, now bool) {
	t.Helper()
	_, err := r.Maintain(t.Context(), Maintenance{Now: now})
	ok(t, err)
}

// When maintenance was done last is of no use once it cannot be read, and must not keep it from being done.
func TestADamagedScheduleIsBegunAnew(t *testing.T) {
	w, dir := newWorld(t), t.TempDir()
	r := w.open()
	write(t, dir+"/a", "a")
	w.back(r, dir)
	did, err := r.Maintain(t.Context(), Maintenance{})
	ok(t, err)
	if !did.Full || did.Freed > 0 || did.Packs == 0 || did.Bytes == 0 {
		t.Errorf("%+v", did)
	}
	for _, text := range []string{"", "damaged", strings.Repeat("damaged", 100)} {
		ok(t, os.WriteFile(w.path("volumes/c1/kopia/kopia.maintenance"), []byte(text), 0o600))
		did, err := r.Maintain(t.Context(), Maintenance{})
		ok(t, err)
		if !did.Rescheduled {
			t.Errorf("%+v", did)
		}
		did, err = r.Maintain(t.Context(), Maintenance{})
		ok(t, err)
		if did.Rescheduled || did.Full {
			t.Errorf("%+v", did)
		}
	}
}
