package daemon

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/klog/v2"
)

const canary = "CANARY-c2VjcmV0"

// syncBuffer is where the log goes.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// No way of logging in client-go may bring an object into the log: not as a value, not in an
// error, not in the arguments of a format, not through a logger that carries values.
func TestKlogBridgeLetsNoObjectThrough(t *testing.T) {
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "pw", Annotations: map[string]string{"note": canary}},
		Data:       map[string][]byte{"password": []byte(canary)}, StringData: map[string]string{"p": canary},
	}
	u := &unstructured.Unstructured{Object: map[string]any{"kind": "Secret", "data": map[string]any{"p": canary}}}
	raw, err := json.Marshal(secret)
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]any{
		"pointer": secret, "value": *secret, "unstructured": u, "map": u.Object, "bytes": raw, "json": json.RawMessage(raw),
		"event": watch.Event{Type: watch.Added, Object: secret}, "list": []any{secret}, "strings": []string{canary},
		"stringer": stringer{}, "printed": fmt.Sprintf("%+v", u.Object), "text": string(raw),
		"error": fmt.Errorf("unable to understand list result %#v", *secret), "nested": errors.Join(errors.New("x"), fmt.Errorf("%s", raw)),
	}
	for name, v := range values {
		t.Run(name, func(t *testing.T) {
			var out syncBuffer
			core := zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), zapcore.AddSync(&out), zapcore.DebugLevel)
			BridgeKlog(zap.New(core))
			t.Cleanup(func() { klog.ClearLogger(); klog.SetLogFilter(nil) })
			for _, key := range append([]string{"whatever"}, objectKeys...) {
				klog.InfoS("a message", key, v, "resource", "secrets")
				klog.ErrorS(errors.New("x"), "Unable to update watch event object to store", key, v)
				klog.Background().Info("a message", key, v)
				klog.Background().WithValues(key, v).WithName("n").Error(nil, "a message")
			}
			if err, ok := v.(error); ok {
				klog.ErrorS(err, "a message")
				klog.Background().Error(err, "a message")
			}
			klog.Errorf("an event %v %+v %#v", v, v, v)
			klog.Warning("an event ", v)
			klog.Infoln(v)
			if name != "strings" { // "[text]" as text cannot be told from a message
				klog.Background().Info(fmt.Sprintf("an event %+v", v))
			}
			klog.Flush()
			if strings.Contains(out.String(), canary) {
				t.Errorf("the log holds the object:\n%s", out.String())
			}
			if n := strings.Count(out.String(), "a message"); n < 3*len(objectKeys) {
				t.Errorf("only %d messages came through at all:\n%s", n, out.String())
			}
			if !strings.Contains(out.String(), `"resource":"secrets"`) {
				t.Error("plain values do not come through")
			}
		})
	}
}

type stringer struct{}

func (stringer) String() string { return "Secret{data:{" + canary + "}}" }

func TestKlogBridgeKeepsWhatHelps(t *testing.T) {
	var out syncBuffer
	core := zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), zapcore.AddSync(&out), zapcore.InfoLevel)
	BridgeKlog(zap.New(core))
	t.Cleanup(func() { klog.ClearLogger(); klog.SetLogFilter(nil) })
	klog.ErrorS(errors.New(`Get "https://10.0.0.1:6443/api": dial tcp: connection refused`), "Failed to watch", "type", "pods", "attempt", 3)
	klog.Flush()
	for _, want := range []string{"Failed to watch", "connection refused", `"type":"pods"`, `"attempt":3`, `"logger":"kubernetes"`, `"level":"error"`} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %s in %s", want, out.String())
		}
	}
}
