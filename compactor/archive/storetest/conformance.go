package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidemark-backup/tidemark/compactor/archive"
)

// Conformance checks that a store keeps the promises of archive.Store. It calls open for every
// test; the stores may share their files or not. Of locks and holds it checks what the store has.
// Files of up to 11 MiB are written, so a store that sends large files in parts shows that
// when it does so from 5 MiB on.
func Conformance(t *testing.T, open func(t *testing.T) archive.Store) {
	for _, c := range []struct {
		name string
		test func(t *testing.T, s archive.Store, dir string)
	}{
		{"a file is read as it was created", testReadBack},
		{"a name that is taken stays as it is", testCreateOnce},
		{"a file can be replaced when asked to", testReplace},
		{"a body that ends early makes no file", testShortBody},
		{"a body that writes itself is taken whole", testBodyWriter},
		{"of many writers one wins", testRace},
		{"ranges are exact", testRanges},
		{"what is not there is said so", testNotThere},
		{"a removed name is free", testRemove},
		{"lists are in the order of the names", testListOrder},
		{"long lists are whole", testLongList},
		{"names that lead elsewhere are refused", testNames},
		{"calls end with their context", testCancelled},
		{"locked files stay", testLock},
		{"held files stay", testHold},
		{"the store has a name without secrets", testString},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.test(t, open(t), fmt.Sprintf("%016x/", rand.Uint64()))
		})
	}
}

// create makes a file or ends the test.
func create(t *testing.T, s archive.Store, name string, b []byte) {
	t.Helper()
	if err := s.Create(t.Context(), name, bytes.NewReader(b), int64(len(b)), archive.CreateOptions{}); err != nil {
		t.Fatalf("Create %s of %d bytes: %v", name, len(b), err)
	}
}

// content reads a whole file or ends the test.
func content(t *testing.T, s archive.Store, name string) []byte {
	t.Helper()
	info, err := s.Stat(t.Context(), name)
	if err != nil {
		t.Fatalf("Stat %s: %v", name, err)
	}
	b := make([]byte, info.Size)
	if err := s.ReadAt(t.Context(), name, b, 0); err != nil {
		t.Fatalf("ReadAt %s: %v", name, err)
	}
	return b
}

// names lists or ends the test.
func names(t *testing.T, s archive.Store, prefix, after string) []string {
	t.Helper()
	var all []string
	for info, err := range s.List(t.Context(), prefix, after) {
		if err != nil {
			t.Fatalf("List %s after %s: %v", prefix, after, err)
		}
		all = append(all, info.Name)
	}
	return all
}

// testReplace wants one of several whole contents at any time, and the last one at the end.
func testReplace(t *testing.T, s archive.Store, dir string) {
	name := dir + "replaced"
	put := func(b []byte) {
		if err := s.Create(t.Context(), name, bytes.NewReader(b), int64(len(b)), archive.CreateOptions{Replace: true}); err != nil {
			t.Errorf("Create %s of %d bytes in place of another: %v", name, len(b), err)
		}
	}
	for _, n := range []int{10, 100_000, 3} {
		b := randomBytes(n)
		put(b)
		if got := content(t, s, name); !bytes.Equal(got, b) {
			t.Errorf("after it was replaced, %s has %d bytes, want the %d new ones", name, len(got), n)
		}
	}
	if all := names(t, s, dir, ""); len(all) != 1 {
		t.Errorf("replacing leaves %v", all)
	}
	err := s.Create(t.Context(), name, bytes.NewReader([]byte("x")), 1, archive.CreateOptions{})
	if !errors.Is(err, fs.ErrExist) {
		t.Errorf("what was replaced is not kept from being created: %v", err)
	}
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(n), byte(n >> 8)})
	_, _ = r.Read(b) // it never fails
	return b
}

