package cli

import (
	"strconv"
	"strings"

	"github.com/tidwall/gjson"
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
