package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

// fault is one thing that goes wrong. All of it follows from the seed.
type fault struct {
	Kind string        `json:"kind"`
	Wait time.Duration `json:"wait"` // before it
	Hold time.Duration `json:"hold"` // how long it lasts
	// With goes wrong at the same time, beside it; empty: nothing.
	With string `json:"with,omitempty"`
}

// faultKinds are dealt like cards: each comes up once before any comes up again.
var faultKinds = []struct {
	kind       string
	least, add int    // how long, in milliseconds
	touches    string // disk, clock: not every machine can; server: its history may be lost
	do         func(*breaker, context.Context, time.Duration) error
}{
	{"kill daemon", 0, 6000, "", (*breaker).killDaemon},
	{"kill daemon again and again", 300, 1500, "", (*breaker).killDaemonOften},
	{"kill daemon in a snapshot", 50, 800, "", (*breaker).killInSnapshot},
	{"restart daemon", 0, 2000, "", (*breaker).restartDaemon},
	{"kill API server", 0, 3000, "server", (*breaker).killAPIServer},
	{"kill etcd", 0, 3000, "server", (*breaker).killEtcd},
	{"kill object store", 0, 9000, "", (*breaker).killStore},
	{"pause daemon", 1000, 12000, "", (*breaker).pauseDaemon},
	{"pause API server", 1000, 8000, "server", (*breaker).pauseAPIServer},
	{"pause etcd", 1000, 5000, "server", (*breaker).pauseEtcd},
	{"pause object store", 1000, 12000, "", (*breaker).pauseStore},
	{"store errors", 4000, 12000, "", (*breaker).storeErrors},
	{"slow disk", 4000, 12000, "disk", (*breaker).slowDisk},
	{"nearly full disk", 5000, 8000, "disk", (*breaker).nearlyFullDisk},
	{"full disk", 2000, 5000, "disk", (*breaker).fullDisk},
	{"power cut", 0, 4000, "disk", (*breaker).powerCut},
	{"power cut, cluster too", 0, 3000, "server", (*breaker).powerCutEverywhere},
	{"410 storm, daemon down", 3000, 5000, "server", (*breaker).stormDown},
	{"410 storm, daemon paused", 3000, 5000, "server", (*breaker).stormPaused},
	{"compaction", 0, 1, "server", (*breaker).compact},
	{"clock ahead", 2000, 10000, "clock", (*breaker).clockAhead},
	{"clock behind", 2000, 10000, "clock", (*breaker).clockBehind},
}

// beside are the faults that go well with those of another process.
var beside = []string{"store errors", "kill object store", "pause object store", "slow disk"}

// faults gives the faults of a seed. Those of the disk are dealt as well where there is none, and passed over.
func faults(seed uint64) func() fault {
	random := rand.New(rand.NewPCG(seed, 2))
	var deck []int
	return func() fault {
		if len(deck) == 0 {
			deck = random.Perm(len(faultKinds))
		}
		k := faultKinds[deck[0]]
		deck = deck[1:]
		f := fault{Kind: k.kind, Wait: time.Duration(2000+random.IntN(5000)) * time.Millisecond, Hold: time.Duration(k.least+random.IntN(k.add)) * time.Millisecond}
		if with := beside[random.IntN(len(beside))]; random.IntN(4) == 0 && with != f.Kind {
			f.With = with
		}
		return f
	}
}

// breaker makes faults happen.
type breaker struct {
	*rig
	writer   *cluster
	revision func(context.Context) (uint64, error)
	onStop   func() error // called once while the daemon is down: see tamper.go
	turn     sync.Mutex   // held while something goes wrong; who holds it else keeps things from going wrong

	mu     sync.Mutex // guards what follows
	active int
	done   int // faults that are over
	counts map[string]int
	gaps   []injected
	// reasons are what may cost the daemon history, made on purpose or not.
	reasons []reason
}

// run makes faults until ctx ends, and then leaves everything whole again.
func (b *breaker) run(ctx, after context.Context, seed uint64) error {
	next := faults(seed)
	for n := 1; ; n++ {
		f := next()
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(f.Wait):
		}
		b.turn.Lock()
		if ctx.Err() != nil {
			b.turn.Unlock()
			return nil
		}
		err := b.fault(after, n, f)
		b.turn.Unlock()
		if err != nil {
			return fmt.Errorf("fault %d, %s: %w", n, f.Kind, err)
		}
	}
}

// fault makes one fault and, perhaps, another beside it, and returns when all is whole again.
func (b *breaker) fault(ctx context.Context, n int, f fault) error {
	b.mu.Lock()
	b.active++
	b.mu.Unlock()
	began := time.Now()
	defer func() {
		b.mu.Lock()
		b.active--
		b.done++
		if now := time.Now(); now.Sub(began) > longFault {
			b.reasons = append(b.reasons, reason{what: f.Kind, from: began, to: now})
		}
		b.mu.Unlock()
	}()
	var beside error
	var wg sync.WaitGroup
	if f.With != "" {
		wg.Go(func() { beside = b.one(ctx, n, f.With, f.Hold) })
	}
	err := b.one(ctx, n, f.Kind, f.Hold)
	wg.Wait()
	return errors.Join(err, beside, b.heal(ctx))
}

