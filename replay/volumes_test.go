package replay

import (
	"strings"
	"testing"
)

func TestAClaimGrowsToItsContent(t *testing.T) {
	for asked, want := range map[string]string{"1Gi": "2Gi", "2Gi": "2Gi", "5Gi": "5Gi"} {
		claim := object{"spec": map[string]any{"resources": map[string]any{"requests": map[string]any{"storage": asked}}}}
		grow(claim, 2<<30)
		if got := claim.str("spec", "resources", "requests", "storage"); got != want {
			t.Errorf("a claim of %s for 2 GiB asks for %s, want %s", asked, got, want)
		}
	}
}

func TestAllObjectsOfASnapshotAreTold(t *testing.T) {
	for group, want := range map[string]bool{"": false, "g": true} {
		it := &Item{Snapshot: "tidemark-data-1", Volume: &Volume{Snapshot: &VolumeSnapshot{Group: group}}}
		if got := it.snapshotObjects(); strings.Contains(got, "VolumeGroupSnapshotContent") != want || !strings.Contains(got, "VolumeSnapshotContent tidemark-data-1") && !want {
			t.Errorf("of group %q: %s", group, got)
		}
	}
}
