package replay

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

func TestRetryOnlyWhatPasses(t *testing.T) {
	gr := schema.GroupResource{Resource: "pods"}
	lost := &url.Error{Op: "Post", Err: syscall.ECONNRESET}
	for _, tc := range []struct {
		name   string
		err    error
		again  bool
		unsure bool
	}{
		{"too many requests", apierrors.NewTooManyRequests("", 1), true, false},
		{"a server error", apierrors.NewInternalError(errors.New("x")), true, true},
		{"unavailable", apierrors.NewServiceUnavailable("x"), true, true},
		{"a timeout", apierrors.NewTimeoutError("x", 0), true, true},
		{"a lost connection", lost, true, true},
		{"a webhook that is down", apierrors.NewInternalError(errors.New(`failed calling webhook "x"`)), false, false},
		{"a conflict", apierrors.NewConflict(gr, "x", nil), false, false},
		{"forbidden", apierrors.NewForbidden(gr, "x", nil), false, false},
		{"a namespace so new that it has no default account", apierrors.NewForbidden(gr, "x", errors.New(`error looking up service account shop/default: serviceaccount "default" not found`)), true, false},
		{"an account that nobody makes", apierrors.NewForbidden(gr, "x", errors.New(`error looking up service account shop/web: serviceaccount "web" not found`)), false, false},
		{"not found", apierrors.NewNotFound(gr, "x"), false, false},
		{"invalid", apierrors.NewBadRequest("x"), false, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			tries := 0
			v, unsure, err := retryCounting(t.Context(), func(context.Context) (int, error) {
				if tries++; tries == 1 {
					return 0, fmt.Errorf("wrapped: %w", tc.err)
				}
				return 7, nil
			})
			if again := tries == 2 && v == 7 && err == nil; again != tc.again || unsure != tc.unsure {
				t.Errorf("%s: %d tries, %d, unsure %v, %v", tc.name, tries, v, unsure, err)
			}
		})
	}
}

func TestRetryHonoursRetryAfterAndEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start, tries := time.Now(), 0
		_, err := retry(t.Context(), func(context.Context) (int, error) {
			tries++
			return 0, apierrors.NewTooManyRequests("", 20)
		})
		if took := time.Since(start); tries != maxTries || err == nil || took < (maxTries-1)*20*time.Second || took > 200*time.Second {
			t.Errorf("%d tries in %s: %v", tries, took, err)
		}
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, errors.New("enough"))
		defer cancel()
		start = time.Now()
		_, err = retry(ctx, func(context.Context) (int, error) { return 0, apierrors.NewTooManyRequests("", 60) })
		if took := time.Since(start); took > 2*time.Second || err == nil || err.Error() != "enough" {
			t.Errorf("cancelled after %s: %v", took, err)
		}
	})
}

func TestConflictAboutAQuotaIsKnown(t *testing.T) {
	aPod, aQuota := &Item{Resource: schema.GroupResource{Resource: "pods"}}, &Item{Resource: quotas}
	of := func(gr schema.GroupResource) error {
		return fmt.Errorf("create: %w", apierrors.NewConflict(gr, "x", nil))
	}
	if !ofQuota(aPod, of(quotas)) {
		t.Error("a Pod that its quota was busy for")
	}
	if ofQuota(aPod, of(aPod.Resource)) || ofQuota(aQuota, of(quotas)) || ofQuota(aPod, apierrors.NewForbidden(quotas, "x", nil)) || ofQuota(aPod, nil) {
		t.Error("what is no conflict about somebody else's quota")
	}
}

func TestLimiterFollowsTheServer(t *testing.T) {
	l := newLimiter(0, 5)
	// turns has so many turns at once, with more that wait for theirs.
	turns := func(n int, took time.Duration, throttled int64) {
		t.Helper()
		l.limit += n // whatever the limit is
		for range n {
			if !l.acquire(t.Context()) {
				t.Fatal("no turn")
			}
		}
		l.limit -= n
		l.waiting = 1
		for range n {
			l.release(took, throttled)
		}
		l.waiting = 0
	}
	is := func(want int, when string) {
		t.Helper()
		if l.limit != want {
			t.Errorf("%s: %d at once, want %d", when, l.limit, want)
		}
	}
	turns(16, fastAnswer+1, 5)
	is(16, "answers that are not fast")
	turns(16, time.Millisecond, 5)
	is(32, "a round of fast answers")
	for range 100 {
		l.acquire(t.Context())
		l.release(time.Millisecond, 5)
	}
	is(32, "fast answers that nobody waits behind")
	turns(1000, time.Millisecond, 5)
	is(mostParallel, "fast answers")
	for i := range int64(64) { // each of those that run is asked for patience
		l.limit += 64
		l.acquire(t.Context())
		l.limit -= 64
		if i == 63 {
			for n := range int64(64) {
				l.release(time.Millisecond, 6+n)
			}
		}
	}
	is(mostParallel/2, "one burst of 429")
	turns(mostParallel/2, time.Millisecond, 69)
	is(mostParallel/2+1, "a round after it")
	turns(1, time.Millisecond, 70)
	is(16, "another 429")
	turns(1, time.Millisecond, 71)
	is(8, "and another")
	l = newLimiter(0, 0)
	turns(1000, time.Millisecond, 0)
	turns(mostParallel, 2*time.Second, 0)
	is(mostParallel/2, "a round of slow answers")
	turns(mostParallel/2, 2*time.Second, 0)
	turns(mostParallel/4, 2*time.Second, 0)
	is(firstParallel, "slow answers")
	l = newLimiter(3, 0)
	turns(100, time.Millisecond, 0)
	turns(3, 2*time.Second, 0)
	is(3, "parallel 3")
	for range 3 {
		l.acquire(t.Context())
	}
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan bool)
	go func() { got <- l.acquire(ctx) }()
	cancel()
	if <-got {
		t.Error("a fourth turn of three")
	}
}
