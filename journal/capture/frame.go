package capture

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"unsafe"

	"github.com/tidwall/gjson"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
)

// maxFrame bounds one watch event. API servers refuse objects far smaller than this.
const maxFrame = 32 << 20

var (
	errFrame      = errors.New("malformed watch frame")
	errMetadata   = errors.New("object without name or resourceVersion")
	errFrameLarge = fmt.Errorf("watch frame of more than %d MiB", maxFrame>>20)
	// errNotNumeric is returned for resources whose revisions cannot be ordered.
	errNotNumeric = errors.New("its resourceVersion is not a number, so its history cannot be ordered")
)

// rawObject is an object as it came, with the fields that the way to the journal needs.
type rawObject struct {
	meta      metav1.ObjectMeta // only what a Reflector asks for: resourceVersion, annotations of bookmarks
	namespace string
	name      string
	uid       string
	rv        uint64
	raw       []byte
}

// GetObjectKind and DeepCopyObject make it a runtime.Object. It is never changed, so a copy is
// the object itself.
func (o *rawObject) GetObjectKind() schema.ObjectKind { return schema.EmptyObjectKind }

// DeepCopyObject implements runtime.Object.
func (o *rawObject) DeepCopyObject() runtime.Object { return o }

// GetObjectMeta implements metav1.ObjectMetaAccessor.
func (o *rawObject) GetObjectMeta() metav1.Object { return &o.meta }

// scanObject scans the metadata out of an object's JSON. The result holds on to raw.
func scanObject(raw []byte) (*rawObject, error) {
	o := &rawObject{raw: raw}
	var version string
	// The scan sees raw as a string without copying it: managedFields alone are often half of
	// an object. Only clones of the four values outlive it.
	missing := 4
	gjson.Get(unsafe.String(unsafe.SliceData(raw), len(raw)), "metadata").ForEach(func(k, v gjson.Result) bool {
		var field *string
		switch k.Str {
		case "name":
			field = &o.name
		case "namespace":
			field = &o.namespace
		case "uid":
			field = &o.uid
		case "resourceVersion":
			field = &version
		default:
			return true
		}
		if *field == "" {
			missing--
		}
		*field = strings.Clone(v.String())
		return missing > 0
	})
	if version == "" {
		return nil, errMetadata
	}
	rv, err := strconv.ParseUint(version, 10, 64)
	if err != nil {
		return nil, errNotNumeric
	}
	o.rv, o.meta.ResourceVersion = rv, version
	return o, nil
}

var (
	frameStart  = []byte(`{"type":"`)
	frameObject = []byte(`","object":`)
)

// splitFrame cuts a watch event, {"type":"T","object":{...}}, into T and the object. The
// server writes it in exactly this form, and nothing behind the object; what begins in another
// way takes the slow one.
func splitFrame(line []byte) (kind string, object []byte, err error) {
	line = bytes.TrimSpace(line)
	if rest, ok := bytes.CutPrefix(line, frameStart); ok {
		i := bytes.Index(rest[:min(len(rest), 32)], frameObject)
		if i >= 0 && bytes.IndexByte(rest[:i], '\\') < 0 && bytes.HasSuffix(rest, []byte("}}")) {
			return string(rest[:i]), rest[i+len(frameObject) : len(rest)-1], nil
		}
	}
	var f struct {
		Type   string          `json:"type"`
		Object json.RawMessage `json:"object"`
	}
	if err := json.Unmarshal(line, &f); err != nil || f.Type == "" || len(f.Object) == 0 {
		return "", nil, errFrame // the cause could quote the object
	}
	return f.Type, f.Object, nil
}

// decodeFrame makes a watch event of one line. It copies what it keeps.
func decodeFrame(line []byte) (watch.Event, error) {
	kind, object, err := splitFrame(line)
	if err != nil {
		return watch.Event{}, err
	}
	switch t := watch.EventType(kind); t {
	case watch.Added, watch.Modified, watch.Deleted:
		o, err := scanObject(bytes.Clone(object))
		if err == nil && o.name == "" {
			err = errMetadata
		}
		return watch.Event{Type: t, Object: o}, err
	case watch.Bookmark:
		o, err := scanObject(bytes.Clone(object))
		return watch.Event{Type: t, Object: o}, err
	case watch.Error:
		status := &metav1.Status{}
		if err := json.Unmarshal(object, status); err != nil {
			return watch.Event{}, errFrame
		}
		return watch.Event{Type: t, Object: status}, nil
	default:
		return watch.Event{}, errFrame
	}
}

// frameWatch reads a watch response frame by frame. It implements watch.Interface.
type frameWatch struct {
	body    io.ReadCloser
	events  chan watch.Event
	stopped chan struct{}
	stop    sync.Once
	onEvent func(watch.Event) // sees each event before it is passed on
	onEnd   func()            // is called when nothing more comes, before the channel is closed
}

func newFrameWatch(body io.ReadCloser, onEvent func(watch.Event), onEnd func()) *frameWatch {
	w := &frameWatch{body: body, events: make(chan watch.Event, 16), stopped: make(chan struct{}), onEvent: onEvent, onEnd: onEnd}
	go w.read()
	return w
}

// Stop implements watch.Interface.
func (w *frameWatch) Stop() {
	w.stop.Do(func() {
		close(w.stopped)
		w.body.Close()
	})
}

// ResultChan implements watch.Interface.
func (w *frameWatch) ResultChan() <-chan watch.Event { return w.events }

func (w *frameWatch) read() {
	defer close(w.events)
	defer w.onEnd()
	defer w.body.Close()
	lines := newLineReader(w.body)
	for {
		line, err := lines.next()
		if err != nil && !errors.Is(err, errFrameLarge) {
			return // the end of the watch, or of the connection: the Reflector watches again
		}
		var e watch.Event
		if err == nil {
			if len(bytes.TrimSpace(line)) == 0 {
				continue
			}
			e, err = decodeFrame(line)
		}
		if err != nil {
			e = watch.Event{Type: watch.Error, Object: &metav1.Status{
				Status: metav1.StatusFailure, Reason: metav1.StatusReasonUnknown, Code: 500, Message: err.Error(),
			}}
		}
		w.onEvent(e)
		select {
		case w.events <- e:
		case <-w.stopped:
			return
		}
		if err != nil {
			return
		}
	}
}

// lineReader yields lines of any length up to maxFrame from one buffer that it keeps.
type lineReader struct {
	r   *bufio.Reader
	big []byte
}

// lineBuffer is what each watch reads through: most watches are idle, and there is one of each resource. Longer lines are
// put together beside it.
const lineBuffer = 8 << 10

func newLineReader(r io.Reader) *lineReader {
	return &lineReader{r: bufio.NewReaderSize(r, lineBuffer)}
}

// next returns the next line, valid until the next call. A line that the end of the stream
// cuts off is not returned: half an event is none.
func (l *lineReader) next() ([]byte, error) {
	line, err := l.r.ReadSlice('\n')
	if err == nil {
		return line, nil
	}
	l.big = l.big[:0]
	for errors.Is(err, bufio.ErrBufferFull) {
		if l.big = append(l.big, line...); len(l.big) > maxFrame {
			return nil, errFrameLarge
		}
		line, err = l.r.ReadSlice('\n')
	}
	if err != nil {
		return nil, err
	}
	l.big = append(l.big, line...)
	line = l.big
	if cap(l.big) > 1<<20 {
		l.big = nil // one huge object must not cost its size for ever
	}
	return line, nil
}
