package localcluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
)

// validity of every certificate: longer than any demo runs.
const validity = 365 * 24 * time.Hour

// authority is the cluster's certificate authority.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  keyPair
}

// keyPair is a certificate and its key, both as PEM.
type keyPair struct{ cert, key []byte }

// newAuthority makes a self-signed authority.
func newAuthority() (*authority, error) {
	key, keyPEM, err := newKey()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "tidemark-local-ca"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(validity),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &authority{cert: cert, key: key, pem: keyPair{cert: certPEM(der), key: keyPEM}}, nil
}

// issue signs a certificate for a new key.
func (a *authority) issue(template *x509.Certificate) (keyPair, error) {
	key, keyPEM, err := newKey()
	if err != nil {
		return keyPair{}, err
	}
	template.NotBefore = time.Now().Add(-time.Hour)
	template.NotAfter = time.Now().Add(validity)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return keyPair{}, err
	}
	return keyPair{cert: certPEM(der), key: keyPEM}, nil
}

// issueClient signs a certificate that Kubernetes reads as this user in these groups.
func (a *authority) issueClient(user string, groups []string) (keyPair, error) {
	return a.issue(&x509.Certificate{
		Subject:     pkix.Name{CommonName: user, Organization: groups},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
}

// issueServer signs a server's certificate for names and addresses.
func (a *authority) issueServer(user string, names ...string) (keyPair, error) {
	template := &x509.Certificate{Subject: pkix.Name{CommonName: user}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
			continue
		}
		template.DNSNames = append(template.DNSNames, n)
	}
	return a.issue(template)
}

func newKey() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), nil
}

func certPEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// writeIdentities makes all certificates, keys and kubeconfig files of one start.
func (c *Cluster) writeIdentities() error {
	var err error
	if c.ca, err = newAuthority(); err != nil {
		return fmt.Errorf("make certificate authority: %w", err)
	}
	server, err := c.ca.issueServer("kube-apiserver", "localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "127.0.0.1",
		c.services().Addr().Next().String())
	if err != nil {
		return fmt.Errorf("make API server's certificate: %w", err)
	}
	kubelets, err := c.ca.issueClient("kube-apiserver", []string{"system:masters"})
	if err != nil {
		return fmt.Errorf("make the certificate that kubelets know the API server by: %w", err)
	}
	_, serviceAccountKey, err := newKey()
	if err != nil {
		return fmt.Errorf("make service account key: %w", err)
	}
	pki := filepath.Join(c.dir, "pki")
	if err := os.MkdirAll(pki, 0o700); err != nil {
		return err
	}
	for name, data := range map[string][]byte{
		"ca.crt": c.ca.pem.cert, "ca.key": c.ca.pem.key,
		"apiserver.crt": server.cert, "apiserver.key": server.key,
		"kubelets.crt": kubelets.cert, "kubelets.key": kubelets.key,
		"sa.key": serviceAccountKey,
	} {
		if err := os.WriteFile(filepath.Join(pki, name), data, 0o600); err != nil {
			return err
		}
	}
	if c.admin, err = c.ConfigFor("admin", "system:masters"); err != nil {
		return err
	}
	if err := WriteKubeconfig(c.admin, c.Kubeconfig()); err != nil {
		return err
	}
	for file, user := range map[string]string{"kcm.kubeconfig": "system:kube-controller-manager", "scheduler.kubeconfig": "system:kube-scheduler"} {
		config, err := c.ConfigFor(user)
		if err != nil {
			return err
		}
		if err := WriteKubeconfig(config, filepath.Join(c.dir, file)); err != nil {
			return err
		}
	}
	return nil
}

// ServerCertificate makes a certificate of the cluster's authority, and its key, both as PEM, for a server with these
// names and addresses, such as a kubelet.
func (c *Cluster) ServerCertificate(user string, names ...string) (cert, key []byte, err error) {
	pair, err := c.ca.issueServer(user, names...)
	if err != nil {
		return nil, nil, fmt.Errorf("certificate of %s: %w", user, err)
	}
	return pair.cert, pair.key, nil
}

// clientConfig is the configuration of a client of this cluster that has pair.
func (c *Cluster) clientConfig(pair keyPair) *rest.Config {
	return &rest.Config{
		Host:  fmt.Sprintf("https://%s:%d", c.address(), c.apiPort),
		QPS:   -1,
		Burst: -1,
		TLSClientConfig: rest.TLSClientConfig{
			CAData: c.ca.pem.cert, CertData: pair.cert, KeyData: pair.key,
		},
	}
}

// WriteKubeconfig writes a kubeconfig file (mode 0600) for a configuration of Config or ConfigFor.
func WriteKubeconfig(cfg *rest.Config, path string) error {
	k := api.NewConfig()
	k.Clusters["local"] = &api.Cluster{Server: cfg.Host, CertificateAuthorityData: cfg.CAData}
	k.AuthInfos["user"] = &api.AuthInfo{ClientCertificateData: cfg.CertData, ClientKeyData: cfg.KeyData}
	k.Contexts["local"] = &api.Context{Cluster: "local", AuthInfo: "user"}
	k.CurrentContext = "local"
	if err := clientcmd.WriteToFile(*k, path); err != nil {
		return fmt.Errorf("write kubeconfig: %w", err)
	}
	return nil
}
