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
	file, second := filepath.Join(dir, "snapshot.db"), filepath.Join(dir, "snapshot-2.db")
	for _, step := range []struct {
		scenario, program string
		args              []string
		saved             string // file that it writes
	}{
		{"backup-first", l.etcdctl, []string{"snapshot", "save", file, "--endpoints", l.cluster.EtcdEndpoint()}, file},
		{"backup-unchanged", l.etcdctl, []string{"snapshot", "save", second, "--endpoints", l.cluster.EtcdEndpoint()}, second},
		{"restore-all", l.etcdutl, []string{"snapshot", "restore", file, "--data-dir", filepath.Join(dir, "data")}, ""},
	} {
		s, err := l.measure(ctx, subject{tool: "etcd"}, step.scenario, func() (map[string]float64, error) {
			r, err := l.run(ctx, nil, step.program, step.args...)
			values := r.values()
			if err != nil || step.saved == "" {
				return values, err
			}
			info, err := os.Stat(step.saved)
			if err != nil {
				return nil, err
			}
			values["stored_bytes"], values["written_bytes"] = float64(info.Size()), float64(info.Size())
			return values, nil
		})
		if err != nil {
			return all, err
		}
		all = append(all, s)
	}
	return all, nil
}
