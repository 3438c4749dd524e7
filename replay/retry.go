package replay

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	utilnet "k8s.io/apimachinery/pkg/util/net"
)

const (
	maxTries   = 7
	firstDelay = 200 * time.Millisecond
	maxDelay   = 10 * time.Second
)

// retry does one request, and again with growing, jittered delays while the failure is one
// that passes: too many requests, a server error, a lost connection. A Retry-After of the
// server is honoured. Conflicts are the caller's: they need a new look at the object.
func retry[T any](ctx context.Context, do func(context.Context) (T, error)) (T, error) {
	v, _, err := retryCounting(ctx, do)
	return v, err
}

// retryCounting also tells whether an earlier try may have reached the server although its
// answer was lost.
func retryCounting[T any](ctx context.Context, do func(context.Context) (T, error)) (v T, unsure bool, err error) {
	delay := firstDelay
	for try := 1; ; try++ {
		v, err = do(ctx)
		if err == nil || try == maxTries || ctx.Err() != nil || !passing(err) {
			return v, unsure, err
		}
		unsure = unsure || !apierrors.IsTooManyRequests(err) && !apierrors.IsForbidden(err)
		wait := delay/2 + rand.N(delay)
		if s, ok := apierrors.SuggestsClientDelay(err); ok {
			wait = max(wait, time.Duration(s)*time.Second)
		}
		if !sleep(ctx, wait) {
			return v, unsure, context.Cause(ctx)
		}
		delay = min(2*delay, maxDelay)
	}
}

// sleep waits and reports whether the context still lives.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// passing reports whether the same request may succeed a little later.
func passing(err error) bool {
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		s := status.Status()
		if strings.Contains(s.Message, "failed calling webhook") {
			return false // its backend is down, and often waits for what is restored after it
		}
		if isUntyped(s) {
			return false
		}
		if s.Code == http.StatusForbidden {
			return noDefaultAccount(s.Message)
		}
		switch s.Code {
		case http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			return true
		}
		return false
	}
	var network net.Error
	var wrapped *url.Error
	return errors.As(err, &network) || errors.As(err, &wrapped) || utilnet.IsProbableEOF(err) || utilnet.IsConnectionReset(err) || utilnet.IsConnectionRefused(err)
}

// noDefaultAccount reports whether a Pod was refused because its namespace has no default ServiceAccount. A controller makes it a moment after the
// namespace; the API server waits for it itself, but for two seconds at most, and busy controllers take longer.
func noDefaultAccount(message string) bool {
	return strings.Contains(message, "error looking up service account") && strings.Contains(message, `serviceaccount "default" not found`)
}
