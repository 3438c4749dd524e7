package replay

import (
	"encoding/json"
	"strconv"

	"github.com/tidwall/gjson"
)

// fixService drops the addresses and ports that the cluster chose, and keeps those that a
// person chose. A copy under another namespace gets new ones: both cannot have the same.
func fixService(s *subject) {
	o := s.obj
	chosen := chosenBy(s)
	chosen.policy = s.req.NodePorts
	if o.str("spec", "clusterIP") != "None" && !chosen.clusterIP {
		o.drop("spec", "clusterIP")
		o.drop("spec", "clusterIPs")
	}
	if !chosen.keeps(chosen.healthPort) {
		o.drop("spec", "healthCheckNodePort")
	}
	for _, p := range o.objects("spec", "ports") {
		if !chosen.keeps(chosen.nodePorts[portKey(p)]) {
			p.drop("nodePort")
		}
	}
}

// serviceChoices tells which addresses and ports of a Service somebody asked for.
type serviceChoices struct {
	clusterIP, healthPort bool
	nodePorts             map[string]bool // by portKey
	policy                NodePortPolicy
}

// keeps reports whether a port of the nodes stays, which somebody chose or not.
func (c *serviceChoices) keeps(chosen bool) bool {
	return c.policy == NodePortsKept || c.policy == NodePortsChosen && chosen
}

func portKey(p object) string {
	n, _ := p.at("port").(int64)
	proto := p.str("protocol")
	if proto == "" {
		proto = "TCP"
	}
	return strconv.FormatInt(n, 10) + "/" + proto
}

// chosenBy reads who asked for what from the managedFields (the API server's own choices
// have no owner there) and from what kubectl apply remembers. Rules see an object after its
// metadata was stripped, so the answer comes from the object as it was recorded.
func chosenBy(s *subject) serviceChoices {
	c := serviceChoices{nodePorts: map[string]bool{}}
	if s.original == nil || !s.live && s.req.namespace(s.original.namespace()) != s.original.namespace() {
		return c
	}
	for _, e := range s.original.objects("metadata", "managedFields") {
		spec := e.sub("fieldsV1", "f:spec")
		c.clusterIP = c.clusterIP || spec.at("f:clusterIP") != nil
		c.healthPort = c.healthPort || spec.at("f:healthCheckNodePort") != nil
		for k, v := range spec.sub("f:ports") {
			fields, _ := v.(map[string]any)
			if _, owned := fields["f:nodePort"]; owned && len(k) > 2 {
				var p object
				if json.Unmarshal([]byte(k[2:]), (*map[string]any)(&p)) == nil {
					n, _ := p.at("port").(float64)
					p.put(int64(n), "port")
					c.nodePorts[portKey(p)] = true
				}
			}
		}
	}
	applied := gjson.Get(s.original.annotation(lastApplied), "spec")
	c.clusterIP = c.clusterIP || applied.Get("clusterIP").String() != ""
	c.healthPort = c.healthPort || applied.Get("healthCheckNodePort").Exists()
	for _, p := range applied.Get("ports").Array() {
		if p.Get("nodePort").Int() != 0 {
			c.nodePorts[portKey(object{"port": p.Get("port").Int(), "protocol": p.Get("protocol").String()})] = true
		}
	}
	return c
}
