package api

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/tidemark-backup/tidemark/replay"
)

// ErrCutOff is returned when an answer ended before it said that it was complete.
var ErrCutOff = errors.New("the daemon's answer was cut off before its end; try again, and see 'tidemark status' if it stays so")

const (
	maxLine   = 4 << 20   // a record's metadata: fields and managers of one change
	maxObject = 256 << 20 // far above what an API server stores; only guards against a broken peer
)

// line is one line of a stream: a record, the end, or an error.
type line struct {
	Record
	Size       int64 `json:"size"`
	BeforeSize int64 `json:"beforeSize,omitempty"`
}

type lastLine struct {
	End bool `json:"end,omitempty"`
	wireError
}

// recordWriter writes a stream of records.
type recordWriter struct {
	w   *bufio.Writer
	enc *json.Encoder
}

func newRecordWriter(w io.Writer) *recordWriter {
	b := bufio.NewWriterSize(w, 64<<10)
	enc := json.NewEncoder(b)
	enc.SetEscapeHTML(false)
	return &recordWriter{w: b, enc: enc}
}

func (w *recordWriter) write(c *replay.Change) error {
	l := line{Record: RecordOf(c), Size: int64(len(c.Object)), BeforeSize: int64(len(c.Before))}
	if err := w.enc.Encode(&l); err != nil { // Encode ends the line
		return err
	}
	for _, b := range [][]byte{c.Before, c.Object, {'\n'}} {
		if _, err := w.w.Write(b); err != nil {
			return err
		}
	}
	return nil
}

// end closes the stream: completely when err is nil, else with the error.
func (w *recordWriter) end(err error) error {
	last := lastLine{End: err == nil}
	if err != nil {
		last.wireError = *toWire(err)
	}
	if err := w.enc.Encode(&last); err != nil {
		return err
	}
	return w.w.Flush()
}

// recordReader reads what recordWriter wrote. Its buffers are reused from record to record.
type recordReader struct {
	r              *bufio.Reader
	object, before bytes.Buffer
}

func newRecordReader(r io.Reader) *recordReader {
	return &recordReader{r: bufio.NewReaderSize(r, 64<<10)}
}

// next returns the next record, io.EOF at the stream's proper end, ErrCutOff when it ended
// without one, or the error that the daemon reported. The change is valid until the next call.
func (r *recordReader) next() (replay.Change, error) {
	text, err := r.line()
	if err != nil {
		return replay.Change{}, err
	}
	var l struct {
		line
		lastLine
	}
	if err := json.Unmarshal(text, &l); err != nil {
		return replay.Change{}, fmt.Errorf("read the daemon's answer: %w", err)
	}
	switch {
	case l.Message != "":
		return replay.Change{}, fromWire(&l.wireError)
	case l.End:
		return replay.Change{}, io.EOF
	case l.Size < 0 || l.Size > maxObject || l.BeforeSize < 0 || l.BeforeSize > maxObject:
		return replay.Change{}, fmt.Errorf("read the daemon's answer: impossible object size %d, %d", l.Size, l.BeforeSize)
	}
	if err := r.body(&r.before, l.BeforeSize); err != nil {
		return replay.Change{}, err
	}
	if err := r.body(&r.object, l.Size); err != nil {
		return replay.Change{}, err
	}
	if b, err := r.r.ReadByte(); err != nil {
		return replay.Change{}, cutOff(err)
	} else if b != '\n' {
		return replay.Change{}, errors.New("read the daemon's answer: an object does not end where its size says")
	}
	c := l.Change()
	if l.Size > 0 {
		c.Object = r.object.Bytes()
	}
	if l.BeforeSize > 0 {
		c.Before = r.before.Bytes()
	}
	return c, nil
}

// body reads n bytes into b. The buffer grows with what arrives, not with what was announced.
func (r *recordReader) body(b *bytes.Buffer, n int64) error {
	b.Reset()
	if _, err := io.CopyN(b, r.r, n); err != nil {
		return cutOff(err)
	}
	return nil
}

func (r *recordReader) line() ([]byte, error) {
	text, err := r.r.ReadSlice('\n')
	if !errors.Is(err, bufio.ErrBufferFull) {
		return text, cutOff(err)
	}
	long := bytes.Clone(text)
	for errors.Is(err, bufio.ErrBufferFull) {
		if len(long) > maxLine {
			return nil, fmt.Errorf("read the daemon's answer: a line of more than %d bytes", maxLine)
		}
		text, err = r.r.ReadSlice('\n')
		long = append(long, text...)
	}
	return long, cutOff(err)
}

// cutOff turns the end of the connection into ErrCutOff; context errors stay what they are.
func cutOff(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return ErrCutOff
	}
	return err
}
