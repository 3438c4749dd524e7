package cli

import (
	"slices"
	"testing"
)

func TestNamespacePatterns(t *testing.T) {
	all := []string{"default", "shop", "shop-eu", "shop-us", "team-a", "team-b"}
	for _, c := range []struct{ include, exclude, want []string }{
		{nil, nil, all},
		{[]string{"shop"}, nil, []string{"shop"}},
		{[]string{"shop*"}, nil, []string{"shop", "shop-eu", "shop-us"}},
		{[]string{"shop-*", "team-?"}, []string{"*-us", "team-b"}, []string{"shop-eu", "team-a"}},
		{nil, []string{"shop*"}, []string{"default", "team-a", "team-b"}},
		{[]string{"*"}, []string{"default"}, []string{"shop", "shop-eu", "shop-us", "team-a", "team-b"}},
		{[]string{"nope"}, nil, nil},
	} {
		if got := chosen(all, c.include, c.exclude); !slices.Equal(got, c.want) {
			t.Errorf("include %v, exclude %v: %v, want %v", c.include, c.exclude, got, c.want)
		}
	}
}
