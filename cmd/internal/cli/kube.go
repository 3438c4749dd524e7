package cli

import (
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/client-go/tools/clientcmd"
)

// kubeFlags are those kubectl has.
type kubeFlags struct {
	kubeconfig, context string
}

func (f *kubeFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.kubeconfig, "kubeconfig", "", "kubeconfig file (default: $KUBECONFIG, else ~/.kube/config)")
	cmd.Flags().StringVar(&f.context, "context", "", "context of the kubeconfig (default: its current one)")
}

// namespaceFlags choose namespaces.
type namespaceFlags struct {
	kube      kubeFlags
	namespace string
	all       bool
}

func (f *namespaceFlags) add(cmd *cobra.Command) {
	f.kube.add(cmd)
	cmd.Flags().StringVarP(&f.namespace, "namespace", "n", "", "namespace (default: that of the kubeconfig's context)")
	cmd.Flags().BoolVarP(&f.all, "all-namespaces", "A", false, "all namespaces")
}

// resolve returns the namespace to ask for; empty with -A. A kubeconfig is not needed: without
// one it is "default". But one that was named must be readable.
func (f *namespaceFlags) resolve() (string, error) {
	if f.all {
		if f.namespace != "" {
			return "", usage("-n and -A exclude each other")
		}
		return "", nil
	}
	if strings.Contains(f.namespace, ",") {
		return "", usage("-n %s: give one namespace, or all of them with -A", f.namespace)
	}
	if f.namespace != "" {
		return f.namespace, nil
	}
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = f.kube.kubeconfig
	overrides := &clientcmd.ConfigOverrides{CurrentContext: f.kube.context}
	ns, _, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, overrides).Namespace()
	if err != nil {
		if f.kube.kubeconfig != "" || f.kube.context != "" {
			return "", usage("cannot read the kubeconfig: %v; name the namespace with -n to do without it", err)
		}
		return "default", nil
	}
	return ns, nil
}