func (b *breaker) one(ctx context.Context, n int, kind string, hold time.Duration) error {
	for _, k := range faultKinds {
		if k.kind != kind {
			continue
		}
		if b.cannot(kind, k.touches) {
			b.log.note("fault", n, kind, "left out: this machine cannot", nil)
			return nil
		}
		b.log.note("fault", n, kind, hold.String(), nil)
		if k.touches == "server" {
			defer b.reasoned(kind, "")()
		}
		err := k.do(b, ctx, hold)
		b.log.note("fault", n, kind+": over", nil, err)
		b.mu.Lock()
		b.counts[kind]++
		b.mu.Unlock()
		return err
	}
	return errors.New("no such fault")
}

// cannot reports whether this machine, or this program, cannot have such a fault.
func (r *rig) cannot(kind, touches string) bool {
	switch touches {
	case "disk":
		return r.disk == nil || kind == "slow disk" && !r.disk.CanLimit()
	case "clock":
		return !r.clock
	}
	return false
}

// leftOut are the faults that are dealt and passed over, and why.
func (r *rig) leftOut() []string {
	var out []string
	for _, k := range faultKinds {
		if !r.cannot(k.kind, k.touches) {
			continue
		}
		why := "wants root"
		switch {
		case k.touches == "clock":
			why = "wants the program to be built here, without --tidemark"
		case r.disk != nil:
			why = "wants control groups that limit writes"
		}
		out = append(out, fmt.Sprintf("%s (%s)", k.kind, why))
	}
	return out
}

// heal starts what does not run, and returns when the API server and the daemon answer.
func (b *breaker) heal(ctx context.Context) error {
	if err := b.startDaemon(); err != nil {
		return err
	}
	if !b.kwok.Running() {
		var err error
		if b.kwok, err = startKwok(b.kwokBin, b.dir, b.rig.cluster); err != nil {
			return err
		}
	}
	var err error
	for end := time.Now().Add(90 * time.Second); time.Now().Before(end) && ctx.Err() == nil; hold(ctx, 200*time.Millisecond) {
		if err = errors.Join(b.healthy(ctx), b.listening()); err == nil {
			return nil
		}
	}
	return err
}

// hold waits.
func hold(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// quiet says how many faults there were, and whether none is going on: work that began and ended at the same quiet
// number was not disturbed.
func (b *breaker) quiet() (int, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.done, b.active == 0
}

// storms are those that took history away.
func (b *breaker) storms() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.counts["410 storm, daemon down"] + b.counts["410 storm, daemon paused"]
}

func (b *breaker) killDaemon(ctx context.Context, d time.Duration) error {
	if err := b.killTampered(ctx); err != nil {
		return err
	}
	hold(ctx, d)
	return b.startDaemon()
}

func (b *breaker) killDaemonOften(ctx context.Context, d time.Duration) error {
	for range 5 {
		if err := b.killDaemon(ctx, 0); err != nil {
			return err
		}
		hold(ctx, d)
	}
	return nil
}

func (b *breaker) killInSnapshot(ctx context.Context, d time.Duration) error {
	snapshot := exec.CommandContext(ctx, b.program, append([]string{"snapshot", "create"}, b.source(false).Args...)...)
	if err := snapshot.Start(); err != nil {
		return err
	}
	hold(ctx, d)
	err := b.killDaemon(ctx, 0)
	_ = snapshot.Wait() // it may have been in time
	return err
}

func (b *breaker) restartDaemon(ctx context.Context, d time.Duration) error {
	b.stopDaemon(syscall.SIGTERM)
	hold(ctx, d)
	return b.startDaemon()
}

func (b *breaker) killServer(ctx context.Context, name string, d time.Duration) error {
	if err := b.rig.cluster.Kill(name); err != nil {
		return err
	}
	hold(ctx, d)
	return b.rig.cluster.StartAgain(ctx, name)
}

func (b *breaker) killAPIServer(ctx context.Context, d time.Duration) error {
	return b.killServer(ctx, "kube-apiserver", d)
}

func (b *breaker) killEtcd(ctx context.Context, d time.Duration) error {
	return b.killServer(ctx, "etcd", d)
}

func (b *breaker) killStore(ctx context.Context, d time.Duration) error {
	b.store.Kill()
	hold(ctx, d)
	return b.store.Restart(ctx)
}

// pause stops a process for a while.
func pause(ctx context.Context, d time.Duration, signal func(syscall.Signal) error) error {
	if err := signal(syscall.SIGSTOP); err != nil {
		return err
	}
	hold(ctx, d)
	return signal(syscall.SIGCONT)
}

