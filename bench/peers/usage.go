package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// clockTick is the unit of CPU times in /proc: on Linux always 10 ms for user space.
const clockTick = 10 * time.Millisecond

// process is what the system tells of one.
type process struct {
	pid, parent int
	name        string        // its first 15 bytes
	cpu         time.Duration // its own and that of its children that have ended
}

// tree is a process, and behind it all that descend from it. It asks the kernel for the children of each thread (/proc/PID/task/TID/children, of
// CONFIG_PROC_CHILDREN): to look through all processes takes ten times as long.
func tree(root int) ([]process, error) {
	var found []process
	seen := map[int]bool{} // the children of a thread that ends go to another
	for next := []int{root}; len(next) > 0; next = next[1:] {
		if seen[next[0]] {
			continue
		}
		seen[next[0]] = true
		p, err := readProcess(next[0])
		if (errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH)) && next[0] != root {
			continue // it has ended
		}
		if err != nil {
			return nil, fmt.Errorf("process %d has ended: %w", next[0], err)
		}
		found = append(found, p)
		threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", p.pid))
		if err != nil {
			continue // as above
		}
		for _, t := range threads {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", p.pid, t.Name()))
			if err != nil {
				continue
			}
			for word := range bytes.FieldsSeq(text) {
				pid, err := strconv.Atoi(string(word))
				if err != nil {
					return nil, err
				}
				next = append(next, pid)
			}
		}
	}
	return found, nil
}

func readProcess(pid int) (process, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{}, err
	}
	return parseStat(text)
}

// childNamed finds a process that this one has started.
func childNamed(name string) (pid int, err error) {
	all, err := tree(os.Getpid())
	if err != nil {
		return 0, err
	}
	for _, p := range all {
		if p.parent == os.Getpid() && p.name == name {
			return p.pid, nil
		}
	}
	return 0, fmt.Errorf("there is no process %s", name)
}

// parseStat reads what proc_pid_stat(5) describes. The name in parentheses may hold anything.
func parseStat(text []byte) (p process, err error) {
	open, end := bytes.IndexByte(text, '('), bytes.LastIndexByte(text, ')')
	if open < 0 || end < open {
		return p, fmt.Errorf("no name in %q", text)
	}
	fields := bytes.Fields(text[end+1:]) // the first is field 3
	if len(fields) < 15 {
		return p, fmt.Errorf("only %d fields", len(fields))
	}
	number := func(field int) (n int64) {
		if err == nil {
			n, err = strconv.ParseInt(string(fields[field-3]), 10, 64)
		}
		return n
	}
	pid, atoiErr := strconv.Atoi(string(bytes.TrimSpace(text[:open])))
	if atoiErr != nil {
		return p, atoiErr
	}
	p.pid, p.parent, p.name = pid, int(number(4)), string(text[open+1:end])
	p.cpu = time.Duration(number(14)+number(15)+number(16)+number(17)) * clockTick
	return p, err
}

// held is memory of processes, in bytes. What is anonymous, heaps and stacks, is needed; the rest is of files, nearly all
// of it the program itself, which the kernel maps in large pieces and can drop at any time.
type held struct{ all, anonymous int64 }

func (h held) add(other held) held {
	return held{h.all + other.all, h.anonymous + other.anonymous}
}

// resident is what a process has in memory, shared pages included. It is nothing when the process has ended. Other than memory it is little
// work: that walks through page tables, which takes 10 ms for an API server and holds up what it allocates meanwhile.
func resident(pid int) held {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return held{}
	}
	return held{kilobytes(text, "VmRSS:"), kilobytes(text, "RssAnon:")}
}

// memory is the same, but a page that several processes have counts for each in part (Pss, proc_pid_smaps(5)).
func memory(pid int) held {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return held{}
	}
	return held{kilobytes(text, "Pss:"), kilobytes(text, "Pss_Anon:")}
}

// kilobytes reads a line such as "Pss:   12 kB", as bytes.
func kilobytes(text []byte, name string) int64 {
	_, mark, found := bytes.Cut(text, []byte("\n"+name))
	if !found {
		return 0
	}
	kb, _, _ := bytes.Cut(bytes.TrimSpace(mark), []byte(" "))
	n, err := strconv.ParseInt(string(kb), 10, 64)
	if err != nil {
		return 0
	}
	return n << 10
}

