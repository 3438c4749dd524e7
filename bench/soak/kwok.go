package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"runtime"

	"github.com/tidemark-backup/tidemark/deploy/localcluster"
	"github.com/tidemark-backup/tidemark/deploy/localserver"
)

var kwokVersion = regexp.MustCompile(`(?m)^(?:require)?\s*sigs\.k8s\.io/kwok (v\S+)`)

// kwokBinary returns the path of kwok, which plays the kubelets of nodes that are not there.
func kwokBinary(ctx context.Context, progress io.Writer) (string, error) {
	_, source, _, _ := runtime.Caller(0)
	b := localserver.Build{
		What: "the fake kubelet", Module: "bench/soak/kwok", Source: source, Cache: "kwok",
		Version: func(gomod []byte) (version, ldflags string) {
			if m := kwokVersion.FindSubmatch(gomod); m != nil {
				version = string(m[1])
			}
			return version, "-s -w"
		},
		Programs: []localserver.Program{{Name: "kwok", Package: "sigs.k8s.io/kwok/cmd/kwok"}},
		Takes:    "about 2 minutes on 2 cores",
	}
	dir, err := b.Dir(ctx, progress)
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "kwok"), nil
}

// startKwok plays the kubelets of all nodes of the cluster.
func startKwok(bin, dir string, c *localcluster.Cluster) (*localserver.Process, error) {
	config, err := c.ConfigFor("kwok", "system:masters")
	if err != nil {
		return nil, err
	}
	kubeconfig, stages := filepath.Join(dir, "kwok.kubeconfig"), filepath.Join(dir, "stages.yaml")
	if err := localcluster.WriteKubeconfig(config, kubeconfig); err != nil {
		return nil, err
	}
	if err := os.WriteFile(stages, []byte(kwokStages), 0o600); err != nil {
		return nil, err
	}
	p, err := localserver.Start(bin, []string{"--kubeconfig=" + kubeconfig, "--config=" + stages, "--manage-all-nodes=true", "--node-lease-duration-seconds=40"},
		[]string{"HOME=" + dir}, filepath.Join(dir, "kwok.log"))
	if err != nil {
		return nil, fmt.Errorf("start kwok: %w", err)
	}
	return p, nil
}

// kwokStages say what becomes of nodes and pods: nodes are ready, pods run at once, those of jobs end, and what is
// deleted goes.
const kwokStages = `apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata: {name: node-ready}
spec:
  resourceRef: {apiGroup: v1, kind: Node}
  selector:
    matchExpressions:
    - {key: '.status.conditions.[] | select( .type == "Ready" ) | .status', operator: NotIn, values: ["True"]}
  next:
    statusTemplate: |
      {{ $now := Now }}
      allocatable: {cpu: "64", memory: 256Gi, pods: "500"}
      capacity: {cpu: "64", memory: 256Gi, pods: "500"}
      conditions:
      - {type: Ready, status: "True", reason: KubeletReady, lastHeartbeatTime: {{ $now | Quote }}, lastTransitionTime: {{ $now | Quote }}}
      phase: Running
---
apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata: {name: pod-ready}
spec:
  resourceRef: {apiGroup: v1, kind: Pod}
  selector:
    matchExpressions:
    - {key: .metadata.deletionTimestamp, operator: DoesNotExist}
    - {key: .status.phase, operator: In, values: [Pending]}
  next:
    statusTemplate: |
      {{ $now := Now }}
      conditions:
      - {type: Initialized, status: "True", lastTransitionTime: {{ $now | Quote }}}
      - {type: Ready, status: "True", lastTransitionTime: {{ $now | Quote }}}
      - {type: ContainersReady, status: "True", lastTransitionTime: {{ $now | Quote }}}
      containerStatuses:
      {{ range .spec.containers }}
      - {name: {{ .name | Quote }}, image: {{ .image | Quote }}, ready: true, restartCount: 0, state: {running: {startedAt: {{ $now | Quote }}}}}
      {{ end }}
      hostIP: 10.0.0.1
      {{ $ips := PodIPsWith .spec.nodeName ( or .spec.hostNetwork false ) ( or .metadata.uid "" ) ( or .metadata.name "" ) ( or .metadata.namespace "" ) }}
      {{ with $ips }}
      podIP: {{ index . 0 | Quote }}
      podIPs:
      {{ range . }}
      - ip: {{ . | Quote }}
      {{ end }}
      {{ end }}
      phase: Running
      startTime: {{ $now | Quote }}
---
apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata: {name: pod-complete}
spec:
  resourceRef: {apiGroup: v1, kind: Pod}
  selector:
    matchExpressions:
    - {key: .metadata.deletionTimestamp, operator: DoesNotExist}
    - {key: .status.phase, operator: In, values: [Running]}
    - {key: '.metadata.ownerReferences.[].kind', operator: In, values: [Job]}
  delay: {durationMilliseconds: 2000}
  next:
    statusTemplate: |
      phase: Succeeded
---
apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata: {name: pod-delete}
spec:
  resourceRef: {apiGroup: v1, kind: Pod}
  selector:
    matchExpressions:
    - {key: .metadata.deletionTimestamp, operator: Exists}
  next:
    delete: true
`
