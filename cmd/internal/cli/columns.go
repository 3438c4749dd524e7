package cli

import (
	"strconv"
	"strings"

	"github.com/tidwall/gjson"
)

// column is a cell of a table between NAME and AGE, or after AGE when it is wide.
type column struct {
	name string
	wide bool
	cell func(o gjson.Result) string
}

// columnsOf are the columns of the common resources, as kubectl has them. All others have
// NAME and AGE alone.
var columnsOf = map[string][]column{
	"pods": {
		{"READY", false, podReady},
		{"STATUS", false, podStatus},
		{"RESTARTS", false, podRestarts},
		{"IP", true, field("status.podIP")},
		{"NODE", true, field("spec.nodeName")},
	},
	"deployments.apps": {
		{"READY", false, readyOf("status.readyReplicas", "spec.replicas")},
		{"UP-TO-DATE", false, number("status.updatedReplicas")},
		{"AVAILABLE", false, number("status.availableReplicas")},
		{"CONTAINERS", true, templateNames},
		{"IMAGES", true, templateImages},
		{"SELECTOR", true, labelsAt("spec.selector.matchLabels")},
	},
	"statefulsets.apps": {
		{"READY", false, readyOf("status.readyReplicas", "spec.replicas")}, {"CONTAINERS", true, templateNames}, {"IMAGES", true, templateImages},
	},
	"replicasets.apps": {
		{"DESIRED", false, number("spec.replicas")},
		{"CURRENT", false, number("status.replicas")},
		{"READY", false, number("status.readyReplicas")},
		{"CONTAINERS", true, templateNames},
		{"IMAGES", true, templateImages},
	},
	"daemonsets.apps": {
		{"DESIRED", false, number("status.desiredNumberScheduled")},
		{"CURRENT", false, number("status.currentNumberScheduled")},
		{"READY", false, number("status.numberReady")},
		{"UP-TO-DATE", false, number("status.updatedNumberScheduled")},
		{"AVAILABLE", false, number("status.numberAvailable")},
		{"NODE SELECTOR", false, labelsAt("spec.template.spec.nodeSelector")},
		{"CONTAINERS", true, templateNames},
		{"IMAGES", true, templateImages},
	},
	"jobs.batch": {
		{"STATUS", false, jobStatus}, {"COMPLETIONS", false, jobCompletions}, {"CONTAINERS", true, templateNames}, {"IMAGES", true, templateImages},
	},
	"cronjobs.batch": {
		{"SCHEDULE", false, field("spec.schedule")},
		{"TIMEZONE", false, field("spec.timeZone")},
		{"SUSPEND", false, flag("spec.suspend")},
		{"ACTIVE", false, number("status.active.#")},
		{"LAST SCHEDULE", true, field("status.lastScheduleTime")},
	},
	"services": {
		{"TYPE", false, field("spec.type")},
		{"CLUSTER-IP", false, field("spec.clusterIP")},
		{"EXTERNAL-IP", false, serviceExternal},
		{"PORT(S)", false, servicePorts},
		{"SELECTOR", true, labelsAt("spec.selector")},
	},
	"configmaps": {{"DATA", false, dataCount}},
	"secrets":    {{"TYPE", false, field("type")}, {"DATA", false, dataCount}},
	"ingresses.networking.k8s.io": {
		{"CLASS", false, field("spec.ingressClassName")},
		{"HOSTS", false, list("spec.rules.#.host")},
		{"ADDRESS", false, ingressAddress},
		{"PORTS", false, ingressPorts},
	},
	"persistentvolumeclaims": {
		{"STATUS", false, field("status.phase")},
		{"VOLUME", false, field("spec.volumeName")},
		{"CAPACITY", false, field("status.capacity.storage")},
		{"ACCESS MODES", false, accessModes},
		{"STORAGECLASS", false, field("spec.storageClassName")},
		{"VOLUMEMODE", true, field("spec.volumeMode")},
	},
	"persistentvolumes": {
		{"CAPACITY", false, field("spec.capacity.storage")},
		{"ACCESS MODES", false, accessModes},
		{"RECLAIM POLICY", false, field("spec.persistentVolumeReclaimPolicy")},
		{"STATUS", false, field("status.phase")},
		{"CLAIM", false, volumeClaim},
		{"STORAGECLASS", false, field("spec.storageClassName")},
	},
	"namespaces":                             {{"STATUS", false, field("status.phase")}},
	"nodes":                                  {{"STATUS", false, nodeStatus}, {"VERSION", false, field("status.nodeInfo.kubeletVersion")}},
	"serviceaccounts":                        {{"SECRETS", false, number("secrets.#")}},
	"rolebindings.rbac.authorization.k8s.io": {{"ROLE", false, roleRef}},
	"clusterrolebindings.rbac.authorization.k8s.io": {{"ROLE", false, roleRef}},
	"customresourcedefinitions.apiextensions.k8s.io": {
		{"GROUP", true, field("spec.group")}, {"KIND", true, field("spec.names.kind")}, {"SCOPE", true, field("spec.scope")},
	},
	"storageclasses.storage.k8s.io": {{"PROVISIONER", false, field("provisioner")}, {"RECLAIMPOLICY", false, field("reclaimPolicy")}},
	"horizontalpodautoscalers.autoscaling": {
		{"REFERENCE", false, scaleTarget},
		{"MINPODS", false, field("spec.minReplicas")},
		{"MAXPODS", false, field("spec.maxReplicas")},
		{"REPLICAS", false, number("status.currentReplicas")},
	},
}

func field(path string) func(gjson.Result) string {
	return func(o gjson.Result) string { return o.Get(path).String() }
}

// number is 0 where there is none.
func number(path string) func(gjson.Result) string {
	return func(o gjson.Result) string { return strconv.FormatInt(o.Get(path).Int(), 10) }
}

func flag(path string) func(gjson.Result) string {
	return func(o gjson.Result) string {
		if o.Get(path).Bool() {
			return "True"
		}
		return "False"
	}
}

func list(path string) func(gjson.Result) string {
	return func(o gjson.Result) string { return join(o.Get(path)) }
}

func join(array gjson.Result) string {
	var out []string
	for _, v := range array.Array() {
		out = append(out, v.String())
	}
	return strings.Join(out, ",")
}

func readyOf(ready, wanted string) func(gjson.Result) string {
	return func(o gjson.Result) string {
		return strconv.FormatInt(o.Get(ready).Int(), 10) + "/" + strconv.FormatInt(o.Get(wanted).Int(), 10)
	}
}

func labelsAt(path string) func(gjson.Result) string {
	return func(o gjson.Result) string {
		var out []string
		o.Get(path).ForEach(func(k, v gjson.Result) bool {
			out = append(out, k.String()+"="+v.String())
			return true
		})
		return strings.Join(out, ",")
	}
}

var (
	templateNames  = list("spec.template.spec.containers.#.name")
	templateImages = list("spec.template.spec.containers.#.image")
)
