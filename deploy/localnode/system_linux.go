package localnode

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// gateway is this machine's address on the bridge of the Pods, and the node's.
func (n *Node) gateway() string { return fmt.Sprintf("10.244.%d.1", n.o.Number) }

func (n *Node) podNet() string { return fmt.Sprintf("10.244.%d.0/24", n.o.Number) }

// serviceNet are the addresses of Services.
func (n *Node) serviceNet() string { return fmt.Sprintf("10.%d.0.0/16", 96+n.o.Number) }

func (n *Node) bridge() string { return fmt.Sprintf("tidemark%d", n.o.Number) }

// cgroup is the control group that all Pods are in, below each hierarchy's root.
func (n *Node) cgroup() string { return fmt.Sprintf("tidemark-node%d", n.o.Number) }

const cgroups = "/sys/fs/cgroup"

func command(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// makeNetwork makes the bridge of the Pods. The address of the service "kubernetes" is this machine's, so that no kube-proxy is
// needed, and nothing is forwarded anywhere.
func (n *Node) makeNetwork() error {
	service := strings.TrimSuffix(n.serviceNet(), ".0/16") + ".1/32"
	for _, args := range [][]string{
		{"link", "add", n.bridge(), "type", "bridge"},
		{"address", "add", n.gateway() + "/24", "dev", n.bridge()},
		{"address", "add", service, "dev", n.bridge()},
		{"link", "set", n.bridge(), "up"},
	} {
		if err := command("ip", args...); err != nil {
			return err
		}
	}
	return n.makeCgroups()
}

func (n *Node) makeCgroups() error {
	if _, err := os.Stat(filepath.Join(cgroups, "cgroup.controllers")); err == nil { // version 2 alone
		return os.MkdirAll(filepath.Join(cgroups, n.cgroup()), 0o755)
	}
	for _, hierarchy := range []string{"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "systemd", "hugetlb"} {
		root := filepath.Join(cgroups, hierarchy)
		if _, err := os.Stat(root); err != nil {
			continue
		}
		dir := filepath.Join(root, n.cgroup())
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		var inherit []string // what a new group does not have by itself
		switch hierarchy {
		case "cpuset":
			inherit = []string{"cpuset.cpus", "cpuset.mems"}
		case "memory":
			inherit = []string{"memory.use_hierarchy"}
		}
		for _, file := range inherit {
			b, err := os.ReadFile(filepath.Join(root, file))
			if err == nil {
				_ = os.WriteFile(filepath.Join(dir, file), bytes.TrimSpace(b), 0o600) // it may be so already, and then cannot be set
			}
		}
	}
	return nil
}

// freezer is the control group whose freezing stops all Pods.
func (n *Node) freezer() string {
	if dir := filepath.Join(cgroups, "freezer", n.cgroup()); exists(dir) {
		return dir
	}
	return filepath.Join(cgroups, n.cgroup())
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// cleanUp removes the bridge, the control groups and the loop devices, after all processes are gone.
func (n *Node) cleanUp() {
	n.freeLoops()
	if exec.Command("ip", "link", "show", n.bridge()).Run() == nil {
		_ = command("ip", "link", "delete", n.bridge())
	}
	roots, _ := filepath.Glob(filepath.Join(cgroups, "*", n.cgroup()))
	roots = append(roots, filepath.Join(cgroups, n.cgroup()))
	for _, root := range roots {
		for range 50 { // a group can go only some time after its last process
			if !exists(root) {
				break
			}
			_ = exec.Command("find", root, "-depth", "-type", "d", "-exec", "rmdir", "{}", "+").Run()
			if exists(root) {
				time.Sleep(50 * time.Millisecond)
			}
		}
	}
}

// freeLoops gives back the loop devices of block volumes, also of a node of the same number that was killed: they outlive all processes, and
// keep the space of deleted files. The driver makes them of its files, and the kubelet makes devices of the driver's devices.
func (n *Node) freeLoops() {
	out, err := exec.Command("losetup", "--list", "--noheadings", "--raw", "--output", "NAME,BACK-MAJ:MIN,BACK-INO,BACK-FILE").Output()
	if err != nil {
		return // no losetup, so that nothing can have made any
	}
	var ours, others [][]string
	drivers := map[string]bool{} // the driver's devices, by the device and inode of their files
	for line := range strings.Lines(string(out)) {
		switch f := strings.Fields(line); {
		case len(f) < 4:
		case strings.Contains(f[3], "/"+n.dirPrefix()):
			ours = append(ours, f)
			if info, err := os.Stat(f[0]); err == nil {
				at := info.Sys().(*syscall.Stat_t) //nolint:forcetypeassert // on Linux
				drivers[fmt.Sprintf("%d:%d %d", unix.Major(at.Dev), unix.Minor(at.Dev), at.Ino)] = true
			}
		default:
			others = append(others, f)
		}
	}
	kubelets := slices.DeleteFunc(others, func(f []string) bool { return !drivers[strings.TrimSpace(unescaped(f[1]))+" "+f[2]] })
	for _, f := range append(kubelets, ours...) {
		_ = command("losetup", "--detach", f[0]) // it may have gone with its last user
	}
}

// unescaped undoes what losetup makes of blanks.
func unescaped(field string) string { return strings.ReplaceAll(field, `\x20`, " ") }

// agent is the node's first process.
type agent struct {
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Scanner
	done chan struct{}
}

// startAgent starts it in namespaces of its own. It dies with us: the kernel sends the signal when the thread that started it ends,
// so that thread stays.
func startAgent(path, spec string, trouble io.Writer) (*agent, error) {
	a := &agent{cmd: exec.Command(path, "node", spec), done: make(chan struct{})}
	a.cmd.Stderr = trouble
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL, Setpgid: true}
	var err error
	if a.in, err = a.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := a.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	a.out = bufio.NewScanner(out)
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := a.cmd.Start()
		started <- err
		if err == nil {
			_, _ = a.cmd.Process.Wait()
		}
		close(a.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start the node's first process: %w", err)
	}
	return a, a.answer("ready")
}

// do gives it a command.
func (a *agent) do(line string) error {
	if _, err := io.WriteString(a.in, line+"\n"); err != nil {
		return fmt.Errorf("the node has ended: %w", err)
	}
	return a.answer("ok")
}

func (a *agent) answer(want string) error {
	if !a.out.Scan() {
		return errors.Join(errors.New("the node has ended; see agent.log"), a.out.Err())
	}
	if got := a.out.Text(); got != want {
		return errors.New(got)
	}
	return nil
}

// kill ends it, and with it everything in its namespaces.
func (a *agent) kill() {
	_ = a.cmd.Process.Kill()
	<-a.done
}
