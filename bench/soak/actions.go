package main

import (
	"encoding/json"
	"os"
	"sync"
	"time"
)

// actions is the log of all that is done to the cluster and found out about it: JSON lines with times.
type actions struct {
	mu    sync.Mutex
	file  *os.File
	began time.Time
}

// action is one line.
type action struct {
	Time   time.Time `json:"time"`
	After  float64   `json:"after"` // seconds since the beginning
	Who    string    `json:"who"`   // churn, fault, check
	Number int       `json:"n,omitempty"`
	What   string    `json:"what"`
	Detail any       `json:"detail,omitempty"`
	Error  string    `json:"error,omitempty"`
}

func openActions(path string) (*actions, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	return &actions{file: f, began: time.Now()}, nil
}

// note writes one line. An error of the log itself is not worth the end of a soak.
func (a *actions) note(who string, n int, what string, detail any, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	line := action{Time: time.Now().UTC(), After: time.Since(a.began).Seconds(), Who: who, Number: n, What: what, Detail: detail}
	if err != nil {
		line.Error = err.Error()
	}
	if b, err := json.Marshal(line); err == nil {
		_, _ = a.file.Write(append(b, '\n'))
	}
}

func (a *actions) close() error { return a.file.Close() }
