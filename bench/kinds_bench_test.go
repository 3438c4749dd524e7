package bench

import "strings"

// Templates of what a real API server sends, managedFields and all.

var (
	madeUpPod = newMadeUpKind(podInfo, `{"kind":"Pod","apiVersion":"v1","metadata":{"name":"{{name}}","generateName":"{{name}}-","namespace":"{{namespace}}","uid":"{{uid}}","resourceVersion":"{{rv}}","generation":{{generation}},"creationTimestamp":"{{created}}",`+
		`"labels":{"app.kubernetes.io/name":"{{name}}","app.kubernetes.io/version":"{{tag}}","pod-template-hash":"{{hash}}"},"annotations":{"example.com/config-digest":"{{note}}"},`+
		`"ownerReferences":[{"apiVersion":"apps/v1","kind":"ReplicaSet","name":"{{name}}-{{hash}}","uid":"{{owner}}","controller":true,"blockOwnerDeletion":true}],`+
		`"managedFields":[{"manager":"kube-controller-manager","operation":"Update","apiVersion":"v1","time":"{{created}}","fieldsType":"FieldsV1","fieldsV1":{"f:metadata":{"f:annotations":{".":{},"f:example.com/config-digest":{}},"f:generateName":{},"f:labels":{".":{},"f:app.kubernetes.io/name":{},"f:app.kubernetes.io/version":{},"f:pod-template-hash":{}},"f:ownerReferences":{".":{},"k:{\"uid\":\"{{owner}}\"}":{}}},"f:spec":`+podSpecFields+`}},`+
		`{"manager":"kubelet","operation":"Update","apiVersion":"v1","time":"{{changed}}","fieldsType":"FieldsV1","fieldsV1":{"f:status":{"f:conditions":{`+conditionFields("Ready", "ContainersReady")+`},"f:containerStatuses":{},"f:hostIP":{},"f:hostIPs":{},"f:phase":{},"f:podIP":{},"f:podIPs":{".":{},"k:{\"ip\":\"{{ip}}\"}":{".":{},"f:ip":{}}},"f:startTime":{}}},"subresource":"status"}]},`+
		`"spec":`+podSpec(`"nodeName":"{{node}}",`)+`,`+
		`"status":{"observedGeneration":{{generation}},"phase":"Running","conditions":[{"type":"Initialized","status":"True","lastProbeTime":null,"lastTransitionTime":"{{created}}"},{"type":"Ready","status":"{{Ready}}","lastProbeTime":null,"lastTransitionTime":"{{readyAt}}"},{"type":"ContainersReady","status":"{{Ready}}","lastProbeTime":null,"lastTransitionTime":"{{readyAt}}"},{"type":"PodScheduled","status":"True","lastProbeTime":null,"lastTransitionTime":"{{created}}"}],`+
		`"hostIP":"192.168.4.7","hostIPs":[{"ip":"192.168.4.7"}],"podIP":"{{ip}}","podIPs":[{"ip":"{{ip}}"}],"startTime":"{{created}}","containerStatuses":[{"name":"main","state":{"running":{"startedAt":"{{started}}"}},"lastState":{},"ready":{{ready}},"restartCount":{{restarts}},"image":"registry.example.com/shop/main:{{tag}}","imageID":"registry.example.com/shop/main@sha256:{{hash}}{{hash}}{{hash}}","containerID":"containerd://{{container}}","started":true}],"qosClass":"Burstable"}}`)

	madeUpDeployment = newMadeUpKind(deploymentInfo, `{"kind":"Deployment","apiVersion":"apps/v1","metadata":{"name":"{{name}}","namespace":"{{namespace}}","uid":"{{uid}}","resourceVersion":"{{rv}}","generation":{{generation}},"creationTimestamp":"{{created}}",`+
		`"labels":{"app.kubernetes.io/name":"{{name}}","app.kubernetes.io/version":"{{tag}}"},"annotations":{"deployment.kubernetes.io/revision":"{{generation}}","example.com/config-digest":"{{note}}"},`+
		`"managedFields":[{"manager":"helm","operation":"Update","apiVersion":"apps/v1","time":"{{created}}","fieldsType":"FieldsV1","fieldsV1":{"f:metadata":{"f:annotations":{".":{},"f:example.com/config-digest":{}},"f:labels":{".":{},"f:app.kubernetes.io/name":{},"f:app.kubernetes.io/version":{}}},"f:spec":{"f:progressDeadlineSeconds":{},"f:replicas":{},"f:revisionHistoryLimit":{},"f:selector":{},"f:strategy":{"f:rollingUpdate":{".":{},"f:maxSurge":{},"f:maxUnavailable":{}},"f:type":{}},"f:template":{"f:metadata":{"f:labels":{".":{},"f:app.kubernetes.io/name":{}}},"f:spec":`+podSpecFields+`}}}},`+
		`{"manager":"kube-controller-manager","operation":"Update","apiVersion":"apps/v1","time":"{{changed}}","fieldsType":"FieldsV1","fieldsV1":{"f:metadata":{"f:annotations":{"f:deployment.kubernetes.io/revision":{}}},"f:status":{"f:availableReplicas":{},"f:conditions":{`+conditionFields("Available", "Progressing")+`},"f:observedGeneration":{},"f:readyReplicas":{},"f:replicas":{},"f:updatedReplicas":{}}},"subresource":"status"}]},`+
		`"spec":{"replicas":{{replicas}},"selector":{"matchLabels":{"app.kubernetes.io/name":"{{name}}"}},"template":{"metadata":{"labels":{"app.kubernetes.io/name":"{{name}}"}},"spec":`+podSpec("")+`},"strategy":{"type":"RollingUpdate","rollingUpdate":{"maxUnavailable":"25%","maxSurge":"25%"}},"revisionHistoryLimit":10,"progressDeadlineSeconds":600},`+
		`"status":{"observedGeneration":{{generation}},"replicas":{{replicas}},"updatedReplicas":{{replicas}},"readyReplicas":{{available}},"availableReplicas":{{available}},"conditions":[{"type":"Progressing","status":"True","lastUpdateTime":"{{changed}}","lastTransitionTime":"{{created}}","reason":"NewReplicaSetAvailable","message":"ReplicaSet \"{{name}}-{{hash}}\" has successfully progressed."},{"type":"Available","status":"{{Ready}}","lastUpdateTime":"{{readyAt}}","lastTransitionTime":"{{readyAt}}","reason":"MinimumReplicasAvailable","message":"Deployment has minimum availability."}]}}`)

	madeUpConfigMap = newMadeUpKind(configMapInfo, `{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"{{name}}","namespace":"{{namespace}}","uid":"{{uid}}","resourceVersion":"{{rv}}","creationTimestamp":"{{created}}","labels":{"app.kubernetes.io/name":"{{name}}"},`+
		`"managedFields":[{"manager":"kubectl-client-side-apply","operation":"Update","apiVersion":"v1","time":"{{changed}}","fieldsType":"FieldsV1","fieldsV1":{"f:data":{".":{},"f:application.properties":{},"f:digest":{},"f:replicas":{}},"f:metadata":{"f:labels":{".":{},"f:app.kubernetes.io/name":{}}}}}]},`+
		`"data":{"application.properties":"`+properties(20)+`\nserver.instance={{uid}}\nserver.release={{tag}}\n","digest":"{{note}}","replicas":"{{available}}"}}`)
)

