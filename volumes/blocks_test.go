package volumes

import (
	"context"
	"fmt"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tidemark-backup/tidemark/volumes/csi"
	"github.com/tidemark-backup/tidemark/volumes/policy"
)

// devices are backups of devices, oldest first; each letter of their kinds says what one has: b a base, s a snapshot that is kept, c content
// alone, f it failed and has a base all the same.
func devices(volume, kinds string) (all []*Backup) {
	for i, kind := range kinds {
		b := &Backup{Metadata: Meta{Namespace: "shop", Name: fmt.Sprintf("%s-%d", volume, i)}, Spec: Spec{Claim: volume, Source: &Source{Driver: "d", Handle: "h"}}}
		b.Status = Status{Phase: Done, Content: &Content{Location: "here", ID: "k"}}
		h := &csi.Handle{ID: b.Metadata.Name}
		switch kind {
		case 'b':
			b.Status.Base = h
		case 's':
			b.Status.Snapshot = h
		case 'f':
			b.Status.Phase, b.Status.Base = Failed, h
		}
		all = append(all, b)
	}
	return all
}

// TestOldBases: the newest snapshot that can be compared with stays, whatever has come after it.
func TestOldBases(t *testing.T) {
	both := append(devices("one", "bcbcf"), devices("two", "bs")...)
	for _, c := range []struct {
		volume string
		all    bool
		want   []string
	}{
		{"", false, []string{"two-0", "one-0"}},
		{"shop/one", false, []string{"one-0"}},
		{"shop/one", true, []string{"one-2", "one-0"}},
		{"shop/three", true, nil},
	} {
		var have []string
		for _, b := range oldBases(both, c.volume, c.all) {
			have = append(have, b.Metadata.Name)
		}
		if !slices.Equal(have, c.want) {
			t.Errorf("of %q, all %t: %v, want %v", c.volume, c.all, have, c.want)
		}
	}
}

// TestBaseIsOfTheSameVolume: a claim that was made anew under its name, or moved to another driver or store, is not compared.
func TestBaseIsOfTheSameVolume(t *testing.T) {
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "one"}}
	of := func(driver, handle string) *task {
		return &task{Volume: policy.Volume{Claim: claim, PV: &corev1.PersistentVolume{Spec: corev1.PersistentVolumeSpec{PersistentVolumeSource: corev1.PersistentVolumeSource{
			CSI: &corev1.CSIPersistentVolumeSource{Driver: driver, VolumeHandle: handle},
		}}}}}
	}
	for _, c := range []struct {
		task           *task
		location, want string
	}{
		{of("d", "h"), "here", "one-2"},
		{of("d", "other"), "here", ""},
		{of("other", "h"), "here", ""},
		{of("d", "h"), "there", ""},
	} {
		have := ""
		if b := baseOf(devices("one", "bcbf"), c.task, c.location); b != nil {
			have = b.Metadata.Name
		}
		if have != c.want {
			t.Errorf("base %q, want %q", have, c.want)
		}
	}
}

// TestKeepBase: a snapshot is kept to compare with only when a backup is done that the driver can tell of, and one of a group never.
func TestKeepBase(t *testing.T) {
	for name, c := range map[string]struct {
		t    task
		h    *csi.Handle
		want bool
	}{
		"done":    {task{tracked: true}, &csi.Handle{ID: "s"}, true},
		"failed":  {task{tracked: true, err: context.Canceled}, &csi.Handle{ID: "s"}, false},
		"no list": {task{}, &csi.Handle{ID: "s"}, false},
		"a group": {task{tracked: true}, &csi.Handle{ID: "s", Group: "g"}, false},
		"none":    {task{tracked: true}, nil, false},
	} {
		c.t.backup = &Backup{Status: Status{Snapshot: c.h}}
		if have := (&Keeper{}).keepBase(&c.t); have != c.want || have != (c.t.backup.Status.Base != nil) || have && c.t.backup.Status.Snapshot != nil {
			t.Errorf("%s: %t, %+v", name, have, c.t.backup.Status)
		}
	}
}
