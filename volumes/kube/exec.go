package kube

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"

	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/util/exec"
	"k8s.io/streaming/pkg/httpstream"
)

// Executed is what became of a program.
type Executed struct {
	Exit int
	// Output is what it wrote on both streams, the end of it where it was too much.
	Output string
}

// maxOutput is how much of a program's output is kept, in bytes.
const maxOutput = 4 << 10

// tail keeps the end of what is written. Both streams of a program are copied into it at once, and still may be when a program that took too long is
// not waited for any more.
type tail struct {
	mu sync.Mutex
	b  []byte
}

// Write implements io.Writer.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := len(p)
	p = p[max(0, n-maxOutput):]
	over := max(0, len(t.b)+len(p)-maxOutput)
	t.b = append(append(t.b[:0], t.b[over:]...), p...)
	return n, nil
}

// String is what is kept.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.ToValidUTF8(t.b, []byte("?")))
}

// Exec runs a program in a container, through the API server. A program that ends with another status than 0 is no error here.
func (c *Client) Exec(ctx context.Context, namespace, pod, container string, command []string) (Executed, error) {
	u, err := url.Parse(c.config.Host)
	if err != nil || u.Host == "" {
		u = &url.URL{Scheme: "https", Host: c.config.Host}
	}
	u.Path = strings.TrimSuffix(u.Path, "/") + "/api/v1/namespaces/" + namespace + "/pods/" + pod + "/exec"
	u.RawQuery = url.Values{"container": {container}, "command": command, "stdout": {"true"}, "stderr": {"true"}}.Encode()
	ws, err := remotecommand.NewWebSocketExecutor(c.config, "GET", u.String())
	if err != nil {
		return Executed{}, err
	}
	spdy, err := remotecommand.NewSPDYExecutor(c.config, "POST", u)
	if err != nil {
		return Executed{}, err
	}
	e, err := remotecommand.NewFallbackExecutor(ws, spdy, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
	if err != nil {
		return Executed{}, err
	}
	var out tail
	err = e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: &out, Stderr: &out})
	done := Executed{Output: out.String()}
	var exit exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.Exited():
		done.Exit = exit.ExitStatus()
		return done, nil
	case ctx.Err() != nil:
		return done, context.Cause(ctx)
	case err != nil:
		return done, fmt.Errorf("run a program in container %s of Pod %s: %w", container, pod, err)
	}
	return done, nil
}
