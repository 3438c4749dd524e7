package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"
)

// clockTick is the unit of CPU times in /proc: on Linux always 10 ms for user space.
const clockTick = 10 * time.Millisecond

// process is one line of the system's list of processes.
type process struct {
	pid, parent int
	cpu         time.Duration // its own and that of its children that have ended
	resident    int64         // bytes
}

// tree reads a process and all that descend from it.
func tree(root int) ([]process, error) {
	names, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	children, all := map[int][]process{}, map[int]process{}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		p, err := parseStat(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		all[p.pid] = p
		children[p.parent] = append(children[p.parent], p)
	}
	first, ok := all[root]
	if !ok {
		return nil, fmt.Errorf("process %d has ended", root)
	}
	found := []process{first}
	for i := 0; i < len(found); i++ {
		found = append(found, children[found[i].pid]...)
	}
	return found, nil
}

// parseStat reads what proc_pid_stat(5) describes. The name in parentheses may hold anything.
func parseStat(text []byte) (p process, err error) {
	open, end := bytes.IndexByte(text, '('), bytes.LastIndexByte(text, ')')
	if open < 0 || end < open {
		return p, fmt.Errorf("no name in %q", text)
	}
	fields := bytes.Fields(text[end+1:]) // the first is field 3
	if len(fields) < 22 {
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
	p.pid, p.parent = pid, int(number(4))
	p.cpu = time.Duration(number(14)+number(15)+number(16)+number(17)) * clockTick
	p.resident = number(24) * int64(os.Getpagesize())
	return p, err
}

// meter watches a tree of processes: the CPU time it takes, and the most memory that all of it has at one time.
type meter struct {
	root  int
	began time.Duration
	stop  chan struct{}
	done  sync.WaitGroup

	mu   sync.Mutex
	last time.Duration
	peak int64
}

const sampleEvery = 100 * time.Millisecond

// watch begins to watch a process and its children.
func watch(root int) (*meter, error) {
	all, err := tree(root)
	if err != nil {
		return nil, err
	}
	m := &meter{root: root, stop: make(chan struct{})}
	m.take(all)
	m.began = m.last
	m.done.Go(func() {
		tick := time.NewTicker(sampleEvery)
		defer tick.Stop()
		for {
			select {
			case <-m.stop:
				return
			case <-tick.C:
				if all, err := tree(root); err == nil {
					m.take(all)
				}
			}
		}
	})
	return m, nil
}

func (m *meter) take(all []process) {
	var cpu time.Duration
	var resident int64
	for _, p := range all {
		cpu += p.cpu
		resident += p.resident
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last = cpu
	m.peak = max(m.peak, resident)
}

// end returns what was taken since watch.
func (m *meter) end() (cpu time.Duration, peak int64) {
	close(m.stop)
	m.done.Wait()
	if all, err := tree(m.root); err == nil {
		m.take(all)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.last - m.began, m.peak
}

// highWater watches a process until it ends, or the returned function is called, which tells the most memory that it had. The
// kernel keeps that mark, so that only what comes after the last look is missed. The figure that wait4 gives is of no
// use: before its exec a child counts as large as the process that started it.
func highWater(pid int) func() int64 {
	var most int64
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
			if err != nil {
				return
			}
			if _, mark, found := bytes.Cut(text, []byte("\nVmHWM:")); found {
				kb, _, _ := bytes.Cut(bytes.TrimSpace(mark), []byte(" "))
				if n, err := strconv.ParseInt(string(kb), 10, 64); err == nil {
					most = n << 10
				}
			}
		}
	}()
	return func() int64 {
		close(stop)
		<-done
		return most
	}
}
