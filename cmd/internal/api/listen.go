package api

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"strings"
	"time"
)

// maxSocketPath is what the kernel takes as the path of a socket (sun_path), less its final 0.
const maxSocketPath = 107

// ListenUnix listens on a socket that only its owner can use (mode 0600). What a dead daemon
// left there is replaced; a living one is not.
func ListenUnix(path string) (net.Listener, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("listen on %s: the path of a socket may have %d bytes, this one has %d; choose a shorter --data-dir", path, maxSocketPath, len(path))
	}
	if err := removeStale(path); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l, err := listenPrivately(path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", path, err), l.Close())
	}
	return l, nil
}

func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return errors.New("there is a file of that name already, and it is no socket; move it away")
	}
	c, err := net.DialTimeout("unix", path, 2*time.Second)
	if err == nil {
		_ = c.Close()
		return errors.New("another daemon answers there; stop it first, or give this one its own --data-dir")
	}
	return os.Remove(path)
}

// Address is a parsed --listen.
type Address struct {
	Unix string // path of a socket, or
	TCP  string // host:port for https
}

// ParseAddress reads "unix:///path" or "https://host:port". Plain http is refused: history
// holds Secrets.
func ParseAddress(s string) (Address, error) {
	if path, ok := socketPath(s); ok {
		return Address{Unix: path}, nil
	}
	u, err := url.Parse(s)
	if err != nil {
		return Address{}, fmt.Errorf("listen address %q: want unix:///PATH or https://HOST:PORT", s)
	}
	switch {
	case u.Scheme == "https" && u.Port() != "" && (u.Path == "" || u.Path == "/"):
		return Address{TCP: u.Host}, nil
	case u.Scheme == "http":
		return Address{}, fmt.Errorf("listen address %q: plain http is refused, because history holds Secrets; use https://%s with --tls-cert, --tls-key and --token-file", s, u.Host)
	}
	return Address{}, fmt.Errorf("listen address %q: want unix:///PATH or https://HOST:PORT", s)
}

// socketPath reads "unix:///path". The path is taken as it is: it is a file's, not a URL's.
func socketPath(s string) (string, bool) {
	path, found := strings.CutPrefix(s, "unix://")
	return path, found && strings.HasPrefix(path, "/")
}

// CheckLoopback refuses an address that is not a loopback one.
func CheckLoopback(hostPort string) error {
	host, _, err := net.SplitHostPort(hostPort)
	if err != nil {
		return fmt.Errorf("metrics address %q: want HOST:PORT such as 127.0.0.1:9464", hostPort)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return fmt.Errorf("metrics address %q: plain http is for loopback only (127.0.0.1, ::1); for others use --listen https://%s", hostPort, hostPort)
	}
	return nil
}

// ListenLoopback listens for plain http on a loopback address; any other is refused.
func ListenLoopback(hostPort string) (net.Listener, error) {
	if err := CheckLoopback(hostPort); err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", hostPort)
	if err != nil {
		return nil, fmt.Errorf("listen for metrics: %w", err)
	}
	return l, nil
}
