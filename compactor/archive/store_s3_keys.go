package archive

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/minio/minio-go/v7/pkg/credentials"
)

// keySource finds credentials where the AWS tools do, or only in the file that was named. Nothing
// of a secret is in its errors: those of the library may quote the file. The library calls it
// under a lock.
type keySource struct {
	file    string // empty: none was named
	from    []keyPlace
	current credentials.Provider // nil: none was found yet
	lasting bool                 // what was found has no end of its own
	changed time.Time            // when the file was, as it was read
}

type keyPlace struct {
	name string
	credentials.Provider
}

func newKeySource(o StoreOptions, region string) *keySource {
	k := &keySource{file: o.CredentialsFile}
	shared := keyPlace{"the credentials file", &credentials.FileAWSCredentials{Filename: o.CredentialsFile, Profile: o.Profile}}
	if k.file != "" || o.Profile != "" {
		k.from = []keyPlace{shared}
		return k
	}
	k.from = []keyPlace{
		{"AWS_ACCESS_KEY_ID", &credentials.EnvAWS{}},
		{"MINIO_ROOT_USER", &credentials.EnvMinio{}},
		shared,
	}
	identity := os.Getenv("AWS_WEB_IDENTITY_TOKEN_FILE") + os.Getenv("AWS_CONTAINER_CREDENTIALS_FULL_URI") + os.Getenv("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
	if identity != "" || !strings.EqualFold(os.Getenv("AWS_EC2_METADATA_DISABLED"), "true") {
		k.from = append(k.from, keyPlace{"the machine's or pod's role", &credentials.IAM{Client: roleClient(), Region: region}})
	}
	return k
}

// roleClient asks for the credentials of roles: services at link-local addresses never through a
// proxy, and not for long, as most machines have none.
func roleClient() *http.Client {
	return &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		Proxy: func(r *http.Request) (*url.URL, error) {
			if ip := net.ParseIP(r.URL.Hostname()); ip != nil && (ip.IsLinkLocalUnicast() || ip.IsLoopback() || ip.IsPrivate()) {
				return nil, nil
			}
			return http.ProxyFromEnvironment(r)
		},
		DialContext: (&net.Dialer{Timeout: 2 * time.Second}).DialContext, TLSHandshakeTimeout: 5 * time.Second, DisableKeepAlives: true,
	}}
}

// Retrieve implements credentials.Provider.
func (k *keySource) Retrieve() (credentials.Value, error) { return k.RetrieveWithCredContext(nil) }

// RetrieveWithCredContext implements credentials.Provider.
func (k *keySource) RetrieveWithCredContext(c *credentials.CredContext) (credentials.Value, error) {
	k.current, k.changed = nil, k.fileTime()
	var why strings.Builder
	for _, p := range k.from {
		v, err := p.RetrieveWithCredContext(c)
		if err == nil && v.AccessKeyID != "" && v.SecretAccessKey != "" {
			k.current, k.lasting = p, v.Expiration.IsZero()
			return v, nil
		}
		var file *os.PathError
		var request *url.Error
		switch {
		case errors.As(err, &file):
			fmt.Fprintf(&why, "; %s: %v", p.name, file)
		case errors.As(err, &request): // its URL may hold a token
			fmt.Fprintf(&why, "; %s: %v", p.name, request.Err)
		}
	}
	if k.file != "" {
		return credentials.Value{}, fmt.Errorf("%w: no credentials in the file %s%s: it needs [default], or the profile you named, with aws_access_key_id and aws_secret_access_key", ErrDenied, k.file, why.String())
	}
	return credentials.Value{}, fmt.Errorf("%w: no credentials found%s: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, name a credentials file, or give the pod a role", ErrDenied, why.String())
}

// IsExpired implements credentials.Provider. A file that was changed is read again, so that keys
// can be replaced without a restart. (The library takes keys from files for expired always, and
// would read the file for every request.)
func (k *keySource) IsExpired() bool {
	return k.current == nil || !k.lasting && k.current.IsExpired() || !k.fileTime().Equal(k.changed)
}

func (k *keySource) fileTime() time.Time {
	if k.file == "" {
		return time.Time{}
	}
	info, err := os.Stat(k.file)
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}
