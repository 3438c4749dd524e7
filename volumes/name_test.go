package volumes

import (
	"errors"
	"strings"
	"testing"
)

// A name is asked for by restores: it belongs to one run, of however many claims. A schedule's are its own business.
func TestANameIsGivenOnce(t *testing.T) {
	c := newCluster(t, Cluster{}, append(claim("shop", "data", nil), claim("shop", "more", nil)...)...)
	by, err := c.back(ClaimsRequest{Namespaces: []string{"shop"}, Run: "before-upgrade"})
	ok(t, err)
	if len(by) != 2 || by["data"].Spec.Run != "before-upgrade" {
		t.Fatalf("%v", by)
	}
	for name, want := range map[string]string{
		"before-upgrade":            "is in use",
		by["more"].Metadata.Name:    "is in use",
		"Before":                    "cannot be a name",
		"a/b":                       "cannot be a name",
		"\x1b[31m":                  "cannot be a name",
		strings.Repeat("long", 100): "cannot be a name",
	} {
		if _, err := c.k.BackClaims(t.Context(), ClaimsRequest{Namespaces: []string{"shop"}, Run: name}, nil); !errors.Is(err, ErrRequest) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", name, err)
		}
	}
	_, err = c.back(ClaimsRequest{Namespaces: []string{"shop"}, Run: "Nightly_1", Origin: Scheduled("Nightly_1")})
	ok(t, err)
}
