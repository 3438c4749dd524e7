package volumes

import (
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/util/validation"
)

// checkName fails for a name that what is made together cannot have: one that is no Kubernetes name, or that is in use, so that a restore
// by it would not say which. Of two that begin at the same moment with one name, both may get it.
func (k *Keeper) checkName(ctx context.Context, name string) error {
	if wrong := validation.IsDNS1123Subdomain(name); len(wrong) > 0 {
		return fmt.Errorf("%w: %q cannot be a name: want lower-case letters, digits, '-' and '.', beginning and ending with a letter or digit, 253 at most", ErrRequest, name)
	}
	all, err := k.List(ctx)
	if err != nil {
		return err
	}
	for _, b := range all {
		if b.Status.Phase == Failed { // its name is free: the same command may be tried again
			continue
		}
		if b.Spec.Run == name || b.Metadata.Name == name {
			return fmt.Errorf("%w: the name %s is in use, by %s of %s, made at %s: choose another, or delete what has it: 'tidemark volumes list' shows all", ErrRequest, name, b.Metadata.Name, b.Volume(), b.Metadata.Created.UTC().Format("2006-01-02 15:04:05Z"))
		}
	}
	return nil
}
