package journal

import (
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/zap"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Options configure a journal. The zero Options are usable.
type Options struct {
	// Key seals the bodies of the Seal resources (32 bytes). Nil: read from KeyFile.
	Key []byte
	// KeyFile holds the key; made with mode 0600 when a new journal is opened and it is
	// missing. Default: journal.key in the data directory.
	KeyFile string
	// Seal lists the resources whose bodies are encrypted at rest. Default: core secrets.
	Seal []schema.GroupResource
	// Window is how long history is kept locally, at least; Trim removes what is older. Zero: for ever.
	Window time.Duration
	// MinFree is the free space, in bytes, below which recording pauses. Zero: 256 MiB.
	MinFree uint64
	// Free tells the free space of the data directory in bytes. Default: ask the file system.
	Free func() (uint64, error)
	// QueueBytes bounds the events that wait to be written, in bytes. Zero: 16 MiB.
	QueueBytes int64
	// BatchEvents and BatchBytes bound one batch, so one fsync. Zero: 512 events, 4 MiB.
	BatchEvents int
	BatchBytes  int
	// CacheBytes is the size of the block cache. Zero: 16 MiB.
	CacheBytes int64
	// Clock tells the time. Default: time.Now.
	Clock func() time.Time
	// FS is the file system below the journal. Default: the operating system's.
	FS vfs.FS
	// Logger gets what operators should know. Default: none.
	Logger *zap.Logger
}

func (o Options) withDefaults() Options {
	if o.Seal == nil {
		o.Seal = []schema.GroupResource{{Resource: "secrets"}}
	}
	if o.MinFree == 0 {
		o.MinFree = 256 << 20
	}
	if o.QueueBytes == 0 {
		o.QueueBytes = 16 << 20
	}
	if o.BatchEvents == 0 {
		o.BatchEvents = 512
	}
	if o.BatchBytes == 0 {
		o.BatchBytes = 4 << 20
	}
	if o.CacheBytes == 0 {
		o.CacheBytes = 16 << 20
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	return o
}

// blockSize is large because versions of one object lie side by side: the larger the block,
// the more of what they share is stored once (figures in docs/design.md).
const blockSize = 128 << 10

// store gives Pebble's options. The memory that it takes is bounded by the sizes here:
// memtables, cache, and one block per open iterator and compaction. FlushDelayDeleteRange is
// not set: its goroutine panics, with nobody to recover, when it cannot create a new log.
func (o *Options) store(events *pebble.EventListener, logger pebble.Logger) *pebble.Options {
	p := &pebble.Options{
		FS:                          o.FS,
		FormatMajorVersion:          pebble.FormatNewest,
		Logger:                      logger,
		EventListener:               events,
		CacheSize:                   o.CacheBytes,
		MemTableSize:                16 << 20,
		MemTableStopWritesThreshold: 3,
		// A flushed memtable is about 2 MB compressed and touches every namespace, so each merge of
		// level 0 rewrites its whole base level: few merges and a small base level cost a fifth of
		// the CPU at a slow event rate, and reads do not suffer.
		L0CompactionThreshold:      16,
		L0StopWritesThreshold:      40,
		LBaseMaxBytes:              16 << 20,
		MaxOpenFiles:               500,
		BytesPerSync:               1 << 20,
		WALBytesPerSync:            512 << 10,
		CompactionConcurrencyRange: func() (int, int) { return 1, 2 },
	}
	p.TargetFileSizes[0] = 16 << 20
	for i := range p.Levels {
		p.Levels[i].BlockSize = blockSize
		p.Levels[i].IndexBlockSize = 256 << 10
	}
	p.ApplyCompressionSettings(func() pebble.DBCompressionSettings { return pebble.DBCompressionGood })
	return p
}
