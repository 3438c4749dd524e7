package replay

import (
	"reflect"
	"strings"
)

// stripMetadata takes away what only the API server writes, and what is meant for the
// moment of creation or deletion only.
func stripMetadata(s *subject) {
	for _, f := range []string{"uid", "resourceVersion", "generation", "creationTimestamp", "selfLink", "deletionTimestamp", "deletionGracePeriodSeconds", "managedFields", "generateName"} {
		s.obj.drop("metadata", f)
	}
	for _, f := range []string{"labels", "annotations", "finalizers", "ownerReferences"} {
		s.obj.dropEmpty("metadata", f)
	}
}

func stripStatus(s *subject) { s.obj.drop("status") }

func mapNamespace(s *subject) {
	if ns := s.obj.namespace(); ns != "" && !s.live {
		s.obj.put(s.req.namespace(ns), "metadata", "namespace")
	}
}

func dropAnnotations(names ...string) func(*subject) {
	return func(s *subject) {
		for _, n := range names {
			s.obj.drop("metadata", "annotations", n)
		}
		s.obj.dropEmpty("metadata", "annotations")
	}
}

func fixNamespace(s *subject) {
	s.obj.drop("spec") // its finalizer is the API server's
	if !s.live {
		s.obj.put(s.req.namespace(s.obj.name()), "metadata", "name")
	}
	if s.obj.label("kubernetes.io/metadata.name") != "" {
		s.obj.put(s.obj.name(), "metadata", "labels", "kubernetes.io/metadata.name")
	}
}

// fixPod makes a Pod schedulable again: its node, its numeric priority and the token volume
// were given to it on admission.
func fixPod(s *subject) {
	s.obj.drop("spec", "nodeName")
	s.obj.drop("spec", "priority")
	s.obj.drop("spec", "ephemeralContainers")
	const tokenPath = "/var/run/secrets/kubernetes.io/serviceaccount"
	injected := map[string]bool{}
	for _, v := range s.obj.objects("spec", "volumes") {
		name := v.str("name")
		if strings.HasPrefix(name, "kube-api-access-") && v.at("projected") != nil {
			injected[name] = true
		}
	}
	for _, group := range []string{"containers", "initContainers"} {
		for _, c := range s.obj.objects("spec", group) {
			for _, m := range c.objects("volumeMounts") {
				if m.str("mountPath") == tokenPath && strings.Contains(m.str("name"), "-token-") {
					injected[m.str("name")] = true // as clusters before 1.22 injected it
				}
			}
		}
	}
	gone := func(v object) bool { return injected[v.str("name")] }
	s.obj.putList(without(s.obj.list("spec", "volumes"), gone), "spec", "volumes")
	for _, group := range []string{"containers", "initContainers"} {
		for _, c := range s.obj.objects("spec", group) {
			c.putList(without(c.list("volumeMounts"), gone), "volumeMounts")
		}
	}
}

// fixJob drops the selector that the API server generated from the Job's uid; kept, it would
// match no Pod of the new Job.
func fixJob(s *subject) {
	if s.obj.at("spec", "manualSelector") == true {
		return
	}
	s.obj.drop("spec", "selector")
	// A Job without labels gets those of its template from the API server, generated ones as well; without
	// them, the new one will get its own.
	if reflect.DeepEqual(s.obj.at("metadata", "labels"), s.obj.at("spec", "template", "metadata", "labels")) {
		s.obj.drop("metadata", "labels")
	}
	for _, l := range []string{"controller-uid", "batch.kubernetes.io/controller-uid"} {
		if s.obj.label(l) == s.original.uid() {
			s.obj.drop("metadata", "labels", l)
		}
	}
	s.obj.dropEmpty("metadata", "labels")
	for _, l := range []string{"controller-uid", "batch.kubernetes.io/controller-uid", "job-name", "batch.kubernetes.io/job-name"} {
		s.obj.drop("spec", "template", "metadata", "labels", l)
	}
	s.obj.dropEmpty("spec", "template", "metadata", "labels")
	s.obj.drop("spec", "template", "metadata", "creationTimestamp")
	s.obj.dropEmpty("spec", "template", "metadata")
}

// leaveReplicas leaves the size of existing workloads to the autoscaler they have; new ones
// start with the size they had.
func leaveReplicas(s *subject) {
	if (s.live || s.exists) && s.past.scaled[scaleTarget{s.obj.str("kind"), s.obj.namespace(), s.obj.name()}] {
		s.obj.drop("spec", "replicas")
	}
}

// fixServiceAccount drops the references to generated tokens; tokens are made anew.
func fixServiceAccount(s *subject) {
	s.obj.putList(without(s.obj.list("secrets"), func(ref object) bool {
		n := ref.str("name")
		return strings.HasPrefix(n, s.obj.name()+"-token-") || strings.HasPrefix(n, s.obj.name()+"-dockercfg-")
	}), "secrets")
}

// fixTokenSecret leaves the contents of a token to the controller that signs it.
func fixTokenSecret(s *subject) {
	if s.obj.str("type") != tokenSecret {
		return
	}
	for _, k := range []string{"token", "ca.crt", "namespace"} {
		s.obj.drop("data", k)
	}
	s.obj.dropEmpty("data")
	s.obj.drop("metadata", "annotations", "kubernetes.io/service-account.uid")
	s.obj.drop("metadata", "labels", "kubernetes.io/legacy-token-last-used")
	s.obj.dropEmpty("metadata", "labels")
}

func mapSubjects(s *subject) {
	if s.live {
		return
	}
	for _, sub := range s.obj.objects("subjects") {
		if ns := sub.str("namespace"); ns != "" {
			sub.put(s.req.namespace(ns), "namespace")
		}
	}
}

// fixDefinition drops what the API server derives from a CRD. Definitions from before
// apiextensions v1 may still ask to preserve unknown fields, which v1 refuses.
func fixDefinition(s *subject) {
	if s.obj.at("spec", "preserveUnknownFields") == true {
		s.obj.put(false, "spec", "preserveUnknownFields")
	}
	dropInjectedCA("spec", "conversion", "webhook", "clientConfig", "caBundle")(s)
}

var injectors = []string{"cert-manager.io/inject-ca-from", "cert-manager.io/inject-ca-from-secret", "cert-manager.io/inject-apiserver-ca", "service.beta.openshift.io/inject-cabundle"}

func caInjected(o object) bool {
	for _, a := range injectors {
		if o.annotation(a) != "" {
			return true
		}
	}
	return false
}

// dropInjectedCA drops a CA bundle that an injector wrote: the CA may be another one now.
func dropInjectedCA(path ...string) func(*subject) {
	return func(s *subject) {
		if caInjected(s.obj) {
			s.obj.drop(path...)
		}
	}
}

func fixWebhooks(s *subject) {
	for _, w := range s.obj.objects("webhooks") {
		if caInjected(s.obj) {
			w.drop("clientConfig", "caBundle")
		}
		// admission v1 accepts no others; they are left from v1beta1.
		if e := w.str("sideEffects"); e == "Unknown" || e == "Some" {
			w.put("None", "sideEffects")
		}
	}
}
