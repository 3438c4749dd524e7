package daemon

import (
	"fmt"
	"strings"

	"github.com/go-logr/zapr"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"k8s.io/klog/v2"
)

// BridgeKlog sends what client-go logs to the logger, with everything taken out that could
// hold an object: client-go logs whole objects on some errors, and they can be Secrets. It
// sets klog's process-wide logger, so main calls it once, before anything else runs.
func BridgeKlog(l *zap.Logger) {
	l = l.Named("kubernetes").WithOptions(zap.WrapCore(func(c zapcore.Core) zapcore.Core { return redactingCore{c} }))
	klog.SetLogFilter(klogFilter{})
	klog.SetLoggerWithOptions(zapr.NewLogger(l), klog.ContextualLogger(true))
}

// maxText bounds messages and errors from libraries; an API server's error can quote input.
const maxText = 512

// objectKeys are the keys under which client-go logs objects.
var objectKeys = []string{"object", "event", "obj", "objects", "item", "oldObj", "newObj", "body", "data"}

// redactingCore lets only values of primitive types through.
type redactingCore struct{ zapcore.Core }

// With implements zapcore.Core.
func (c redactingCore) With(fields []zapcore.Field) zapcore.Core {
	return redactingCore{c.Core.With(redact(fields))}
}

// Check implements zapcore.Core. It must add this core and not the one inside.
func (c redactingCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

// Write implements zapcore.Core.
func (c redactingCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	e.Message = short(e.Message)
	return c.Core.Write(e, redact(fields))
}

func redact(fields []zapcore.Field) []zapcore.Field {
	out := make([]zapcore.Field, 0, len(fields))
	for _, f := range fields {
		if isObjectKey(f.Key) {
			continue
		}
		switch f.Type {
		case zapcore.BoolType, zapcore.DurationType, zapcore.Float64Type, zapcore.Float32Type,
			zapcore.Int64Type, zapcore.Int32Type, zapcore.Int16Type, zapcore.Int8Type,
			zapcore.Uint64Type, zapcore.Uint32Type, zapcore.Uint16Type, zapcore.Uint8Type,
			zapcore.TimeType, zapcore.TimeFullType, zapcore.NamespaceType, zapcore.SkipType:
			out = append(out, f)
		case zapcore.StringType:
			out = append(out, zap.String(f.Key, short(f.String)))
		case zapcore.ErrorType:
			if err, ok := f.Interface.(error); ok && err != nil {
				out = append(out, zap.String(f.Key, short(err.Error())))
			}
		default: // anything that prints itself or is taken apart by reflection
			out = append(out, zap.String(f.Key, typeName(f.Interface)))
		}
	}
	return out
}

func isObjectKey(key string) bool {
	for _, k := range objectKeys {
		if strings.EqualFold(key, k) {
			return true
		}
	}
	return false
}

// klogFilter does the same to klog's printf-like calls, before they become text.
type klogFilter struct{}

// Filter implements klog.LogFilter.
func (klogFilter) Filter(args []any) []any { return primitives(args) }

// FilterF implements klog.LogFilter.
func (klogFilter) FilterF(format string, args []any) (string, []any) {
	return format, primitives(args)
}

// FilterS implements klog.LogFilter.
func (klogFilter) FilterS(msg string, kv []any) (string, []any) {
	out := make([]any, 0, len(kv))
	for i := 0; i+1 < len(kv); i += 2 {
		if key, ok := kv[i].(string); ok && !isObjectKey(key) {
			out = append(out, key, primitive(kv[i+1]))
		}
	}
	return msg, out
}

func primitives(args []any) []any {
	out := make([]any, len(args))
	for i, a := range args {
		out[i] = primitive(a)
	}
	return out
}

func primitive(v any) any {
	switch v := v.(type) {
	case nil, bool, int, int8, int16, int32, int64, uint, uint8, uint16, uint32, uint64, float32, float64:
		return v
	case string:
		return short(v)
	case error:
		return short(v.Error())
	}
	return typeName(v)
}

func typeName(v any) string { return fmt.Sprintf("(%T)", v) }

// short bounds a text and cuts it where a printed Go value or JSON would begin.
func short(s string) string {
	cut := len(s)
	for _, start := range []string{"{", "map["} {
		if i := strings.Index(s, start); i >= 0 && i < cut {
			cut = i
		}
	}
	if cut = min(cut, maxText); cut == len(s) {
		return s
	}
	return strings.ToValidUTF8(s[:cut], "") + "..."
}
