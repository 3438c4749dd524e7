package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/tidemark-backup/tidemark/journal/capture"
)

// auditLog counts the requests of each user: the API server's own metrics do not tell them apart, and controllers ask a
// lot when objects are restored. The server writes one line per request of the users under test, as it comes in.
type auditLog struct {
	policy, file string
}

// auditPolicy names all users under test: of others nothing is logged.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [ResponseStarted, ResponseComplete, Panic]
rules:
- level: Metadata
  users: [velero, tidemark, recorder, informer, reader]
- level: None
`

func newAuditLog(dir string) (*auditLog, error) {
	a := &auditLog{policy: filepath.Join(dir, "audit-policy.yaml"), file: filepath.Join(dir, "audit.log")}
	if err := os.WriteFile(a.policy, []byte(auditPolicy), 0o600); err != nil {
		return nil, err
	}
	return a, os.WriteFile(a.file, nil, 0o600)
}

func (a *auditLog) flags() []string {
	return []string{"--audit-policy-file=" + a.policy, "--audit-log-path=" + a.file, "--audit-log-maxsize=100000"}
}

// mark is the log's present end.
func (a *auditLog) mark() (int64, error) {
	info, err := os.Stat(a.file)
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// since counts a user's requests by verb since a mark. Those of the daemon's continuous comparison with the cluster, which goes on
// at all times, whatever else is measured, have "audit" for a verb.
func (a *auditLog) since(mark int64, user string) (map[string]int, error) {
	f, err := os.Open(a.file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if _, err := f.Seek(mark, io.SeekStart); err != nil {
		return nil, err
	}
	return countRequests(f, user)
}

func countRequests(r io.Reader, user string) (map[string]int, error) {
	counts := map[string]int{}
	in := bufio.NewReader(r)
	for {
		text, err := in.ReadBytes('\n')
		if err != nil { // what has no end yet is of a request that comes in just now
			return counts, nil
		}
		var request struct {
			Verb      string
			UserAgent string
			User      struct{ Username string }
		}
		if err := json.Unmarshal(bytes.TrimSpace(text), &request); err != nil {
			return nil, fmt.Errorf("audit log: %w", err)
		}
		if request.User.Username != user {
			continue
		}
		if request.UserAgent == capture.AuditAgent {
			request.Verb = "audit"
		}
		counts[request.Verb]++
	}
}
