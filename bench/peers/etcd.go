package main

import (
	"context"
	"os"
	"path/filepath"
)

// etcdTurn saves etcd's whole state and makes a data directory out of it. What this cannot do is said in the report.
func (l *lab) etcdTurn(ctx context.Context) (all []sample, err error) {
	dir, _, err := l.turn(ctx, "etcd")
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "snapshot.db")
	for _, step := range []struct {
		scenario, program string
		args              []string
	}{
		{"backup-first", l.etcdctl, []string{"snapshot", "save", file, "--endpoints", l.cluster.EtcdEndpoint()}},
		{"backup-unchanged", l.etcdctl, []string{"snapshot", "save", file + "-2", "--endpoints", l.cluster.EtcdEndpoint()}},
		{"restore-all", l.etcdutl, []string{"snapshot", "restore", file, "--data-dir", filepath.Join(dir, "data")}},
	} {
		server, err := l.serverCounters(ctx)
		if err != nil {
			return nil, err
		}
		r, err := l.run(ctx, nil, step.program, step.args...)
		if err != nil {
			return nil, err
		}
		now, err := l.serverCounters(ctx)
		if err != nil {
			return nil, err
		}
		info, err := os.Stat(file)
		if err != nil {
			return nil, err
		}
		l.say("%-14s %-18s %6.1f s", "etcd", step.scenario, r.wall.Seconds())
		all = append(all, sample{Tool: "etcd", Scenario: step.scenario, Values: map[string]float64{
			"seconds": r.wall.Seconds(), "cpu_seconds": r.cpu.Seconds(), "peak_bytes": float64(r.peak), "stored_bytes": float64(info.Size()),
			"apiserver_cpu_seconds": now.cpu - server.cpu,
		}})
	}
	return all, nil
}
