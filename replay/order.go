package replay

import "k8s.io/apimachinery/pkg/runtime/schema"

// Waves of a plan: everything in one wave is written before the next begins. Between two of
// these there is room for owners, which come before what they own.
const (
	waveDefinitions = 0
	waveNamespaces  = 100
	waveStorage     = 200
	waveVolumes     = 300
	waveFill        = 350 // the content of claims, before anything can use them
	waveAccess      = 400
	waveBindings    = 450
	waveConfig      = 500
	waveWorkloads   = 600
	waveRest        = 700
	waveLimits      = 800 // what would stand in the way of the waves before
	waveStart       = 850 // workloads that were made at rest
	waveRelease     = 870 // claims whose volumes may have waited for them
	waveAdmission   = 900 // their backends must run first
	waveDeletes     = 1000
)

var waves = map[string]int{
	"customresourcedefinitions.apiextensions.k8s.io": waveDefinitions,
	"namespaces": waveNamespaces,

	"storageclasses.storage.k8s.io":                  waveStorage,
	"volumesnapshotclasses.snapshot.storage.k8s.io":  waveStorage,
	"volumesnapshotcontents.snapshot.storage.k8s.io": waveStorage + 1,

	"volumegroupsnapshotcontents.groupsnapshot.storage.k8s.io": waveStorage + 1,
	"volumesnapshots.snapshot.storage.k8s.io":                  waveStorage + 2,
	"persistentvolumes":      waveVolumes,
	"persistentvolumeclaims": waveVolumes + 1,

	"clusterroles.rbac.authorization.k8s.io":        waveAccess,
	"roles.rbac.authorization.k8s.io":               waveAccess,
	"serviceaccounts":                               waveAccess,
	"clusterrolebindings.rbac.authorization.k8s.io": waveBindings,
	"rolebindings.rbac.authorization.k8s.io":        waveBindings,

	"secrets":                           waveConfig,
	"configmaps":                        waveConfig,
	"limitranges":                       waveConfig,
	"priorityclasses.scheduling.k8s.io": waveConfig,
	"services":                          waveConfig, // before the Pods, which find them in their environment

	"pods":                     waveWorkloads,
	"replicationcontrollers":   waveWorkloads + 1,
	"replicasets.apps":         waveWorkloads + 1,
	"statefulsets.apps":        waveWorkloads + 2,
	"deployments.apps":         waveWorkloads + 2,
	"daemonsets.apps":          waveWorkloads + 2,
	"controllerrevisions.apps": waveWorkloads + 1,
	"jobs.batch":               waveWorkloads + 3,
	"cronjobs.batch":           waveWorkloads + 4,

	"poddisruptionbudgets.policy": waveLimits,
	"resourcequotas":              waveLimits,

	"validatingwebhookconfigurations.admissionregistration.k8s.io":   waveAdmission,
	"mutatingwebhookconfigurations.admissionregistration.k8s.io":     waveAdmission,
	"validatingadmissionpolicies.admissionregistration.k8s.io":       waveAdmission,
	"validatingadmissionpolicybindings.admissionregistration.k8s.io": waveAdmission + 1,
	"mutatingadmissionpolicies.admissionregistration.k8s.io":         waveAdmission,
	"mutatingadmissionpolicybindings.admissionregistration.k8s.io":   waveAdmission + 1,
	"apiservices.apiregistration.k8s.io":                             waveAdmission,
}

// baseWave is the wave of a resource by itself.
func baseWave(gr schema.GroupResource) int {
	if w, ok := waves[gr.String()]; ok {
		return w
	}
	return waveRest
}

// setWaves gives every item its wave: owners before the owned, and deletions at the end, in
// the opposite order of creations.
func setWaves(items []*Item) {
	byKey := make(map[objectKey]*Item, len(items))
	for _, it := range items {
		switch it.Action {
		case ActionStart:
			it.Wave = waveStart
			continue
		case ActionFill:
			it.Wave = waveFill
			continue
		case ActionRelease:
			it.Wave = waveRelease
			continue
		}
		byKey[it.key()] = it
		it.Wave = -1
	}
	var wave func(it *Item, depth int) int
	wave = func(it *Item, depth int) int {
		if it.Wave >= 0 {
			return it.Wave
		}
		w := baseWave(it.Resource)
		if it.Action == ActionDelete {
			it.Wave = waveDeletes + waveDeletes - w
			return it.Wave
		}
		if depth < len(items) { // a circle of owners ends here; nobody can make one on purpose
			for _, o := range it.owners {
				if owner := byKey[o.key]; owner != nil && owner != it && owner.Action.writes() {
					w = max(w, wave(owner, depth+1)+1)
				}
			}
		}
		it.Wave = w
		return w
	}
	for _, it := range items {
		wave(it, 0)
	}
}
