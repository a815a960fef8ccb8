// Command vm is the init of a small virtual machine: it runs programs under limits of cgroup v2,
// which the host may not have, and prints what became of them, a JSON line each. bench/vm.py puts it
// into an initrd, beside the programs.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	groups    = "/sys/fs/cgroup"
	casesFile = "/cases.json"
	// done begins the last line; what the kernel says has no such line
	done = "layerkit-vm: end"
)

// group is a cgroup below the one before it, with what is written into its files.
type group map[string]string

// one is a program to run in the innermost of nested cgroups.
type one struct {
	Name        string   `json:"name"`
	Groups      []group  `json:"groups"`
	Argv        []string `json:"argv"`
	Environment []string `json:"environment"`
	Seconds     float64  `json:"seconds"` // until it is killed
	Bind        bool     `json:"bind"`    // the innermost group is all that it sees, as in a container
}

type outcome struct {
	Name   string           `json:"name"`
	Status int              `json:"status"` // -9: killed
	Late   bool             `json:"late"`   // it took longer than it may
	Stdout string           `json:"stdout"`
	Error  string           `json:"error,omitempty"`
	Events map[string]int64 `json:"events"` // memory.events of the outermost group
	Peak   int64            `json:"peak"`   // bytes, memory.peak of the outermost group
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "procs" {
		fmt.Printf(`{"gomaxprocs":%d,"go":%q}`, runtime.GOMAXPROCS(0), runtime.Version())
		return
	}
	if len(os.Args) > 3 && os.Args[1] == "bind" {
		fmt.Fprintln(os.Stderr, "error:", bind(os.Args[2], os.Args[3:]))
		os.Exit(1)
	}
	if err := run(); err != nil {
		fmt.Println("error:", err)
	}
	fmt.Println(done)
	syscall.Sync()
	_ = syscall.Reboot(syscall.LINUX_REBOOT_CMD_RESTART) // qemu ends: -no-reboot
}

func run() error {
	for point, kind := range map[string]string{"/proc": "proc", "/sys": "sysfs", "/dev": "devtmpfs"} {
		if err := mount(point, kind); err != nil {
			return err
		}
	}
	if err := mount(groups, "cgroup2"); err != nil {
		return err
	}
	raw, err := os.ReadFile(casesFile)
	if err != nil {
		return err
	}
	var cases []one
	if err := json.Unmarshal(raw, &cases); err != nil {
		return err
	}
	for _, c := range cases {
		line, err := json.Marshal(c.run())
		if err != nil {
			return err
		}
		fmt.Printf("\n%s\n", line)
	}
	return nil
}

func mount(point, kind string) error {
	if err := os.MkdirAll(point, 0o755); err != nil {
		return err
	}
	if err := syscall.Mount(kind, point, kind, 0, ""); err != nil && err != syscall.EBUSY {
		return fmt.Errorf("mount %s: %w", kind, err)
	}
	return nil
}

// bind has this process see one group where all of them were, as a container runtime mounts it, in the
// mount namespace that the process was started in; then it becomes the program.
func bind(folder string, argv []string) error {
	const aside = "/own"
	if err := os.MkdirAll(aside, 0o755); err != nil {
		return err
	}
	for _, step := range []func() error{
		func() error { return syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, "") },
		func() error { return syscall.Mount(folder, aside, "", syscall.MS_BIND, "") },
		func() error { return syscall.Unmount(groups, syscall.MNT_DETACH) },
		func() error { return syscall.Mount(aside, groups, "", syscall.MS_MOVE, "") },
		func() error { return syscall.Exec(argv[0], argv, os.Environ()) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// give has the groups below folder get the controllers.
func give(folder string) error {
	return os.WriteFile(filepath.Join(folder, "cgroup.subtree_control"), []byte("+cpu +memory"), 0o644)
}

func (c one) run() outcome {
	found := outcome{Name: c.Name, Events: map[string]int64{}}
	outermost := filepath.Join(groups, "g0")
	folder := filepath.Join(outermost, strings.Repeat("/g0", len(c.Groups)-1))
	defer func() {
		for at := folder; at != groups; at = filepath.Dir(at) {
			_ = os.Remove(at)
		}
	}()
	if err := c.makeGroups(); err != nil {
		found.Error = err.Error()
		return found
	}
	c.start(folder, &found)
	found.Events = events(filepath.Join(outermost, "memory.events"))
	raw, _ := os.ReadFile(filepath.Join(outermost, "memory.peak"))
	found.Peak, _ = strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64)
	return found
}

func (c one) makeGroups() error {
	folder := groups
	for _, files := range c.Groups {
		if err := give(folder); err != nil {
			return err
		}
		folder = filepath.Join(folder, "g0")
		if err := os.Mkdir(folder, 0o755); err != nil {
			return err
		}
		for name, value := range files {
			if err := os.WriteFile(filepath.Join(folder, name), []byte(value), 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

// start runs the program in the group of that folder from its first instruction on.
func (c one) start(folder string, found *outcome) {
	group, err := os.Open(folder)
	if err != nil {
		found.Error = err.Error()
		return
	}
	defer group.Close()
	var stdout strings.Builder
	argv := c.Argv
	attributes := &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(group.Fd())}
	if c.Bind {
		argv = append([]string{"/init", "bind", folder}, argv...)
		attributes.Cloneflags = syscall.CLONE_NEWNS
	}
	command := exec.Command(argv[0], argv[1:]...)
	command.Env, command.Stdout, command.SysProcAttr = c.Environment, &stdout, attributes
	if err := command.Start(); err != nil {
		found.Error = err.Error()
		return
	}
	timer := time.AfterFunc(time.Duration(c.Seconds*float64(time.Second)), func() {
		found.Late = true
		_ = command.Process.Kill()
	})
	_ = command.Wait() // the state says it
	timer.Stop()
	found.Stdout = strings.TrimSpace(stdout.String())
	found.Status = command.ProcessState.ExitCode()
	if status, ok := command.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		found.Status = -int(status.Signal())
	}
}

// events is a file of `name count` lines.
func events(path string) map[string]int64 {
	found := map[string]int64{}
	raw, _ := os.ReadFile(path)
	for _, line := range strings.Split(string(raw), "\n") {
		if name, text, ok := strings.Cut(line, " "); ok {
			found[name], _ = strconv.ParseInt(text, 10, 64)
		}
	}
	return found
}
