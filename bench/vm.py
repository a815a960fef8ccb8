"""A virtual machine with cgroup v2, for what the host's cgroups cannot show: behaviour, not time.

Needs qemu-system-x86_64 on PATH and a Linux kernel for it, LAYERKIT_TEST_KERNEL=.../vmlinuz or one
in /boot, 5.19 or newer (memory.peak). On Debian:

    apt-get install --no-install-recommends qemu-system-x86
    apt-get download linux-image-6.1.0-54-cloud-amd64 && dpkg -x linux-image-*.deb kernel

The machine is emulated (tcg), so it needs no /dev/kvm, and its clock says little.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MEMORY = 1536  # MiB of the machine
PROCESSORS = 4
PATIENCE = 900  # seconds for all cases
END = "layerkit-vm: end"


@dataclass(frozen=True)
class Case:
    """A program in nested cgroups, outermost first: what is written into the files of each."""

    name: str
    groups: Sequence[Mapping[str, str]]
    argv: Sequence[str]
    environment: Sequence[str] = ()
    seconds: float = 120.0  # until it is killed
    bind: bool = False  # it sees the innermost cgroup only, as in a container without a namespace


def limit_cases() -> list[Case]:
    """The large live heap of bench/functions.py at an eighth of its scale: 313 MB (2.5 GB) alive
    under limits of 400 MB (3.2 GB), and requests that allocate."""
    limit = "400000000"
    argv = ["/heap", "-live", "298", "-rate", "200", "-garbage", "64", "-seconds", "20"]
    brief = ["/heap", "-live", "1", "-seconds", "1"]
    plain = ["LAYERKIT_RUNTIME=off"]
    return [
        Case("memory.max, layerkit", [{"memory.max": limit}], argv),
        Case("memory.max, Go's defaults", [{"memory.max": limit}], argv, plain),
        Case("memory.high, layerkit", [{"memory.high": limit}], argv),
        Case("memory.high, Go's defaults", [{"memory.high": limit}], argv, plain),
        Case("memory.max of the parent, layerkit", [{"memory.max": limit}, {}], argv),
        Case("memory.max, own cgroup mounted, layerkit", [{"memory.max": limit}], brief, bind=True),
    ]


def find_kernel() -> Path | None:
    named = os.environ.get("LAYERKIT_TEST_KERNEL")
    if named:
        return Path(named)
    return max(Path("/boot").glob("vmlinuz-*"), default=None)


def missing() -> str:
    """What is not there that the machine needs; empty when all is."""
    if shutil.which("qemu-system-x86_64") is None:
        return "no qemu-system-x86_64 on PATH"
    if find_kernel() is None:
        return "no Linux kernel: LAYERKIT_TEST_KERNEL names none, /boot has none"
    return ""


def make_initrd(files: Mapping[str, bytes]) -> bytes:
    """An archive of executable files for the kernel to unpack: cpio, "newc".
    Spec: Documentation/driver-api/early-userspace/buffer-format.rst of Linux."""
    parts = []
    for number, (name, data) in enumerate([*files.items(), ("TRAILER!!!", b"")], 1):
        mode = 0 if name == "TRAILER!!!" else 0o100755
        path = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
        head = b"070701" + b"".join(b"%08x" % field for field in fields)
        parts += [_padded(head + path), _padded(data)]
    return b"".join(parts)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % struct.calcsize("I"))


def run_cases(
    init: Path, programs: Mapping[str, Path], cases: Sequence[Case], folder: Path
) -> dict[str, Any]:
    """What became of each case, by its name: `status` (-9: killed), `late`, `events` and `peak` of
    its outermost cgroup, and what the program printed, read as JSON, as `printed`.

    Args: `init` is the program of bench/runtime/vm; programs lie at `/NAME` in the machine.
    """
    kernel = find_kernel()
    assert kernel is not None, missing()
    files = {"init": init.read_bytes(), "cases.json": json.dumps(list(map(asdict, cases))).encode()}
    files |= {name: path.read_bytes() for name, path in programs.items()}
    initrd = folder / "initrd"
    initrd.write_bytes(make_initrd(files))
    argv = ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-m", str(MEMORY)]
    argv += ["-smp", str(PROCESSORS), "-nographic", "-no-reboot", "-nic", "none"]
    argv += ["-kernel", str(kernel), "-initrd", str(initrd)]
    argv += ["-append", "console=ttyS0 quiet panic=-1"]
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE, check=True
    )
    lines = done.stdout.decode(errors="replace").replace("\r", "").splitlines()
    if END not in lines:
        raise RuntimeError("the machine did not end well: " + "\n".join(lines[-20:]))
    found = {}
    for line in lines:
        if line.startswith("{"):
            one = json.loads(line)
            one["printed"] = json.loads(one["stdout"]) if one["stdout"] else {}
            found[one["name"]] = one
    if set(found) != {one.name for one in cases}:
        raise RuntimeError("the machine left cases out: " + "\n".join(lines[-20:]))
    return found
