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

func TestLimiterFollowsTheServer(t *testing.T) {
	l := newLimiter(0, 5)
	answers := func(n int, took time.Duration, throttled int64) {
		t.Helper()
		for range n {
			if !l.acquire(t.Context()) {
				t.Fatal("no turn")
			}
			l.release(took, throttled)
		}
	}
	answers(firstParallel, time.Second, 5)
	if l.limit != firstParallel {
		t.Errorf("slow answers: %d at once, want %d", l.limit, firstParallel)
	}
	answers(firstParallel, time.Millisecond, 5)
	if l.limit != 2*firstParallel {
		t.Errorf("a round of fast answers: %d at once, want %d", l.limit, 2*firstParallel)
	}
	answers(1000, time.Millisecond, 5)
	if l.limit != mostParallel {
		t.Errorf("fast answers: %d at once, want %d", l.limit, mostParallel)
	}
	for range 4 { // four answers of one burst count once
		l.acquire(t.Context())
		l.release(time.Millisecond, 9)
	}
	if l.limit != mostParallel/2 {
		t.Errorf("after 429: %d at once, want %d", l.limit, mostParallel/2)
	}
	answers(mostParallel/2, time.Millisecond, 9)
	if l.limit != mostParallel/2+1 {
		t.Errorf("a round after 429: %d at once, want %d", l.limit, mostParallel/2+1)
	}
	l = newLimiter(3, 0)
	for range 100 {
		l.acquire(t.Context())
		l.release(time.Millisecond, 0)
	}
	if l.limit != 3 {
		t.Errorf("parallel 3: %d at once", l.limit)
	}
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
