package cgroup

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const (
	gib = 1 << 30
	mib = 1 << 20
)

// tree writes files below a new root; a name that ends in "!" cannot be read (it is a folder).
func tree(t testing.TB, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, strings.TrimSuffix(name, "!"))
		if strings.HasSuffix(name, "!") {
			path = filepath.Join(path, "folder")
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

const (
	mountV2     = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
	mountV1     = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
	mountHybrid = "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
	mountOther  = "36 31 0:33 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
)

func TestReadMemory(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		want  Memory
		err   string
	}{
		"v2, own limits": {map[string]string{
			"proc/self/cgroup":                 "0::/fn\n",
			"proc/self/mountinfo":              mountV2,
			"sys/fs/cgroup/fn/memory.max":      "1073741824\n",
			"sys/fs/cgroup/fn/memory.high":     "536870912\n",
			"sys/fs/cgroup/cgroup.controllers": "memory",
		}, Memory{2, 512 * mib, gib}, ""},
		"v2, the tightest is an ancestor's": {map[string]string{
			"proc/self/cgroup":                 "0::/pod/fn\n",
			"proc/self/mountinfo":              mountV2,
			"sys/fs/cgroup/pod/fn/memory.max":  "max\n",
			"sys/fs/cgroup/pod/fn/memory.high": "1073741824\n",
			"sys/fs/cgroup/pod/memory.max":     "268435456\n",
			"sys/fs/cgroup/pod/memory.high":    "max\n",
		}, Memory{2, gib, 256 * mib}, ""},
		"v2, all max": {map[string]string{
			"proc/self/cgroup":              "0::/fn\n",
			"proc/self/mountinfo":           mountV2,
			"sys/fs/cgroup/fn/memory.max":   "max\n",
			"sys/fs/cgroup/fn/memory.high":  "max\n",
			"sys/fs/cgroup/fn/cgroup.procs": "",
		}, Memory{2, 0, 0}, ""},
		"v2, a namespace of its own": {map[string]string{
			"proc/self/cgroup":         "0::/\n",
			"proc/self/mountinfo":      "30 24 0:26 /kube/pod1/fn /sys/fs/cgroup ro - cgroup2 cgroup rw\n",
			"sys/fs/cgroup/memory.max": "1048576\n",
		}, Memory{2, 0, mib}, ""},
		"v2, a path outside of the namespace": {map[string]string{
			"proc/self/cgroup":         "0::/../other\n",
			"proc/self/mountinfo":      mountV2,
			"sys/fs/cgroup/memory.max": "1048576\n",
		}, Memory{2, 0, mib}, ""},
		"v2, nonsense and zero": {map[string]string{
			"proc/self/cgroup":             "0::/fn\n",
			"proc/self/mountinfo":          mountV2,
			"sys/fs/cgroup/fn/memory.max":  "lots\n",
			"sys/fs/cgroup/fn/memory.high": "0\n",
		}, Memory{2, 0, 0}, "lots"},
		"v2, one file cannot be read": {map[string]string{
			"proc/self/cgroup":             "0::/fn\n",
			"proc/self/mountinfo":          mountV2,
			"sys/fs/cgroup/fn/memory.max!": "",
			"sys/fs/cgroup/memory.max":     "1048576\n",
		}, Memory{2, 0, mib}, "directory"},
		"v1, the kernel's word": {map[string]string{
			"proc/self/cgroup":                                    "4:memory:/docker/1\n3:cpu,cpuacct:/x\n",
			"proc/self/mountinfo":                                 mountOther + mountV1,
			"sys/fs/cgroup/memory/docker/1/memory.stat":           "cache 1\nhierarchical_memory_limit 268435456\n",
			"sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes": "1073741824\n",
		}, Memory{1, 0, 256 * mib}, ""},
		"v1, no stat, a parent's limit": {map[string]string{
			"proc/self/cgroup":    "4:memory:/docker/1\n",
			"proc/self/mountinfo": mountV1,
			"sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes": "9223372036854771712\n",
			"sys/fs/cgroup/memory/docker/memory.limit_in_bytes":   "1048576\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes":          "9223372036854771712\n",
		}, Memory{1, 0, mib}, ""},
		"v1, in a container of the host's namespace": {map[string]string{
			"proc/self/cgroup":                           "4:memory:/docker/1\n",
			"proc/self/mountinfo":                        "35 31 0:32 /docker/1 /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes": "1048576\n",
		}, Memory{1, 0, mib}, ""},
		"hybrid, memory in v1": {map[string]string{
			"proc/self/cgroup":                              "4:memory:/fn\n0::/fn\n",
			"proc/self/mountinfo":                           mountV1 + mountHybrid,
			"sys/fs/cgroup/memory/fn/memory.limit_in_bytes": "1048576\n",
			"sys/fs/cgroup/unified/fn/memory.max":           "4096\n",
		}, Memory{1, 0, mib}, ""},
		"hybrid, memory in v2": {map[string]string{
			"proc/self/cgroup":                    "5:cpu,cpuacct:/fn\n0::/fn\n",
			"proc/self/mountinfo":                 mountOther + mountHybrid,
			"sys/fs/cgroup/unified/fn/memory.max": "1048576\n",
		}, Memory{2, 0, mib}, ""},
		"a mount point with a space": {map[string]string{
			"proc/self/cgroup":       "0::/\n",
			"proc/self/mountinfo":    `30 24 0:26 / /my\040groups rw - cgroup2 cgroup2 rw` + "\n",
			"my groups/memory.max":   "1048576\n",
			"sys/fs/cgroup/nonsense": "",
		}, Memory{2, 0, mib}, ""},
		"the mount that shows more ancestors": {map[string]string{
			"proc/self/cgroup":                "0::/pod/fn\n",
			"proc/self/mountinfo":             "31 24 0:26 /pod/fn /mnt/own rw - cgroup2 c rw\n" + mountV2,
			"mnt/own/memory.max":              "2097152\n",
			"sys/fs/cgroup/pod/fn/memory.max": "2097152\n",
			"sys/fs/cgroup/pod/memory.max":    "1048576\n",
		}, Memory{2, 0, mib}, ""},
		"no cgroups": {map[string]string{
			"proc/self/cgroup":    "",
			"proc/self/mountinfo": "1 1 0:1 / / rw - ext4 /dev/sda rw\n",
		}, Memory{}, ""},
		"junk everywhere": {map[string]string{
			"proc/self/cgroup":    "::\n\x00\xff:::\nmemory\n",
			"proc/self/mountinfo": " - \n - cgroup2\ncgroup2 - cgroup2 cgroup2\n",
		}, Memory{}, ""},
		"no proc": {map[string]string{"x": ""}, Memory{}, "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ReadMemory(tree(t, c.files))
			if got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
			if (err == nil) != (c.err == "") || (err != nil && !strings.Contains(err.Error(), c.err)) {
				t.Errorf("error: got %v, want one with %q", err, c.err)
			}
		})
	}
}