// taken is what a process took, alone or with those that descend from it.
type taken struct {
	cpu  time.Duration
	peak int64 // the most memory that all had at one time
	// The most that was anonymous of it at one time. Of a server it is not asked.
	anonymous int64
	// The most that the first of them had, and that the others had together.
	own, others int64
}

// meter watches processes.
type meter struct {
	look  func(now []taken) error
	began []time.Duration
	stop  chan struct{}
	done  sync.WaitGroup
	now   []taken // cpu: since the processes' start; the goroutine's alone until end has waited for it
}

// ownCPU is what this process took so far, its children apart.
func ownCPU() time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

const sampleEvery = 100 * time.Millisecond

// watchServers begins to watch processes that have no children and share no pages with others.
func watchServers(pids ...int) (*meter, error) {
	return watch(len(pids), func(now []taken) (err error) {
		for i, pid := range pids {
			p, readErr := readProcess(pid)
			if readErr != nil {
				err = fmt.Errorf("process %d has ended: %w", pid, readErr)
				continue
			}
			now[i].cpu, now[i].peak = p.cpu, max(now[i].peak, resident(pid).all)
		}
		return err
	})
}

// watchTool begins to watch a process with all that descend from it; 0 is none. guest, when not nil, is a process that counts
// with their memory while it lives; 0: there is none. How much of shared pages is whose is only asked when something takes
// more than ever before: it takes milliseconds, which those who are measured do not have then.
func watchTool(guest func() int, root int) (*meter, error) {
	var coarse taken
	return watch(1, func(now []taken) error {
		t := &now[0]
		var own, others, visiting []process
		if root != 0 {
			all, err := tree(root)
			if err != nil {
				return err
			}
			own, others = all[:1], all[1:]
			t.cpu = 0
			for _, p := range all {
				t.cpu += p.cpu
			}
		}
		if guest != nil {
			if pid := guest(); pid != 0 {
				visiting = []process{{pid: pid}}
			}
		}
		before, ended := coarse, false
		if coarse.grows(heldBy(own, resident), heldBy(others, resident), heldBy(visiting, resident)) {
			closely := func(pid int) held {
				h := memory(pid)
				ended = ended || h.all == 0
				return h
			}
			t.grows(heldBy(own, closely), heldBy(others, closely), heldBy(visiting, closely))
		}
		if ended {
			coarse = before // what comes may be less, and more than what is known
		}
		return nil
	})
}

// grows keeps what is the most, and reports whether anything is.
func (t *taken) grows(own, others, visiting held) bool {
	before := *t
	together := own.add(others).add(visiting)
	t.peak, t.anonymous = max(t.peak, together.all), max(t.anonymous, together.anonymous)
	t.own, t.others = max(t.own, own.all), max(t.others, others.all)
	return *t != before
}

func heldBy(all []process, of func(pid int) held) (h held) {
	for _, p := range all {
		h = h.add(of(p.pid))
	}
	return h
}

// watch calls look again and again. It returns an error when a process has ended; what the others take is counted.
func watch(n int, look func(now []taken) error) (*meter, error) {
	m := &meter{look: look, began: make([]time.Duration, n), now: make([]taken, n), stop: make(chan struct{})}
	if err := look(m.now); err != nil {
		return nil, err
	}
	for i, t := range m.now {
		m.began[i] = t.cpu
	}
	m.done.Go(func() {
		tick := time.NewTicker(sampleEvery)
		defer tick.Stop()
		for {
			select {
			case <-m.stop:
				return
			case <-tick.C:
				_ = m.look(m.now) // who has ended takes nothing more
			}
		}
	})
	return m, nil
}

// end returns what each took since watch.
func (m *meter) end() []taken {
	close(m.stop)
	m.done.Wait()
	_ = m.look(m.now) // as above
	for i := range m.now {
		m.now[i].cpu -= m.began[i]
	}
	return m.now
}

// highWater watches a process until it ends, or the returned function is called, which tells the most memory that it had. The
// kernel keeps that mark, so that only what comes after the last look is missed. The figure that wait4 gives is of no
// use: before its exec a child counts as large as the process that started it.
func highWater(pid int) func() int64 {
	var most int64
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for pause := 2 * time.Millisecond; ; pause = min(pause*21/20, 25*time.Millisecond) { // who lives long grows slowly
			select {
			case <-stop:
				return
			case <-time.After(pause):
			}
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
			if err != nil {
				return
			}
			most = max(most, kilobytes(text, "VmHWM:"))
		}
	}()
	return func() int64 {
		close(stop)
		<-done
		return most
	}
}
