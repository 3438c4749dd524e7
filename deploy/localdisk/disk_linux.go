package localdisk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// controls is where control groups are: of version 2, or one folder for each controller of version 1.
const controls = "/sys/fs/cgroup"

// Disk is a file system of its own. Its mount is only seen by this process and its children (see Isolate).
type Disk struct {
	dir    string   // where it is mounted
	device string   // "7:3"
	held   *os.File // the loop device: while somebody has it open it outlives its mount
	group  string   // the control group that is made slow; empty: this machine has none
}

// size is that of the image, which is sparse.
const size = 1 << 30

// New makes the image, the file system and the mount; neither file may be there. The file system has 1 GiB.
func New(ctx context.Context, image, dir string) (*Disk, error) {
	f, err := os.OpenFile(image, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Truncate(size), f.Close(), os.Mkdir(dir, 0o700)); err != nil {
		return nil, err
	}
	for _, args := range [][]string{{"mkfs.ext4", "-q", "-F", "-m", "0", image}, {"mount", "-o", "loop", image, dir}} {
		if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
		}
	}
	var st syscall.Stat_t
	if err := syscall.Stat(dir, &st); err != nil {
		return nil, err
	}
	d := &Disk{dir: dir, device: fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))}
	if d.held, err = os.Open(fmt.Sprint("/dev/loop", unix.Minor(st.Dev))); err != nil {
		return nil, errors.Join(err, syscall.Unmount(dir, 0))
	}
	d.group = newGroup(controls, d.device)
	return d, nil
}

// newGroup makes a control group that can limit the writes to a device; empty: this machine cannot.
func newGroup(root, device string) string {
	name := fmt.Sprintf("tidemark-disk-%d", os.Getpid())
	group := filepath.Join(root, "blkio", name)
	if _, err := os.Stat(filepath.Join(root, "blkio")); err != nil {
		group = filepath.Join(root, name)
		// Both: what is written through the page cache is only known to be the group's by its memory.
		if os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+io +memory"), 0) != nil {
			return ""
		}
	}
	if os.Mkdir(group, 0o755) != nil {
		return ""
	}
	if limitGroup(group, device, 0, 0) != nil {
		_ = os.Remove(group)
		return ""
	}
	return group
}

// limitGroup lets the group write so many bytes and times in a second; zero: as many as it likes.
func limitGroup(group, device string, bytes, times int) error {
	if _, err := os.Stat(filepath.Join(group, "blkio.throttle.write_bps_device")); err == nil {
		for file, n := range map[string]int{"blkio.throttle.write_bps_device": bytes, "blkio.throttle.write_iops_device": times} {
			if err := os.WriteFile(filepath.Join(group, file), fmt.Appendf(nil, "%s %d", device, n), 0); err != nil {
				return err
			}
		}
		return nil
	}
	line := device + " wbps=max wiops=max"
	if bytes > 0 {
		line = fmt.Sprintf("%s wbps=%d wiops=%d", device, bytes, times)
	}
	f, err := os.OpenFile(filepath.Join(group, "io.max"), os.O_WRONLY, 0) // the kernel made it, or there is none
	if err != nil {
		return err
	}
	_, err = f.WriteString(line)
	return errors.Join(err, f.Close())
}

// CanLimit reports whether Limit works on this machine.
func (d *Disk) CanLimit() bool { return d.group != "" }

// Limit slows the writes of the process to so many bytes and times a second, and lets go of all with 0. It wants CanLimit.
func (d *Disk) Limit(pid, bytes, times int) error {
	if err := limitGroup(d.group, d.device, bytes, times); err != nil || pid == 0 {
		return err
	}
	err := os.WriteFile(filepath.Join(d.group, "cgroup.procs"), fmt.Append(nil, pid), 0)
	if errors.Is(err, syscall.ESRCH) {
		return nil // it was killed by the fault beside this one
	}
	return err
}

