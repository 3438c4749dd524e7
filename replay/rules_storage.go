package replay

import "k8s.io/apimachinery/pkg/runtime/schema"

// takenTogether is a label that claims have only while a snapshot of several is taken.
const takenTogether = "tidemark.dev/taken-together"

// fixClaim lets a claim bind anew: what tells of its old binding would make it Lost.
func fixClaim(s *subject) {
	dropAnnotations("pv.kubernetes.io/bind-completed", "pv.kubernetes.io/bound-by-controller", "volume.kubernetes.io/storage-provisioner",
		"volume.beta.kubernetes.io/storage-provisioner", "volume.kubernetes.io/selected-node")(s)
	s.obj.drop("metadata", "labels", takenTogether)
	s.obj.dropEmpty("metadata", "labels")
	// A claim that is there keeps the volume it has; a new one gets its old volume only when
	// that comes back with it.
	if pv := s.obj.str("spec", "volumeName"); pv != "" && !s.live && !s.exists && s.original != nil && s.obj.namespace() == s.original.namespace() {
		if p := s.past.find(schema.GroupResource{Resource: "persistentvolumes"}, "", pv); p != nil && p.refused == "" {
			return
		}
	}
	s.obj.drop("spec", "volumeName")
}

// fixVolume points a volume at its claim by name; the claim has a new uid.
func fixVolume(s *subject) {
	dropAnnotations("pv.kubernetes.io/bound-by-controller")(s)
	ref := s.obj.sub("spec", "claimRef")
	if ref == nil {
		return
	}
	ref.drop("uid")
	ref.drop("resourceVersion")
	if ns := ref.str("namespace"); ns != "" && !s.live {
		ref.put(s.req.namespace(ns), "namespace")
	}
}
