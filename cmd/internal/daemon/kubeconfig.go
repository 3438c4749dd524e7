package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// ErrKubeconfig is returned when it cannot be told which cluster to talk to, or as whom.
var ErrKubeconfig = errors.New("cannot use the kubeconfig")

// LoadConfig finds the cluster as kubectl does: the file given, else KUBECONFIG, else
// ~/.kube/config, else the service account of the pod. It does not connect. Unlike kubectl
// it never falls back to localhost:8080.
func LoadConfig(file, context string) (*rest.Config, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = file
	raw, err := rules.Load()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w: %w; name an existing file with --kubeconfig", ErrKubeconfig, err)
	case err != nil:
		return nil, fmt.Errorf("%w: %w; try it with 'kubectl --kubeconfig FILE config view'", ErrKubeconfig, err)
	}
	where := strings.Join(rules.GetLoadingPrecedence(), ", ")
	if len(raw.Contexts) == 0 && len(raw.Clusters) == 0 {
		if file != "" {
			return nil, fmt.Errorf("%w: %s names no cluster; give a complete one with --kubeconfig", ErrKubeconfig, file)
		}
		cfg, err := rest.InClusterConfig()
		if err != nil {
			return nil, fmt.Errorf("%w: there is none (looked at %s), and this is no pod (%w); give one with --kubeconfig FILE", ErrKubeconfig, where, err)
		}
		return cfg, nil
	}
	cfg, err := clientcmd.NewNonInteractiveClientConfig(*raw, context, &clientcmd.ConfigOverrides{}, rules).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w; see 'kubectl config get-contexts', and choose one with --context or --kubeconfig", ErrKubeconfig, where, err)
	}
	for _, f := range []string{cfg.CAFile, cfg.CertFile, cfg.KeyFile, cfg.BearerTokenFile} {
		if f == "" {
			continue
		}
		if _, err := os.Stat(f); err != nil {
			return nil, fmt.Errorf("%w: %s: %w; correct the file's path in it", ErrKubeconfig, where, err)
		}
	}
	return cfg, nil
}
