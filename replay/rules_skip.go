package replay

import (
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

func skipDeleting(s *subject) string {
	if !s.obj.deleting() {
		return ""
	}
	return "was being deleted at that moment; 'tidemark undelete' finds the moment before"
}

// skipOwnVolume leaves out what backups of volumes had in the cluster for as long as they were made.
func skipOwnVolume(s *subject) string {
	if s.obj.label("tidemark.dev/volume") == "" {
		return ""
	}
	return "was made for a volume backup, and only for as long as that took"
}

func skipMirrorPod(s *subject) string {
	if s.obj.annotation("kubernetes.io/config.mirror") == "" {
		return ""
	}
	return "is the mirror of a static Pod; the kubelet makes it"
}

func skipFinishedPod(s *subject) string {
	switch phase := s.obj.str("status", "phase"); phase {
	case "Succeeded", "Failed":
		return "had finished: " + phase
	}
	return ""
}

func skipFinishedJob(s *subject) string {
	for _, c := range s.obj.objects("status", "conditions") {
		if t := c.str("type"); (t == "Complete" || t == "Failed") && c.str("status") == "True" && !s.req.Owned {
			return "had finished: " + t + "; restored, it would run again (--owned brings it back)"
		}
	}
	return ""
}

const tokenSecret = "kubernetes.io/service-account-token"

func skipDefaultToken(s *subject) string {
	if s.obj.str("type") == tokenSecret && s.obj.annotation("kubernetes.io/service-account.name") == "default" && strings.HasPrefix(s.obj.name(), "default-token-") {
		return "is the default ServiceAccount's token; the cluster makes its own"
	}
	return ""
}

func skipRootCA(s *subject) string {
	if s.obj.name() == "kube-root-ca.crt" {
		return "is made in every namespace by the controller manager"
	}
	return ""
}

// skipPlainDefaultAccount leaves the default ServiceAccount to the controller unless somebody
// gave it something, such as image pull secrets.
func skipPlainDefaultAccount(s *subject) string {
	if s.obj.name() != "default" {
		return ""
	}
	o := s.obj.clone()
	fixServiceAccount(&subject{gr: s.gr, obj: o, live: true, req: s.req, past: s.past})
	if o.list("secrets") == nil && o.list("imagePullSecrets") == nil && len(o.sub("metadata", "labels")) == 0 &&
		len(o.sub("metadata", "annotations")) == 0 && o.at("automountServiceAccountToken") == nil {
		return "is made in every namespace by the controller manager"
	}
	return ""
}

func skipServerMade(s *subject) string {
	if s.gr.Resource == "servicecidrs" && s.obj.name() == "kubernetes" || s.obj.namespace() == "default" && s.obj.name() == "kubernetes" {
		return "is made by the API server"
	}
	return ""
}

func skipLocalAPIService(s *subject) string {
	if s.obj.at("spec", "service") == nil || s.obj.label("kube-aggregator.kubernetes.io/automanaged") != "" {
		return "is made by the API server for what it serves itself"
	}
	return ""
}

// skipControllerEndpoints skips the addresses that a controller derives from a Service's
// selector or mirrors from Endpoints; those that somebody wrote by hand are kept.
func skipControllerEndpoints(s *subject) string {
	const reason = "is made by a controller from its Service"
	if s.gr.Resource == "endpointslices" {
		if strings.HasSuffix(s.obj.label("endpointslice.kubernetes.io/managed-by"), "-controller.k8s.io") {
			return reason
		}
		return ""
	}
	if s.obj.annotation("endpoints.kubernetes.io/last-change-trigger-time") != "" || s.obj.label("endpoints.kubernetes.io/managed-by") != "" {
		return reason
	}
	if svc := s.past.find(schema.GroupResource{Resource: "services"}, s.obj.namespace(), s.obj.name()); svc != nil && len(svc.object().sub("spec", "selector")) > 0 {
		return reason
	}
	return ""
}

func skipDeletedVolume(s *subject) string {
	if s.obj.str("spec", "persistentVolumeReclaimPolicy") != "Delete" {
		return ""
	}
	return "its storage is deleted with its claim; the claim is provisioned anew"
}

// remade tells which controllers make objects anew: resource -> kinds of owners.
var remade = map[string][]string{
	"pods":                            {"ReplicaSet", "StatefulSet", "DaemonSet", "Job", "ReplicationController"},
	"replicasets.apps":                {"Deployment"},
	"jobs.batch":                      {"CronJob"},
	"controllerrevisions.apps":        {"StatefulSet", "DaemonSet"},
	"endpointslices.discovery.k8s.io": {"Service"},
}

var remadeResources = []string{"pods", "replicasets.apps", "jobs.batch", "controllerrevisions.apps", "endpointslices.discovery.k8s.io"}

// builtin are the API groups whose kinds above have controllers in every cluster.
var builtin = map[string]bool{"v1": true, "apps/v1": true, "batch/v1": true}

func skipRemade(s *subject) string {
	ref := s.obj.controller()
	if ref == nil || s.req.Owned || s.live || !builtin[ref.str("apiVersion")] {
		return ""
	}
	for _, kind := range remade[s.gr.String()] {
		if kind != ref.str("kind") {
			continue
		}
		owner := s.past.byUID[ref.str("uid")]
		switch {
		case owner != nil && owner.refused == "":
			return fmt.Sprintf("%s %s is restored and makes it anew (--owned brings it back)", kind, ref.str("name"))
		case owner == nil && s.req.byKind():
			return fmt.Sprintf("%s %s makes it: restore that, or what owns it (--owned, or its name, brings it back)", kind, ref.str("name"))
		}
	}
	return ""
}
