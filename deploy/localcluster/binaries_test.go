package localcluster

import (
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/tidemark-backup/tidemark/deploy/localserver"
)

func TestAssetsOfKubebuilderAreUsedWhenNamed(t *testing.T) {
	t.Setenv("KUBEBUILDER_ASSETS", "/somewhere")
	dir, err := Binaries(t.Context(), io.Discard)
	if err != nil || dir != "/somewhere" {
		t.Errorf("Binaries = %q, %v; want KUBEBUILDER_ASSETS", dir, err)
	}
}

func TestOutsideACheckoutTheErrorNamesTheWayOut(t *testing.T) {
	t.Chdir(t.TempDir())
	_, err := binaries(t.Context(), "trimmed/binaries.go", "", io.Discard)
	if !errors.Is(err, localserver.ErrNoCheckout) || !strings.Contains(err.Error(), "KUBEBUILDER_ASSETS") {
		t.Errorf("binaries = %v, want ErrNoCheckout with KUBEBUILDER_ASSETS", err)
	}
}

func TestVersionOfTheControlPlane(t *testing.T) {
	for _, tc := range []struct{ gomod, version, minor string }{
		{"require (\n\tk8s.io/kubernetes v1.36.3\n)\n", "v1.36.3", "36"},
		{"require k8s.io/kubernetes v1.37.1\n\nrequire (\n\tk8s.io/api v0.37.1 // indirect\n)\n", "v1.37.1", "37"},
	} {
		version, ldflags := versionOf([]byte(tc.gomod))
		if version != tc.version || !strings.Contains(ldflags, "version.gitMinor="+tc.minor+" ") {
			t.Errorf("version %q, linker flags %q; want %s", version, ldflags, tc.version)
		}
	}
}
