package sample_test

import (
	"slices"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/tidemark-backup/tidemark/deploy/localcluster"
	"github.com/tidemark-backup/tidemark/deploy/sample"
)

func TestObjectsHoldTheKindsOfARealNamespace(t *testing.T) {
	objects, err := sample.Objects()
	if err != nil {
		t.Fatal(err)
	}
	var kinds []string
	inNamespace := 0
	for _, o := range objects {
		kinds = append(kinds, o.GetKind())
		if o.GetNamespace() == sample.Namespace {
			inNamespace++
		}
	}
	if inNamespace < 30 {
		t.Errorf("%d objects in the namespace, want 30 or more", inNamespace)
	}
	for _, want := range []string{
		"Deployment", "StatefulSet", "CronJob", "Job", "Pod", "Service", "Ingress", "EndpointSlice", "ConfigMap", "Secret",
		"ServiceAccount", "Role", "RoleBinding", "ClusterRole", "CustomResourceDefinition", "Promotion", "PersistentVolumeClaim",
	} {
		if !slices.Contains(kinds, want) {
			t.Errorf("no %s among the objects", want)
		}
	}
}

func TestApplyIsAcceptedByTheAPIServerTwice(t *testing.T) {
	c, err := localcluster.Start(t.Context(), localcluster.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	}()
	for range 2 {
		if err := sample.Apply(t.Context(), c.Config()); err != nil {
			t.Fatal(err)
		}
	}
	clients, err := kubernetes.NewForConfig(c.Config())
	if err != nil {
		t.Fatal(err)
	}
	theme, err := clients.CoreV1().ConfigMaps(sample.Namespace).Get(t.Context(), "web-theme", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	owner, err := clients.AppsV1().Deployments(sample.Namespace).Get(t.Context(), "web", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(theme.OwnerReferences) != 1 || theme.OwnerReferences[0].UID != owner.UID {
		t.Errorf("owners of web-theme are %v, want the live Deployment web with uid %s", theme.OwnerReferences, owner.UID)
	}
}
