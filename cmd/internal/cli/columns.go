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
		{"READY", false, podReady}, {"STATUS", false, podStatus}, {"RESTARTS", false, podRestarts},
		{"IP", true, field("status.podIP")}, {"NODE", true, field("spec.nodeName")},
	},
	"deployments.apps": {
		{"READY", false, readyOf("status.readyReplicas", "spec.replicas")}, {"UP-TO-DATE", false, number("status.updatedReplicas")},
		{"AVAILABLE", false, number("status.availableReplicas")}, {"CONTAINERS", true, templateNames}, {"IMAGES", true, templateImages},
		{"SELECTOR", true, labelsAt("spec.selector.matchLabels")},
	},
	"statefulsets.apps": {
		{"READY", false, readyOf("status.readyReplicas", "spec.replicas")}, {"CONTAINERS", true, templateNames}, {"IMAGES", true, templateImages},
	},
	"replicasets.apps": {
		{"DESIRED", false, number("spec.replicas")}, {"CURRENT", false, number("status.replicas")}, {"READY", false, number("status.readyReplicas")},
		{"CONTAINERS", true, templateNames}, {"IMAGES", true, templateImages},
	},
	"daemonsets.apps": {
		{"DESIRED", false, number("status.desiredNumberScheduled")}, {"CURRENT", false, number("status.currentNumberScheduled")},
		{"READY", false, number("status.numberReady")}, {"UP-TO-DATE", false, number("status.updatedNumberScheduled")},
		{"AVAILABLE", false, number("status.numberAvailable")}, {"NODE SELECTOR", false, labelsAt("spec.template.spec.nodeSelector")},
		{"CONTAINERS", true, templateNames}, {"IMAGES", true, templateImages},
	},
	"jobs.batch": {
		{"STATUS", false, jobStatus}, {"COMPLETIONS", false, jobCompletions}, {"CONTAINERS", true, templateNames}, {"IMAGES", true, templateImages},
	},
	"cronjobs.batch": {
		{"SCHEDULE", false, field("spec.schedule")}, {"TIMEZONE", false, field("spec.timeZone")}, {"SUSPEND", false, flag("spec.suspend")},
		{"ACTIVE", false, number("status.active.#")}, {"LAST SCHEDULE", true, field("status.lastScheduleTime")},
	},
	"services": {
		{"TYPE", false, field("spec.type")}, {"CLUSTER-IP", false, field("spec.clusterIP")}, {"EXTERNAL-IP", false, serviceExternal},
		{"PORT(S)", false, servicePorts}, {"SELECTOR", true, labelsAt("spec.selector")},
	},
	"configmaps": {{"DATA", false, dataCount}},
	"secrets":    {{"TYPE", false, field("type")}, {"DATA", false, dataCount}},
	"ingresses.networking.k8s.io": {
		{"CLASS", false, field("spec.ingressClassName")}, {"HOSTS", false, list("spec.rules.#.host")},
		{"ADDRESS", false, ingressAddress}, {"PORTS", false, ingressPorts},
	},
	"persistentvolumeclaims": {
		{"STATUS", false, field("status.phase")}, {"VOLUME", false, field("spec.volumeName")}, {"CAPACITY", false, field("status.capacity.storage")},
		{"ACCESS MODES", false, accessModes}, {"STORAGECLASS", false, field("spec.storageClassName")}, {"VOLUMEMODE", true, field("spec.volumeMode")},
	},
	"persistentvolumes": {
		{"CAPACITY", false, field("spec.capacity.storage")}, {"ACCESS MODES", false, accessModes},
		{"RECLAIM POLICY", false, field("spec.persistentVolumeReclaimPolicy")}, {"STATUS", false, field("status.phase")},
		{"CLAIM", false, volumeClaim}, {"STORAGECLASS", false, field("spec.storageClassName")},
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
		{"REFERENCE", false, scaleTarget}, {"MINPODS", false, field("spec.minReplicas")}, {"MAXPODS", false, field("spec.maxReplicas")},
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

func podReady(o gjson.Result) string {
	ready := 0
	for _, c := range o.Get("status.containerStatuses").Array() {
		if c.Get("ready").Bool() {
			ready++
		}
	}
	return strconv.Itoa(ready) + "/" + o.Get("spec.containers.#").String()
}

func podRestarts(o gjson.Result) string {
	n := int64(0)
	for _, c := range o.Get("status.containerStatuses").Array() {
		n += c.Get("restartCount").Int()
	}
	return strconv.FormatInt(n, 10)
}

// podStatus is what is most worth knowing of a pod: why a container does not run, if one does
// not, else its phase.
func podStatus(o gjson.Result) string {
	if o.Get("metadata.deletionTimestamp").Exists() {
		return "Terminating"
	}
	inits := o.Get("status.initContainerStatuses").Array()
	for i, c := range inits {
		state := c.Get("state")
		switch {
		case state.Get("terminated").Exists() && state.Get("terminated.exitCode").Int() == 0, c.Get("started").Bool():
			continue
		case state.Get("terminated").Exists():
			return "Init:" + firstOf(state.Get("terminated.reason").String(), "Error")
		case state.Get("waiting.reason").Exists() && state.Get("waiting.reason").String() != "PodInitializing":
			return "Init:" + state.Get("waiting.reason").String()
		}
		return "Init:" + strconv.Itoa(i) + "/" + o.Get("spec.initContainers.#").String()
	}
	status := firstOf(o.Get("status.reason").String(), o.Get("status.phase").String())
	for _, c := range o.Get("status.containerStatuses").Array() {
		switch {
		case c.Get("state.waiting.reason").String() != "":
			return c.Get("state.waiting.reason").String()
		case c.Get("state.terminated").Exists():
			status = firstOf(c.Get("state.terminated.reason").String(), "ExitCode:"+c.Get("state.terminated.exitCode").String())
		}
	}
	return status
}

func firstOf(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func jobStatus(o gjson.Result) string {
	status := "Running"
	for _, c := range o.Get("status.conditions").Array() {
		if c.Get("status").String() != "True" {
			continue
		}
		switch t := c.Get("type").String(); t {
		case "Complete", "Failed":
			return t
		case "Suspended":
			status = t
		}
	}
	return status
}

func jobCompletions(o gjson.Result) string {
	wanted := o.Get("spec.completions").String()
	if wanted == "" {
		wanted = "1 of " + firstOf(o.Get("spec.parallelism").String(), "1")
	}
	return number("status.succeeded")(o) + "/" + wanted
}

func serviceExternal(o gjson.Result) string {
	if name := o.Get("spec.externalName").String(); name != "" {
		return name
	}
	return firstOf(ingressAddress(o), join(o.Get("spec.externalIPs")))
}

func servicePorts(o gjson.Result) string {
	var out []string
	for _, p := range o.Get("spec.ports").Array() {
		s := p.Get("port").String()
		if node := p.Get("nodePort").Int(); node != 0 {
			s += ":" + strconv.FormatInt(node, 10)
		}
		out = append(out, s+"/"+firstOf(p.Get("protocol").String(), "TCP"))
	}
	return strings.Join(out, ",")
}

func ingressAddress(o gjson.Result) string {
	var out []string
	for _, a := range o.Get("status.loadBalancer.ingress").Array() {
		out = append(out, firstOf(a.Get("ip").String(), a.Get("hostname").String()))
	}
	return strings.Join(out, ",")
}

func ingressPorts(o gjson.Result) string {
	if o.Get("spec.tls.#").Int() > 0 {
		return "80, 443"
	}
	return "80"
}

func dataCount(o gjson.Result) string {
	n := 0
	for _, path := range []string{"data", "binaryData"} {
		o.Get(path).ForEach(func(_, _ gjson.Result) bool { n++; return true })
	}
	return strconv.Itoa(n)
}

func accessModes(o gjson.Result) string {
	var out []string
	for _, m := range o.Get("spec.accessModes").Array() {
		switch m.String() {
		case "ReadWriteOnce":
			out = append(out, "RWO")
		case "ReadOnlyMany":
			out = append(out, "ROX")
		case "ReadWriteMany":
			out = append(out, "RWX")
		case "ReadWriteOncePod":
			out = append(out, "RWOP")
		default:
			out = append(out, m.String())
		}
	}
	return strings.Join(out, ",")
}

func volumeClaim(o gjson.Result) string {
	c := o.Get("spec.claimRef")
	if !c.Exists() {
		return ""
	}
	return c.Get("namespace").String() + "/" + c.Get("name").String()
}

func nodeStatus(o gjson.Result) string {
	status := "Unknown"
	for _, c := range o.Get("status.conditions").Array() {
		if c.Get("type").String() == "Ready" {
			status = map[string]string{"True": "Ready", "False": "NotReady"}[c.Get("status").String()]
		}
	}
	if o.Get("spec.unschedulable").Bool() {
		status = firstOf(status, "Unknown") + ",SchedulingDisabled"
	}
	return firstOf(status, "Unknown")
}

func roleRef(o gjson.Result) string {
	return o.Get("roleRef.kind").String() + "/" + o.Get("roleRef.name").String()
}

func scaleTarget(o gjson.Result) string {
	return o.Get("spec.scaleTargetRef.kind").String() + "/" + o.Get("spec.scaleTargetRef.name").String()
}