func signalTo(pid func() int) func(syscall.Signal) error {
	return func(s syscall.Signal) error {
		p := pid()
		if p == 0 {
			return nil // it was killed by the fault beside this one
		}
		if err := syscall.Kill(p, s); !errors.Is(err, syscall.ESRCH) {
			return err
		}
		return nil
	}
}

func (b *breaker) pauseDaemon(ctx context.Context, d time.Duration) error {
	return pause(ctx, d, signalTo(b.daemonPid))
}

func (b *breaker) pauseStore(ctx context.Context, d time.Duration) error {
	return pause(ctx, d, signalTo(b.store.Pid))
}

func (b *breaker) pauseAPIServer(ctx context.Context, d time.Duration) error {
	return pause(ctx, d, func(s syscall.Signal) error { return b.rig.cluster.Signal("kube-apiserver", s) })
}

func (b *breaker) pauseEtcd(ctx context.Context, d time.Duration) error {
	return pause(ctx, d, func(s syscall.Signal) error { return b.rig.cluster.Signal("etcd", s) })
}

func (b *breaker) storeErrors(ctx context.Context, d time.Duration) error {
	b.proxy.spoil(true)
	defer b.proxy.spoil(false)
	hold(ctx, d)
	return nil
}

func (b *breaker) slowDisk(ctx context.Context, d time.Duration) error {
	if err := b.disk.Limit(b.daemonPid(), 96<<10, 40); err != nil {
		return err
	}
	hold(ctx, d)
	return b.disk.Limit(0, 0, 0)
}

// nearlyFullDisk leaves less than the daemon wants: it pauses, says so, and goes on.
func (b *breaker) nearlyFullDisk(ctx context.Context, d time.Duration) error {
	if err := b.disk.Fill(minFree / 4); err != nil {
		return err
	}
	hold(ctx, d)
	return b.disk.Free()
}

// fullDisk leaves nothing: the daemon may end, and must then have lost nothing that it had acknowledged.
func (b *breaker) fullDisk(ctx context.Context, d time.Duration) error {
	b.rig.mu.Lock()
	b.look()
	b.wanted = false // it may end by itself
	b.rig.mu.Unlock()
	err := b.disk.Fill(0)
	hold(ctx, d)
	if err = errors.Join(err, b.disk.Free()); err != nil {
		return err
	}
	hold(ctx, 3*time.Second) // so that one that is about to end does not count as running
	return b.startDaemon()
}

// powerCut takes the machine of the daemon away: its disk has what was synced.
func (b *breaker) powerCut(ctx context.Context, d time.Duration) error {
	if err := b.losePower(); err != nil {
		return err
	}
	hold(ctx, d)
	return b.startDaemon()
}

// powerCutEverywhere is that of a cluster of one machine, on which the daemon runs as well. What etcd writes stays: it has no disk of its own here.
func (b *breaker) powerCutEverywhere(ctx context.Context, d time.Duration) error {
	servers := []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"} // in the order in which they start
	var all errgroup.Group
	all.Go(b.losePower)
	for _, name := range servers {
		all.Go(func() error { return b.rig.cluster.Kill(name) })
	}
	b.kwok.Stop(syscall.SIGKILL, time.Second) // heal starts it
	if err := all.Wait(); err != nil {
		return err
	}
	hold(ctx, d)
	for _, name := range servers {
		if err := b.rig.cluster.StartAgain(ctx, name); err != nil {
			return err
		}
	}
	return b.startDaemon()
}

func (b *breaker) compact(ctx context.Context, _ time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return b.rig.cluster.CompactEtcd(ctx, 0)
}

// storm takes history away from a daemon that does not look: changes, a compaction, and an API server without memory.
// of is the resource that must have the gap.
func (b *breaker) storm(ctx context.Context, d time.Duration, of string) error {
	from, err := b.revision(ctx)
	if err != nil {
		return err
	}
	for i := range 5 {
		if err := b.writer.put(ctx, "configmaps", "default", "storm", map[string]any{"data": map[string]any{"i": fmt.Sprint(i, " ", time.Now().UnixNano())}}); err != nil {
			return err
		}
	}
	hold(ctx, d)
	to, err := b.revision(ctx)
	if err != nil {
		return err
	}
	if err := b.compact(ctx, 0); err != nil {
		return err
	}
	if err := b.killServer(ctx, "kube-apiserver", 0); err != nil {
		return err
	}
	b.mu.Lock()
	b.gaps = append(b.gaps, injected{from, to, of})
	b.mu.Unlock()
	b.log.note("fault", 0, "history taken away", map[string]uint64{"from": from, "to": to}, nil)
	return nil
}

func (b *breaker) stormDown(ctx context.Context, d time.Duration) error {
	b.stopDaemon(syscall.SIGKILL)
	return errors.Join(b.storm(ctx, d, "configmaps"), b.startDaemon())
}

func (b *breaker) stormPaused(ctx context.Context, d time.Duration) error {
	signal := signalTo(b.daemonPid)
	if err := signal(syscall.SIGSTOP); err != nil {
		return err
	}
	return errors.Join(b.storm(ctx, d, ""), signal(syscall.SIGCONT))
}
