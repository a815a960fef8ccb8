// Package cgroup reads the memory limits that the kernel has set for this process: cgroup v2, v1,
// and hybrid trees, where the memory controller may be in either. It changes nothing.
//
// A limit of an ancestor counts as much as an own one, so the least on the way up is taken, as far
// as the mount shows it. Where the kernel's path lies outside what is mounted (a container that
// shares the host's cgroup namespace), the mount point itself is taken for the own cgroup, as
// Go does: internal/runtime/cgroup/cgroup_linux.go, go1.26.
// Spec: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst of Linux.
package cgroup

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

const (
	// unlimited is where v1 says "no limit" by a number: PAGE_COUNTER_MAX in bytes is just below
	// 1<<63 with every page size.
	unlimited = 1 << 62
	// maxFile bounds what is read of a file: mountinfo of a busy node has some hundred KB.
	maxFile = 8 << 20
)

// Memory is what limits this process. Sizes are bytes; 0 is no limit.
type Memory struct {
	Version int   // of the hierarchy that has the memory controller: 1, 2, or 0 for none
	High    int64 // the least memory.high: above it the kernel slows the process down (v2)
	Max     int64 // the least memory.max or memory.limit_in_bytes: above it the kernel kills
}

// ReadMemory reads the limits below root, which is "/" but in tests. What cannot be read or is
// nonsense counts as no limit and is told by the error; the other limits are there all the same.
func ReadMemory(root string) (Memory, error) {
	own, err := readOwn(root)
	if err != nil {
		return Memory{}, err
	}
	mounts, err := readMounts(root)
	if err != nil {
		return Memory{}, err
	}
	if own.v1 != "" {
		if mount, path, ok := locate(mounts, own.v1, mount.isMemoryV1); ok {
			limit, err := readV1(root, mount, path)
			return Memory{Version: 1, Max: limit}, err
		}
	}
	if own.v2 != "" {
		if mount, path, ok := locate(mounts, own.v2, mount.isV2); ok {
			high, highErr := least(root, mount, path, "memory.high")
			limit, maxErr := least(root, mount, path, "memory.max")
			return Memory{Version: 2, High: high, Max: limit}, errors.Join(highErr, maxErr)
		}
	}
	return Memory{}, nil
}

// ownPaths are the process's cgroups: of the v1 memory controller, and of v2; empty where none.
type ownPaths struct{ v1, v2 string }

func readOwn(root string) (ownPaths, error) {
	raw, err := readFile(filepath.Join(root, "proc/self/cgroup"))
	if err != nil {
		return ownPaths{}, err
	}
	return parseOwn(raw)
}

// parseOwn parses /proc/self/cgroup, lines of `hierarchy:controllers:path`. See cgroups(7).
func parseOwn(raw []byte) (ownPaths, error) {
	var own ownPaths
	err := eachLine(raw, func(line string) {
		parts := strings.SplitN(line, ":", 3)
		switch {
		case len(parts) != 3 || !strings.HasPrefix(parts[2], "/"):
		case parts[0] == "0" && parts[1] == "":
			own.v2 = parts[2]
		case has(parts[1], "memory"):
			own.v1 = parts[2]
		}
	})
	return own, err
}

// mount is one line of mountinfo that is of a cgroup file system.
type mount struct {
	root, point, kind, options string
}

func (m mount) isMemoryV1() bool { return m.kind == "cgroup" && has(m.options, "memory") }
func (m mount) isV2() bool       { return m.kind == "cgroup2" }

func readMounts(root string) ([]mount, error) {
	raw, err := readFile(filepath.Join(root, "proc/self/mountinfo"))
	if err != nil {
		return nil, err
	}
	return parseMounts(raw)
}

// parseMounts parses /proc/self/mountinfo: `id parent device root point options [...] - type source
// options`. See proc_pid_mountinfo(5).
func parseMounts(raw []byte) ([]mount, error) {
	var found []mount
	err := eachLine(raw, func(line string) {
		left, right, ok := strings.Cut(line, " - ")
		head, tail := strings.Fields(left), strings.Fields(right)
		if ok && len(head) >= 5 && len(tail) >= 1 && strings.HasPrefix(tail[0], "cgroup") {
			found = append(found, mount{unescape(head[3]), unescape(head[4]), tail[0], tail[len(tail)-1]})
		}
	})
	return found, err
}