// Fill leaves so many bytes free, until Free.
func (d *Disk) Fill(leave int64) error {
	var st syscall.Statfs_t
	if err := syscall.Statfs(d.dir, &st); err != nil {
		return err
	}
	n := int64(st.Bavail)*st.Bsize - leave
	if n <= 0 {
		return nil
	}
	f, err := os.OpenFile(filepath.Join(d.dir, "filler"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	err = syscall.Fallocate(int(f.Fd()), 0, 0, n)
	if leave == 0 { // and what little is left of it
		b := make([]byte, 4096)
		for end := n; err == nil; end += int64(len(b)) {
			_, err = f.WriteAt(b, end)
		}
		if errors.Is(err, syscall.ENOSPC) {
			err = nil
		}
	}
	return err
}

// Free takes away what Fill wrote.
func (d *Disk) Free() error {
	if err := os.Remove(filepath.Join(d.dir, "filler")); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// forGoingDown is EXT4_IOC_SHUTDOWN, and withoutLog the flag by which the log is not flushed either (EXT4_GOING_FLAGS_NOLOGFLUSH): include/uapi/linux/ext4.h.
const forGoingDown, withoutLog = 0x8004587d, 2

// CutPower loses all that was not synced, as a power cut does: what is written afterwards fails, and Mount shows what is left. Who uses the disk should
// have been stopped (SIGSTOP), and be killed before Mount.
func (d *Disk) CutPower() error {
	f, err := os.Open(d.dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.IoctlSetPointerInt(int(f.Fd()), forGoingDown, withoutLog); err != nil {
		return fmt.Errorf("cut the power of %s: %w", d.dir, err)
	}
	return nil
}

// Mount mounts the disk anew after CutPower.
func (d *Disk) Mount() error {
	if err := d.Unmount(); err != nil {
		return err
	}
	if err := syscall.Mount(d.held.Name(), d.dir, "ext4", 0, ""); err != nil {
		return fmt.Errorf("mount %s again: %w", d.dir, err)
	}
	return nil
}

// Unmount takes it away until Mount. It may be done already.
func (d *Disk) Unmount() error {
	err := syscall.Unmount(d.dir, 0)
	for end := time.Now().Add(10 * time.Second); errors.Is(err, syscall.EBUSY) && time.Now().Before(end); err = syscall.Unmount(d.dir, 0) {
		time.Sleep(20 * time.Millisecond) // what was killed may not be gone yet
	}
	if err != nil && !errors.Is(err, syscall.EINVAL) { // else nothing is mounted there
		return fmt.Errorf("unmount %s: %w", d.dir, err)
	}
	return nil
}

// Close unmounts. The image stays.
func (d *Disk) Close() error {
	if d.group != "" { // a group can only be removed once the processes in it are gone for good
		for end := time.Now().Add(10 * time.Second); os.Remove(d.group) != nil && time.Now().Before(end); {
			time.Sleep(50 * time.Millisecond)
		}
	}
	return errors.Join(d.Unmount(), d.held.Close())
}

// isolated names the environment variable that tells a process that it is.
const isolated = "TIDEMARK_LOCALDISK_ISOLATED"

// Isolate runs this program again in a mount namespace of its own, so that its disks are gone with it, however it
// ends. It reports whether it did, and the exit code. Without root, and in the program that runs again, it does nothing.
func Isolate() (bool, int) {
	if os.Getuid() != 0 || os.Getenv(isolated) != "" {
		return false, 0
	}
	self, err := os.Executable()
	if err != nil {
		return false, 0
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), isolated+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM, syscall.SIGQUIT) // they are the child's: it ends when this process does, and would say nothing
	if err := cmd.Start(); err != nil {
		return false, 0
	}
	go func() {
		for s := range stop {
			_ = cmd.Process.Signal(s)
		}
	}()
	_ = cmd.Wait() // the exit code says it
	return true, cmd.ProcessState.ExitCode()
}

// Possible reports whether New can work here, after Isolate.
func Possible() bool {
	_, loops := os.Stat("/dev/loop-control")
	_, makes := exec.LookPath("mkfs.ext4")
	_, mounts := exec.LookPath("mount")
	return os.Getenv(isolated) != "" && errors.Join(loops, makes, mounts) == nil
}
