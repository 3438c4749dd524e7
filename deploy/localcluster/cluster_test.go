package localcluster

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/tidemark-backup/tidemark/deploy/localserver"
)

func TestClusterFromStartToStop(t *testing.T) {
	var said bytes.Buffer
	c, err := Start(t.Context(), Options{Output: &said})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, c) })

	t.Run("kubeconfig file works and pods are admitted", func(t *testing.T) {
		cfg, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig())
		if err != nil {
			t.Fatal(err)
		}
		_, err = client(t, cfg).CoreV1().Pods("default").Create(t.Context(), &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: "first"},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "example.com/c"}}},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
	})
	t.Run("server says its real version", func(t *testing.T) {
		v, err := client(t, c.Config()).Discovery().ServerVersion()
		if err != nil {
			t.Fatal(err)
		}
		if os.Getenv("KUBEBUILDER_ASSETS") == "" && !strings.HasPrefix(v.GitVersion, "v1.36.") {
			t.Errorf("version is %s, want what controlplane/go.mod requires", v.GitVersion)
		}
	})
	t.Run("other users have only the rights RBAC gives", func(t *testing.T) { testRBAC(t, c) })
	t.Run("compaction makes old revisions expire", func(t *testing.T) { testCompaction(t, c) })
	t.Run("API server restarts at its address and keeps its data", func(t *testing.T) { testRestart(t, c) })
	t.Run("stop leaves no process and no file", func(t *testing.T) { testStop(t, c) })

	if lines := strings.Count(said.String(), "\n"); lines < 3 {
		t.Errorf("progress has %d lines, want one per server at least:\n%s", lines, said.String())
	}
}

func testRBAC(t *testing.T, c *Cluster) {
	cfg, err := c.ConfigFor("ann", "readers")
	if err != nil {
		t.Fatal(err)
	}
	ann, admin := client(t, cfg), client(t, c.Config())
	if _, err := ann.CoreV1().Secrets("default").List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Fatalf("list secrets without a role: %v, want forbidden", err)
	}
	_, err = admin.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "readers"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "admin"},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "Group", Name: "readers"}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "group readers may list secrets", func(ctx context.Context) bool {
		_, err := ann.CoreV1().Secrets("default").List(ctx, metav1.ListOptions{})
		return err == nil
	})
}

func testCompaction(t *testing.T, c *Cluster) {
	admin := client(t, c.Config())
	old, err := admin.CoreV1().ConfigMaps("default").Create(t.Context(),
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "one"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	exact := metav1.ListOptions{
		ResourceVersion: old.ResourceVersion, ResourceVersionMatch: metav1.ResourceVersionMatchExact, LabelSelector: "a=b",
	}
	if _, err := admin.CoreV1().ConfigMaps("default").List(t.Context(), exact); err != nil {
		t.Fatalf("list at revision %s before compaction: %v", old.ResourceVersion, err)
	}
	_, err = admin.CoreV1().ConfigMaps("default").Create(t.Context(),
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "two"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.CompactEtcd(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	// A restarted server has nothing of before in its caches.
	if err := c.RestartAPIServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.CoreV1().ConfigMaps("default").List(t.Context(), exact); !apierrors.IsResourceExpired(err) && !apierrors.IsGone(err) {
		t.Errorf("list at revision %s after compaction: %v, want expired", old.ResourceVersion, err)
	}
}

func testRestart(t *testing.T, c *Cluster) {
	admin := client(t, c.Config())
	if err := c.StopAPIServer(); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.CoreV1().Namespaces().Get(t.Context(), "default", metav1.GetOptions{}); err == nil {
		t.Error("the API server answers after StopAPIServer")
	}
	if err := c.StartAPIServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.StartAPIServer(t.Context()); err == nil {
		t.Error("a second StartAPIServer does not fail")
	}
	if _, err := admin.CoreV1().Pods("default").Get(t.Context(), "first", metav1.GetOptions{}); err != nil {
		t.Errorf("pod of before the restart: %v", err)
	}
}

func testStop(t *testing.T, c *Cluster) {
	pids := c.pids()
	if len(pids) != 3 {
		t.Fatalf("%d servers run, want 3", len(pids))
	}
	stop(t, c)
	for _, pid := range pids {
		if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("process %d after Stop: %v, want none", pid, err)
		}
	}
	if _, err := os.Stat(c.Dir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("directory after Stop: %v, want none", err)
	}
	if err := c.StopAPIServer(); err == nil {
		t.Error("StopAPIServer after Stop does not fail")
	}
}

func TestNewerServers(t *testing.T) {
	c, err := Start(t.Context(), Options{Newer: true, Output: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	defer stop(t, c)
	v, err := client(t, c.Config()).Discovery().ServerVersion()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(v.GitVersion, "v1.37.") {
		t.Errorf("version is %s, want what controlplane%s/go.mod requires", v.GitVersion, newer)
	}
}

func TestFailedStartShowsTheLogAndLeavesNoProcess(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "c")
	_, err := Start(t.Context(), Options{Dir: dir, NoControllers: true, APIServerArgs: []string{"--no-such-flag"}})
	if err == nil {
		t.Fatal("started with an unknown flag")
	}
	for _, want := range []string{"kube-apiserver ended", "unknown flag: --no-such-flag", filepath.Join(dir, "kube-apiserver.log")} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error does not hold %q:\n%v", want, err)
		}
	}
	if lock, err := os.ReadFile(filepath.Join(dir, "etcd.log")); err != nil {
		t.Errorf("etcd's log after the failure: %v\n%s", err, lock)
	}
}

func TestTakenPortMakesStartChooseOthers(t *testing.T) {
	taken, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	calls := 0
	c, err := Start(t.Context(), Options{NoControllers: true, Output: t.Output(), ports: func(n int) ([]int, error) {
		ports, err := freePorts(n)
		if calls++; calls == 1 {
			ports[0] = taken.Addr().(*net.TCPAddr).Port
		}
		return ports, err
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer stop(t, c)
	if calls != 2 {
		t.Errorf("ports were chosen %d times, want 2", calls)
	}
	if _, err := client(t, c.Config()).Discovery().ServerVersion(); err != nil {
		t.Error(err)
	}
}

func TestStartRefusesADirectoryWithFiles(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "mine"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Start(t.Context(), Options{Dir: dir}); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("Start in a directory with files: %v, want refusal", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "mine")); err != nil {
		t.Error(err)
	}
}

// pids are the servers' process ids.
func (c *Cluster) pids() (pids []int) {
	for _, p := range []*localserver.Process{c.etcd, c.api, c.kcm} {
		if p != nil {
			pids = append(pids, p.Pid())
		}
	}
	return pids
}

func stop(t *testing.T, c *Cluster) {
	t.Helper()
	if err := c.Stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
}

func client(t *testing.T, cfg *rest.Config) *kubernetes.Clientset {
	t.Helper()
	k, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// eventually polls until ok, and fails the test after 20 seconds.
func eventually(t *testing.T, what string, ok func(context.Context) bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok(t.Context()) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
