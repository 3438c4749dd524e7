package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// spec is what the one who starts a node wants of it.
type spec struct {
	// Tmpfs are directories that the node has for itself alone.
	Tmpfs []string
	// Binds are files that are seen in place of others: place -> file.
	Binds map[string]string
	// Programs are what can be started, by name.
	Programs map[string]program
}

type program struct {
	Args []string // the first is the path
	Env  []string
	Log  string
}

// runNode is the first process of namespaces of mounts and of processes: with it dies all that the node runs and has
// mounted. It does what its standard input says, a line at a time ("start NAME", "kill NAME"), answers each with one line, and
// ends with the input.
func runNode(args []string) error {
	if len(args) != 1 || os.Getpid() != 1 {
		return fmt.Errorf("node wants one file, and to be the first process of its namespace")
	}
	b, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	n := &node{running: map[string]int{}}
	if err := json.Unmarshal(b, &n.spec); err != nil {
		return err
	}
	if err := n.mount(); err != nil {
		return err
	}
	go n.bury()
	fmt.Println("ready")
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		verb, name, _ := strings.Cut(lines.Text(), " ")
		err := fmt.Errorf("%q is neither start nor kill", verb)
		switch verb {
		case "start":
			err = n.start(name)
		case "kill":
			err = n.kill(name)
		}
		if err != nil {
			fmt.Println("error:", err)
			continue
		}
		fmt.Println("ok")
	}
	return lines.Err()
}

type node struct {
	spec
	mu      sync.Mutex
	running map[string]int // name -> pid
}

func (n *node) mount() error {
	// Nothing that is mounted here is seen outside; in here the kubelet's mounts reach the Pods.
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share mounts: %w", err)
	}
	if err := syscall.Mount("proc", "/proc", "proc", syscall.MS_NOSUID|syscall.MS_NODEV|syscall.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	for _, dir := range n.Tmpfs {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
	}
	for place, file := range n.Binds {
		if err := syscall.Mount(file, place, "", syscall.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount over %s: %w", place, err)
		}
	}
	return nil
}

func (n *node) start(name string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	p, ok := n.Programs[name]
	if !ok {
		return fmt.Errorf("there is no program %q", name)
	}
	if n.running[name] != 0 {
		return fmt.Errorf("%s runs already", name)
	}
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	// Not os/exec: its waiting and that of bury would take each other's children.
	pid, err := syscall.ForkExec(p.Args[0], p.Args, &syscall.ProcAttr{
		Env: append(os.Environ(), p.Env...), Files: []uintptr{null.Fd(), log.Fd(), log.Fd()}, Sys: &syscall.SysProcAttr{Setpgid: true},
	})
	if err != nil {
		return fmt.Errorf("start %s: %w", p.Args[0], err)
	}
	n.running[name] = pid
	return nil
}

// kill ends a program as a crash would, and waits until it is gone.
func (n *node) kill(name string) error {
	n.mu.Lock()
	pid := n.running[name]
	n.mu.Unlock()
	if pid == 0 {
		return fmt.Errorf("%s does not run", name)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return err
	}
	for {
		n.mu.Lock()
		gone := n.running[name] == 0
		n.mu.Unlock()
		if gone {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// bury waits for every process that ends: the first process of a namespace is left all orphans.
func (n *node) bury() {
	for {
		n.mu.Lock()
		for {
			pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
			if pid <= 0 || err != nil {
				break
			}
			for name, p := range n.running {
				if p == pid {
					delete(n.running, name)
				}
			}
		}
		n.mu.Unlock()
		time.Sleep(20 * time.Millisecond)
	}
}
