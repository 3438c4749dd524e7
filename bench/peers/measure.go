package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"k8s.io/client-go/rest"
)

// subject is what is measured: a program that runs, and the bucket that it stores in (empty: it has none).
type subject struct {
	tool   string
	user   string // under which it talks to the API server
	pid    int    // 0: nothing runs but the commands that the measured function tells of
	bucket string
	// start, when set, starts the program: all that it takes from its first moment on is counted.
	start func() (pid int, err error)
}

// measure does one thing and tells what it cost. The values that f returns are kept as well; when seconds is
// among them it is used in place of the time that f took.
func (l *lab) measure(ctx context.Context, s subject, scenario string, f func() (map[string]float64, error)) (sample, error) {
	sent, err := l.audit.mark()
	if err != nil {
		return sample{}, err
	}
	before, err := l.stored(ctx, s.bucket)
	if err != nil {
		return sample{}, err
	}
	counters, err := l.serverCounters(ctx)
	if err != nil {
		return sample{}, err
	}
	servers, err := watchServers(l.s3.Pid(), l.apiserver, l.etcd)
	if err != nil {
		return sample{}, err
	}
	began := time.Now()
	if s.start != nil {
		if s.pid, err = s.start(); err != nil {
			return sample{}, err
		}
	}
	own, err := watchTool(func() int { return int(l.command.Load()) }, s.pid)
	if err != nil {
		return sample{}, err
	}
	if s.start != nil {
		own.began[0] = 0
	}
	idle := ownCPU()
	values, err := f()
	took, bench := time.Since(began), ownCPU()-idle
	tool, server := own.end()[0], servers.end()
	if err != nil {
		return sample{}, fmt.Errorf("%s: %s: %w", s.tool, scenario, err)
	}
	all := map[string]float64{
		"seconds": took.Seconds(), "cpu_seconds": tool.cpu.Seconds(), "peak_bytes": float64(tool.peak), "anonymous_peak_bytes": float64(tool.anonymous), "store_cpu_seconds": server[0].cpu.Seconds(),
		"bench_cpu_seconds": bench.Seconds(), "own_peak_bytes": float64(tool.own), "others_peak_bytes": float64(tool.others),
		"store_peak_bytes": float64(server[0].peak), "apiserver_peak_bytes": float64(server[1].peak), "etcd_peak_bytes": float64(server[2].peak),
	}
	now, err := l.serverCounters(ctx)
	if err != nil {
		return sample{}, err
	}
	all["apiserver_cpu_seconds"] = now.cpu - counters.cpu
	all["apiserver_requests"] = now.requests - counters.requests
	verbs, err := l.audit.since(sent, s.user)
	if err != nil {
		return sample{}, err
	}
	all["requests"], all["requests_list"], all["requests_audit"] = 0, 0, 0
	for verb, n := range verbs {
		all["requests"] += float64(n)
		all["requests_"+verb] = float64(n)
	}
	after, err := l.stored(ctx, s.bucket)
	if err != nil {
		return sample{}, err
	}
	all["written_bytes"] = float64(added(before, after))
	all["stored_bytes"] = all["written_bytes"] // unless the tool merges what it has, and tells
	for name, v := range values {
		switch name {
		case "cli_cpu_seconds":
			all["cpu_seconds"] += v
		case "cli_peak_bytes":
			if s.pid == 0 { // there is nothing else, and it may be over before anybody has looked
				all["peak_bytes"] = v
			}
		}
		all[name] = v
	}
	l.say("%-14s %-18s %6.1f s, CPU %.1f s, %4.0f MiB, %.0f requests, %.1f MB stored", s.tool, scenario, all["seconds"], all["cpu_seconds"], all["peak_bytes"]/(1<<20), all["requests"], all["stored_bytes"]/1e6)
	return sample{Tool: s.tool, Scenario: scenario, Values: all}, nil
}

// serverCounters are what the API server counts of itself.
type serverCounters struct{ cpu, requests float64 }

func (l *lab) serverCounters(ctx context.Context) (c serverCounters, err error) {
	config := l.cluster.Config()
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return c, err
	}
	defer client.CloseIdleConnections()
	text, err := fetch(ctx, client, config.Host+"/metrics")
	if err != nil {
		return c, err
	}
	c.cpu = sumMetric(text, "process_cpu_seconds_total")
	c.requests = sumMetric(text, "apiserver_request_total")
	return c, nil
}

func fetch(ctx context.Context, client *http.Client, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s: %s", url, resp.Status)
	}
	return text, err
}

// sumMetric adds up all series of a metric in Prometheus' text format.
func sumMetric(text []byte, name string) (sum float64) {
	for in := bufio.NewScanner(bytes.NewReader(text)); in.Scan(); {
		rest, ok := strings.CutPrefix(in.Text(), name)
		if !ok || rest == "" || (rest[0] != '{' && rest[0] != ' ') {
			continue
		}
		if v, err := strconv.ParseFloat(rest[strings.LastIndexByte(rest, ' ')+1:], 64); err == nil {
			sum += v
		}
	}
	return sum
}