// locate finds the mount that shows the most of a cgroup's ancestors, and the cgroup's path in it.
func locate(mounts []mount, path string, is func(mount) bool) (mount, string, bool) {
	var best mount
	inside, found := "", false
	for _, m := range mounts {
		if !is(m) {
			continue
		}
		rest, ok := beneath(m.root, path)
		if !found || (ok && (inside == "" || len(m.root) < len(best.root))) {
			best, found = m, true
			if ok {
				inside = "/" + rest
			}
		}
	}
	if inside == "" {
		inside = "/"
	}
	return best, inside, found
}

// beneath is path relative to folder, if it lies in it.
func beneath(folder, path string) (string, bool) {
	folder, path = filepath.Clean(folder), filepath.Clean(path)
	if strings.HasPrefix(path, "/..") { // outside of this cgroup namespace
		return "", false
	}
	if folder == "/" {
		return strings.TrimPrefix(path, "/"), true
	}
	rest, ok := strings.CutPrefix(path, folder)
	if !ok || (rest != "" && rest[0] != '/') {
		return "", false
	}
	return strings.TrimPrefix(rest, "/"), true
}

// readV1 is the least limit of v1. The kernel knows it best: with use_hierarchy off an ancestor's
// limit does not count, and ancestors above the mount are not to be seen.
func readV1(root string, m mount, path string) (int64, error) {
	folder := filepath.Join(root, m.point, path)
	var limit int64
	raw, err := readFile(filepath.Join(folder, "memory.stat"))
	if err == nil {
		err = eachLine(raw, func(line string) {
			if text, ok := strings.CutPrefix(line, "hierarchical_memory_limit "); ok {
				limit, _ = parseLimit(text)
			}
		})
	}
	if err == nil && limit > 0 {
		own, err := readLimit(filepath.Join(folder, "memory.limit_in_bytes"))
		return tighter(limit, own), err
	}
	return least(root, m, path, "memory.limit_in_bytes")
}

// least is the least limit of that name from the cgroup up to the mount point.
func least(root string, m mount, path, name string) (int64, error) {
	var limit int64
	var errs []error
	for at := filepath.Clean(path); ; at = filepath.Dir(at) {
		own, err := readLimit(filepath.Join(root, m.point, at, name))
		if err != nil {
			errs = append(errs, err)
		}
		limit = tighter(limit, own)
		if at == "/" {
			return limit, errors.Join(errs...)
		}
	}
}

func tighter(a, b int64) int64 {
	if a == 0 || (b != 0 && b < a) {
		return b
	}
	return a
}

// readLimit is a limit, 0 where there is none: the root cgroup has no such file.
func readLimit(path string) (int64, error) {
	raw, err := readFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	limit, ok := parseLimit(string(raw))
	if !ok {
		return 0, fmt.Errorf("%s: got %.40q, want bytes or max", path, bytes.TrimSpace(raw))
	}
	return limit, nil
}

// parseLimit reads a number of bytes or "max". Zero is no limit that a process could live with.
func parseLimit(text string) (int64, bool) {
	text = strings.TrimSpace(text)
	if text == "max" {
		return 0, true
	}
	value, err := strconv.ParseUint(text, 10, 64)
	if errors.Is(err, strconv.ErrRange) || (err == nil && value >= unlimited) {
		return 0, true
	}
	if err != nil || value == 0 {
		return 0, false
	}
	return int64(value), true
}

func has(list, word string) bool {
	for _, one := range strings.Split(list, ",") {
		if one == word {
			return true
		}
	}
	return false
}

// unescape undoes the octal escapes of mountinfo: space, tab, newline, backslash.
func unescape(text string) string {
	if !strings.Contains(text, `\`) {
		return text
	}
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(text)
}

func eachLine(raw []byte, take func(line string)) error {
	lines := bufio.NewScanner(bytes.NewReader(raw))
	lines.Buffer(nil, maxFile)
	for lines.Scan() {
		take(lines.Text())
	}
	return lines.Err()
}

func readFile(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(io.LimitReader(file, maxFile))
}
