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
	version, ldflags := versionOf([]byte("require (\n\tk8s.io/kubernetes v1.36.3\n)\n"))
	if version != "v1.36.3" || !strings.Contains(ldflags, "version.gitMinor=36 ") {
		t.Errorf("version %q, linker flags %q", version, ldflags)
	}
}
