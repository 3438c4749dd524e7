package kube

import (
	"context"
	"errors"
	"fmt"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// ErrNoAccount is returned to a user that is no ServiceAccount, and so has no tokens.
var ErrNoAccount = errors.New("no ServiceAccount")

var (
	accounts    = schema.GroupVersionResource{Version: "v1", Resource: "serviceaccounts"}
	selfReviews = schema.GroupVersionResource{Group: "authentication.k8s.io", Version: "v1", Resource: "selfsubjectreviews"}
)

// Token asks for a token that a ServiceAccount, "namespace/name", shows to an audience; without one, the ServiceAccount that the client is.
func (c *Client) Token(ctx context.Context, account, audience string) (string, error) {
	if account == "" {
		var err error
		if account, err = c.account(ctx); err != nil {
			return "", err
		}
	}
	namespace, name, ok := strings.Cut(account, "/")
	if !ok {
		return "", fmt.Errorf("%w: %q: want NAMESPACE/NAME", ErrNoAccount, account)
	}
	hour := int64(3600)
	q, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&authenticationv1.TokenRequest{
		TypeMeta:   metav1.TypeMeta{APIVersion: "authentication.k8s.io/v1", Kind: "TokenRequest"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace},
		Spec:       authenticationv1.TokenRequestSpec{Audiences: []string{audience}, ExpirationSeconds: &hour},
	})
	if err != nil {
		return "", err
	}
	u, err := c.In(accounts, namespace).Create(ctx, &unstructured.Unstructured{Object: q}, metav1.CreateOptions{}, "token")
	if err != nil {
		return "", fmt.Errorf("ask for a token of ServiceAccount %s: %w", account, err)
	}
	r, err := As[authenticationv1.TokenRequest](u)
	if err != nil {
		return "", err
	}
	return r.Status.Token, nil
}

// account is the ServiceAccount that the client is, as the API server sees it.
func (c *Client) account(ctx context.Context) (string, error) {
	u, err := c.In(selfReviews, "").Create(ctx, &unstructured.Unstructured{Object: map[string]any{"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}}, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("ask the cluster who we are: %w", err)
	}
	r, err := As[authenticationv1.SelfSubjectReview](u)
	if err != nil {
		return "", err
	}
	user, is := strings.CutPrefix(r.Status.UserInfo.Username, "system:serviceaccount:")
	if !is {
		return "", fmt.Errorf("%w: the daemon is %q to the cluster: name one with changedBlocks.serviceAccount in its configuration", ErrNoAccount, r.Status.UserInfo.Username)
	}
	return strings.Replace(user, ":", "/", 1), nil
}