func podSpec(node string) string {
	env := func(names ...string) string {
		var all []string
		for _, n := range names {
			all = append(all, `{"name":"`+n+`_ADDRESS","value":"`+strings.ToLower(n)+`.{{namespace}}.svc.cluster.local:8443"}`)
		}
		return strings.Join(all, ",")
	}
	probe := `{"httpGet":{"path":"/healthz","port":"http","scheme":"HTTP"},"initialDelaySeconds":5,"timeoutSeconds":1,"periodSeconds":10,"successThreshold":1,"failureThreshold":3}`
	return `{"volumes":[{"name":"config","configMap":{"name":"{{name}}-config","defaultMode":420}}],"containers":[{"name":"main","image":"registry.example.com/shop/main:{{tag}}","args":["--config=/etc/main/config.yaml","--log-format=json","--instance={{name}}"],"ports":[{"name":"http","containerPort":8080,"protocol":"TCP"},{"name":"metrics","containerPort":9090,"protocol":"TCP"}],` +
		`"env":[` + env("ORDERS", "CUSTOMERS", "PAYMENTS") + `],"resources":{"limits":{"cpu":"500m","memory":"256Mi"},"requests":{"cpu":"100m","memory":"128Mi"}},"volumeMounts":[{"name":"config","readOnly":true,"mountPath":"/etc/main"}],"readinessProbe":` + probe + `,` +
		`"terminationMessagePath":"/dev/termination-log","terminationMessagePolicy":"File","imagePullPolicy":"IfNotPresent","securityContext":{"capabilities":{"drop":["ALL"]},"runAsNonRoot":true,"readOnlyRootFilesystem":true,"allowPrivilegeEscalation":false}}],"restartPolicy":"Always","terminationGracePeriodSeconds":30,"dnsPolicy":"ClusterFirst","serviceAccountName":"main","serviceAccount":"main",` + node + `"securityContext":{},"schedulerName":"default-scheduler"}`
}

const podSpecFields = `{"f:containers":{"k:{\"name\":\"main\"}":{".":{},"f:args":{},"f:env":{".":{},"k:{\"name\":\"CUSTOMERS_ADDRESS\"}":{".":{},"f:name":{},"f:value":{}},"k:{\"name\":\"ORDERS_ADDRESS\"}":{".":{},"f:name":{},"f:value":{}},"k:{\"name\":\"PAYMENTS_ADDRESS\"}":{".":{},"f:name":{},"f:value":{}}},"f:image":{},"f:imagePullPolicy":{},"f:name":{},"f:ports":{".":{},"k:{\"containerPort\":8080,\"protocol\":\"TCP\"}":{".":{},"f:containerPort":{},"f:name":{},"f:protocol":{}}},"f:resources":{".":{},"f:limits":{".":{},"f:cpu":{},"f:memory":{}},"f:requests":{".":{},"f:cpu":{},"f:memory":{}}},"f:securityContext":{},"f:volumeMounts":{}}},"f:dnsPolicy":{},"f:restartPolicy":{},"f:schedulerName":{},"f:serviceAccount":{},"f:serviceAccountName":{},"f:volumes":{}}`

func conditionFields(types ...string) string {
	var all []string
	for _, t := range types {
		all = append(all, `"k:{\"type\":\"`+t+`\"}":{".":{},"f:lastTransitionTime":{},"f:status":{},"f:type":{}}`)
	}
	return strings.Join(all, ",")
}

func properties(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(words[i%len(words)] + ".client.timeout=" + strings.Repeat("9", i%3+1) + `s\n` + words[i%len(words)] + ".pool.size=" + strings.Repeat("4", i%2+1) + `\n`)
	}
	return b.String()
}
