package replay

import "testing"

func TestAClaimGrowsToItsContent(t *testing.T) {
	for asked, want := range map[string]string{"1Gi": "2Gi", "2Gi": "2Gi", "5Gi": "5Gi"} {
		claim := object{"spec": map[string]any{"resources": map[string]any{"requests": map[string]any{"storage": asked}}}}
		grow(claim, 2<<30)
		if got := claim.str("spec", "resources", "requests", "storage"); got != want {
			t.Errorf("a claim of %s for 2 GiB asks for %s, want %s", asked, got, want)
		}
	}
}