func testReadBack(t *testing.T, s archive.Store, dir string) {
	for _, size := range []int{0, 1, 4095, 4096, 65536, 1<<20 + 1, 5 << 20, 11<<20 + 1} {
		name := fmt.Sprintf("%ssize/%d", dir, size)
		want := randomBytes(size)
		begin := time.Now()
		create(t, s, name, want)
		if got := content(t, s, name); !bytes.Equal(got, want) {
			t.Errorf("file of %d bytes is read as %d other bytes", size, len(got))
		}
		info, err := s.Stat(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		if info.Name != name || info.Size != int64(size) {
			t.Errorf("Stat = %+v, want name %s and size %d", info, name, size)
		}
		// Stores tell whole seconds, and need not have our clock; a minute would be another bug.
		if d := info.Time.Sub(begin); d.Abs() > time.Minute {
			t.Errorf("file was created %v after it was", d)
		}
		for listed, err := range s.List(t.Context(), name, "") {
			if err != nil {
				t.Fatal(err)
			}
			if listed.Name == name && (listed.Size != info.Size || listed.Time.Sub(info.Time).Abs() > time.Second) {
				t.Errorf("List tells %+v, Stat %+v", listed, info)
			}
		}
		if err := s.Remove(t.Context(), name); err != nil {
			t.Error(err)
		}
	}
}

func testCreateOnce(t *testing.T, s archive.Store, dir string) {
	for _, size := range []int{0, 10, 6 << 20} {
		name := fmt.Sprintf("%s%d", dir, size)
		want := randomBytes(size)
		create(t, s, name, want)
		for _, other := range [][]byte{{}, []byte("other"), bytes.Repeat([]byte("x"), 6<<20)} {
			err := s.Create(t.Context(), name, bytes.NewReader(other), int64(len(other)), archive.CreateOptions{})
			if !errors.Is(err, fs.ErrExist) {
				t.Errorf("Create over a file of %d bytes with %d bytes: %v, want fs.ErrExist", size, len(other), err)
			}
		}
		if got := content(t, s, name); !bytes.Equal(got, want) {
			t.Errorf("file of %d bytes was changed by a second Create", size)
		}
	}
}

func testShortBody(t *testing.T, s archive.Store, dir string) {
	for _, size := range []int64{11, 6 << 20} {
		name := fmt.Sprintf("%s%d", dir, size)
		begin := time.Now()
		err := s.Create(t.Context(), name, strings.NewReader("ten bytes."), size, archive.CreateOptions{})
		if err == nil {
			t.Errorf("a body of 10 bytes made a file of %d", size)
		}
		if d := time.Since(begin); d > 3*time.Second {
			t.Errorf("Create needs %v to see that the body is short", d)
		}
		if _, err := s.Stat(t.Context(), name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Stat after a failed Create: %v, want fs.ErrNotExist", err)
		}
	}
}

// pieces is an archive.BodyWriter.
type pieces struct {
	*bytes.Reader
	all [][]byte
}

func inPieces(b []byte) *pieces {
	return &pieces{bytes.NewReader(b), slices.Collect(slices.Chunk(b, 100_000))}
}

func (p *pieces) WriteBody(w io.Writer) (n int64, err error) {
	for _, b := range p.all {
		m, err := w.Write(b)
		n += int64(m)
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

func testBodyWriter(t *testing.T, s archive.Store, dir string) {
	for _, size := range []int{0, 1, 250_000, 6 << 20} {
		name, want := fmt.Sprintf("%s%d", dir, size), randomBytes(size)
		if err := s.Create(t.Context(), name, inPieces(want), int64(size), archive.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if got := content(t, s, name); !bytes.Equal(got, want) {
			t.Errorf("%d bytes are read back as %d others", size, len(got))
		}
	}
	name := dir + "short"
	if err := s.Create(t.Context(), name, inPieces(randomBytes(200_000)), 200_001, archive.CreateOptions{}); err == nil {
		t.Error("a body of 200,000 bytes made a file of 200,001")
	}
	if _, err := s.Stat(t.Context(), name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Stat after a failed Create: %v, want fs.ErrNotExist", err)
	}
}

func testRace(t *testing.T, s archive.Store, dir string) {
	for _, size := range []int{0, 3000, 5<<20 + 1} {
		const writers = 32
		racers := writers
		if size > 1<<20 {
			racers = 6 // enough to overlap, without sending for a minute
		}
		name := fmt.Sprintf("%snew/%d/file", dir, size) // the directory is new as well
		errs := make([]error, racers)
		begin := make(chan struct{})
		var all sync.WaitGroup
		for i := range errs {
			all.Go(func() {
				b := append(bytes.Repeat([]byte{byte(i)}, size), byte(i))
				<-begin
				errs[i] = s.Create(t.Context(), name, bytes.NewReader(b), int64(len(b)), archive.CreateOptions{})
			})
		}
		close(begin)
		all.Wait()
		winner := -1
		for i, err := range errs {
			switch {
			case err == nil && winner >= 0:
				t.Errorf("writers %d and %d both won", winner, i)
			case err == nil:
				winner = i
			case !errors.Is(err, fs.ErrExist):
				t.Errorf("writer %d: %v, want fs.ErrExist", i, err)
			}
		}
		if winner < 0 {
			t.Fatal("nobody won")
		}
		if got, want := content(t, s, name), bytes.Repeat([]byte{byte(winner)}, size+1); !bytes.Equal(got, want) {
			t.Errorf("the file of %d bytes is not the winner's: it begins with %x, want %x", len(got), got[:1], want[:1])
		}
	}
}

func testRanges(t *testing.T, s archive.Store, dir string) {
	const size = 100_000
	name, want := dir+"file", randomBytes(size)
	create(t, s, name, want)
	for _, r := range []struct {
		off    int64
		length int
		short  bool
	}{
		{0, 1, false},
		{size - 1, 1, false},
		{0, size, false},
		{12345, 54321, false},
		{size - 10, 10, false},
		{size - 10, 11, true},
		{size, 1, true},
		{size + 1000, 5, true},
		{0, size + 1, true},
		{0, 0, false},
		{size, 0, false},
	} {
		p := make([]byte, r.length)
		err := s.ReadAt(t.Context(), name, p, r.off)
		switch {
		case r.short && !errors.Is(err, io.ErrUnexpectedEOF):
			t.Errorf("read of %d bytes at %d of %d: %v, want io.ErrUnexpectedEOF", r.length, r.off, size, err)
		case !r.short && err != nil:
			t.Errorf("read of %d bytes at %d of %d: %v", r.length, r.off, size, err)
		case !r.short && !bytes.Equal(p, want[r.off:][:r.length]):
			t.Errorf("read of %d bytes at %d gives other bytes", r.length, r.off)
		}
	}
	if err := s.ReadAt(t.Context(), name, make([]byte, 5), -1); err == nil {
		t.Error("read at a negative offset: no error")
	}
	create(t, s, dir+"empty", nil)
	if err := s.ReadAt(t.Context(), dir+"empty", make([]byte, 1), 0); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("read of an empty file: %v, want io.ErrUnexpectedEOF", err)
	}
}

func testNotThere(t *testing.T, s archive.Store, dir string) {
	create(t, s, dir+"a/b", []byte("x"))
	for _, name := range []string{dir + "none", dir + "a", dir + "a/b2", dir + "c/d/e"} {
		if _, err := s.Stat(t.Context(), name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Stat %s: %v, want fs.ErrNotExist", name, err)
		}
		if err := s.ReadAt(t.Context(), name, make([]byte, 1), 0); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("ReadAt %s: %v, want fs.ErrNotExist", name, err)
		}
		if err := s.ReadAt(t.Context(), name, nil, 0); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("ReadAt of nothing of %s: %v, want fs.ErrNotExist", name, err)
		}
		if err := s.Remove(t.Context(), name); err != nil {
			t.Errorf("Remove %s: %v, want nil", name, err)
		}
	}
	if got := names(t, s, dir+"none", ""); len(got) > 0 {
		t.Errorf("List of nothing gives %q", got)
	}
	if got := content(t, s, dir+"a/b"); string(got) != "x" {
		t.Errorf("a/b is %q, and was not asked to change", got)
	}
}

func testRemove(t *testing.T, s archive.Store, dir string) {
	name := dir + "file"
	create(t, s, name, []byte("first"))
	create(t, s, name+"2", []byte("other"))
	for range 2 { // the second time nothing is there, which is no error
		if err := s.Remove(t.Context(), name); err != nil {
			t.Errorf("Remove: %v", err)
		}
	}
	if _, err := s.Stat(t.Context(), name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Stat of a removed file: %v, want fs.ErrNotExist", err)
	}
	if got, want := names(t, s, dir, ""), []string{name + "2"}; !slices.Equal(got, want) {
		t.Errorf("List after Remove: %q, want %q", got, want)
	}
	create(t, s, name, []byte("second"))
	if got := content(t, s, name); string(got) != "second" {
		t.Errorf("file is %q, want second", got)
	}
}

func testListOrder(t *testing.T, s archive.Store, dir string) {
	all := []string{"a-b", "a.b", "a/b", "a/b-c", "a/b.d/c", "a/c", "a0", "ab/c", "b/a", "b/é", "c", "z/9", "z/10", "z/A", "z/a b+c%20&d=e"}
	for _, i := range rand.Perm(len(all)) {
		create(t, s, dir+all[i], []byte(all[i]))
	}
	slices.Sort(all) // the order of the bytes of whole names: "a-b" before "a/b" before "a0"
	for _, c := range []struct{ prefix, after string }{
		{"", ""},
		{"a", ""},
		{"a/", ""},
		{"a/b", ""},
		{"z/", ""},
		{"z/1", ""},
		{"q", ""},
		{"a/b-", ""},
		{"c", ""},
		{"c/", ""},
		{"", "a"},
		{"", "a-b"},
		{"", "a/"},
		{"", "a/b"},
		{"", "a/b-c"},
		{"", "a/zzz"},
		{"", "a0"},
		{"", "zz"},
		{"z/", "z/9"},
		{"z/", "a"},
		{"z/", "zzz"},
		{"a/", "a/b.d/c"},
		{"a/", "a/b.d/"},
		{"a/", "a/b.d/b"},
		{"b/", "b/a"},
		{"z/", "z/a b+c%20&d=e"},
	} {
		var want []string
		for _, name := range all {
			if strings.HasPrefix(name, c.prefix) && name > c.after {
				want = append(want, dir+name)
			}
		}
		after := ""
		if c.after != "" {
			after = dir + c.after
		}
		if got := names(t, s, dir+c.prefix, after); !slices.Equal(got, want) {
			t.Errorf("List of %q after %q:\n got %q\nwant %q", c.prefix, c.after, got, want)
		}
	}
	if err := s.Remove(t.Context(), dir+"none"); err != nil {
		t.Error(err)
	}
	for info, err := range s.List(t.Context(), dir, "") { // ending early is fine
		if err != nil || info.Name != dir+all[0] {
			t.Errorf("first of the list: %q, %v; want %q", info.Name, err, all[0])
		}
		break
	}
}

func testLongList(t *testing.T, s archive.Store, dir string) {
	const files = 1100 // more than one page of S3
	work := make(chan int)
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			for i := range work {
				name := fmt.Sprintf("%spage/%05d", dir, i)
				if err := s.Create(t.Context(), name, strings.NewReader("x"), 1, archive.CreateOptions{}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	var want []string
	for i := range files {
		work <- i
		want = append(want, fmt.Sprintf("%spage/%05d", dir, i))
	}
	close(work)
	all.Wait()
	if got := names(t, s, dir+"page/", ""); !slices.Equal(got, want) {
		t.Errorf("List gives %d names, want the %d that were created, in order", len(got), len(want))
	}
	if got := names(t, s, dir+"page/", want[49]); !slices.Equal(got, want[50:]) {
		t.Errorf("List after the 50th name gives %d names, want %d", len(got), files-50)
	}
}

func testNames(t *testing.T, s archive.Store, dir string) {
	for _, name := range []string{
		"", ".", "..", "/", "/etc/x", "../x", dir + "../../x", dir + "a/../b", dir + "./a", dir + "a//b", dir, dir + "a/",
		dir + "a\x00b", dir + `a\b`, dir + "a\nb", dir + "\xff", ".tmp/x", dir + strings.Repeat("x", 2000),
	} {
		if err := s.Create(t.Context(), name, strings.NewReader("x"), 1, archive.CreateOptions{}); err == nil || errors.Is(err, fs.ErrExist) {
			t.Errorf("Create %q: %v, want that the name is refused", name, err)
		}
		if err := s.ReadAt(t.Context(), name, make([]byte, 1), 0); err == nil {
			t.Errorf("ReadAt %q: no error", name)
		}
		if _, err := s.Stat(t.Context(), name); err == nil {
			t.Errorf("Stat %q: no error", name)
		}
		if err := s.Remove(t.Context(), name); err == nil {
			t.Errorf("Remove %q: no error", name)
		}
	}
}

func testCancelled(t *testing.T, s archive.Store, dir string) {
	name := dir + "file"
	create(t, s, name, []byte("x"))
	why := errors.New("the test says so")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	list := func() error {
		for _, err := range s.List(ctx, dir, "") {
			return err
		}
		return nil
	}
	_, statErr := s.Stat(ctx, name)
	begin := time.Now()
	for call, err := range map[string]error{
		"Create":         s.Create(ctx, dir+"new", strings.NewReader("x"), 1, archive.CreateOptions{}),
		"Create (large)": s.Create(ctx, dir+"large", bytes.NewReader(make([]byte, 6<<20)), 6<<20, archive.CreateOptions{}),
		"ReadAt":         s.ReadAt(ctx, name, make([]byte, 1), 0),
		"Stat":           statErr,
		"List":           list(),
		"Remove":         s.Remove(ctx, name),
	} {
		if !errors.Is(err, context.Canceled) && !errors.Is(err, why) {
			t.Errorf("%s with a cancelled context: %v", call, err)
		}
	}
	if d := time.Since(begin); d > 2*time.Second {
		t.Errorf("cancelled calls took %v", d)
	}
	if got, want := names(t, s, dir, ""), []string{name}; !slices.Equal(got, want) {
		t.Errorf("after cancelled calls the store has %q, want %q", got, want)
	}
}

func testLock(t *testing.T, s archive.Store, dir string) {
	const short = 3 * time.Second // of whole seconds, which S3 counts in
	locks := map[string]time.Time{}
	for _, size := range []int{5, 6 << 20} {
		name := fmt.Sprintf("%slocked/%d", dir, size)
		b := randomBytes(size)
		lock := archive.CreateOptions{Lock: time.Now().Add(short), Compliance: true}
		err := s.Create(t.Context(), name, bytes.NewReader(b), int64(size), lock)
		if errors.Is(err, errors.ErrUnsupported) {
			if _, err := s.Stat(t.Context(), name); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("a lock was refused, but the file: %v, want fs.ErrNotExist", err)
			}
			t.Skip("the store has no locks")
		}
		if err != nil {
			t.Fatal(err)
		}
		locks[name] = lock.Lock
		if err := s.Create(t.Context(), name, bytes.NewReader(b), int64(size), lock); !errors.Is(err, fs.ErrExist) {
			t.Errorf("Create over a locked file: %v, want fs.ErrExist", err)
		}
		for range 2 { // the second time must not find a name that only looks free
			err := s.Remove(t.Context(), name)
			if err == nil && time.Now().After(lock.Lock) {
				t.Skip("this machine is too slow for a lock of seconds")
			}
			if !errors.Is(err, archive.ErrHeld) {
				t.Errorf("Remove of a locked file: %v, want ErrHeld", err)
			}
		}
		if got := content(t, s, name); !bytes.Equal(got, b) {
			t.Error("a locked file is another one after Remove")
		}
	}
	for name, lock := range locks {
		removeOnceUnlocked(t, s, name, lock)
	}
}

// removeOnceUnlocked removes a file as soon as the store lets it.
func removeOnceUnlocked(t *testing.T, s archive.Store, name string, lock time.Time) {
	t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := s.Remove(t.Context(), name)
		if err == nil {
			break
		}
		if !errors.Is(err, archive.ErrHeld) || time.Since(lock) > 10*time.Second {
			t.Fatalf("Remove when the lock has run out: %v", err)
		}
		<-tick.C
	}
	if time.Now().Before(lock) {
		t.Error("the file was removed before its lock ran out")
	}
	if _, err := s.Stat(t.Context(), name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Stat of the removed file: %v, want fs.ErrNotExist", err)
	}
}

func testHold(t *testing.T, s archive.Store, dir string) {
	name := dir + "held"
	err := s.Create(t.Context(), name, strings.NewReader("x"), 1, archive.CreateOptions{Hold: true})
	if errors.Is(err, errors.ErrUnsupported) {
		create(t, s, name, []byte("x"))
		if err := s.Hold(t.Context(), name, true); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("Hold: %v, want errors.ErrUnsupported as from Create", err)
		}
		t.Skip("the store has no holds")
	}
	if err != nil {
		t.Fatal(err)
	}
	create(t, s, name+"2", []byte("y"))
	if err := s.Hold(t.Context(), name+"2", true); err != nil {
		t.Fatal(err)
	}
	for _, held := range []string{name, name + "2"} {
		if err := s.Remove(t.Context(), held); !errors.Is(err, archive.ErrHeld) {
			t.Errorf("Remove of a held file: %v, want ErrHeld", err)
		}
		content(t, s, held)
		if err := s.Hold(t.Context(), held, false); err != nil {
			t.Errorf("Hold off: %v", err)
		}
		if err := s.Remove(t.Context(), held); err != nil {
			t.Errorf("Remove when the hold is lifted: %v", err)
		}
	}
	if err := s.Hold(t.Context(), dir+"none", true); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Hold of nothing: %v, want fs.ErrNotExist", err)
	}
}

func testString(t *testing.T, s archive.Store, _ string) {
	if name := s.String(); !strings.Contains(name, "://") || strings.Contains(name, "@") {
		t.Errorf("String is %q, want a URL without a user", name)
	}
}