func TestReadMemoryOfThisMachine(t *testing.T) {
	if _, err := ReadMemory("/"); err != nil && !os.IsNotExist(err) {
		t.Errorf("got %v", err)
	}
}

// FuzzParse is FuzzReadMemory without files, which tries some thousand times as much.
func FuzzParse(f *testing.F) {
	f.Add("0::/fn\n4:memory:/docker/1\n", mountV2+mountV1, "1048576")
	f.Add("0::/../x\n", mountHybrid, "max")
	f.Fuzz(func(t *testing.T, rawOwn, rawMounts, limit string) {
		own, _ := parseOwn([]byte(rawOwn))
		mounts, _ := parseMounts([]byte(rawMounts))
		for _, path := range []string{own.v1, own.v2} {
			if path == "" {
				continue
			}
			for _, is := range []func(mount) bool{mount.isMemoryV1, mount.isV2} {
				m, inside, ok := locate(mounts, path, is)
				if ok && (!is(m) || !strings.HasPrefix(inside, "/") || strings.HasPrefix(filepath.Clean(inside), "/..")) {
					t.Errorf("%q in %q: got %q in %+v", path, rawMounts, inside, m)
				}
			}
		}
		if value, ok := parseLimit(limit); value < 0 || value >= unlimited || (!ok && value != 0) {
			t.Errorf("%q: got %d, %v", limit, value, ok)
		}
	})
}

func FuzzReadMemory(f *testing.F) {
	f.Add("0::/fn\n", mountV2, "1048576")
	f.Add("4:memory:/fn\n", mountV1, "max")
	f.Fuzz(func(t *testing.T, own, mounts, limit string) {
		root := tree(t, map[string]string{
			"proc/self/cgroup": own, "proc/self/mountinfo": mounts,
			"sys/fs/cgroup/memory.max": limit, "sys/fs/cgroup/memory/memory.limit_in_bytes": limit,
		})
		got, _ := ReadMemory(root)
		if got.Max < 0 || got.High < 0 || got.Max >= unlimited {
			t.Errorf("got %+v", got)
		}
	})
}

func BenchmarkReadMemory(b *testing.B) {
	for b.Loop() {
		_, _ = ReadMemory("/")
	}
}
