"""Functions under limits of cgroup v2, in a virtual machine: who is killed, who is slowed down, and
what Go itself knows of its processors there."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "bench"))
QUOTA = {"cpu.max": "200000 100000"}  # two of the machine's four processors
pytestmark = [pytest.mark.go, pytest.mark.slow]


@pytest.fixture(scope="module")
def machine(go_toolchain: Path) -> ModuleType:
    vm = importlib.import_module("vm")
    if why := vm.missing():
        pytest.skip(why)
    return vm


def build(go: Path, program: str, binary: Path, toolchain: str = "") -> Path:
    env = os.environ | {"CGO_ENABLED": "0", "GOFLAGS": ""}
    if toolchain:
        env |= {"GOTOOLCHAIN": toolchain}
    argv = [go, "build", "-trimpath", "-o", binary, f"./{program}"]
    done = subprocess.run(argv, cwd=ROOT / "bench/runtime", env=env, capture_output=True, text=True)
    if toolchain and "toolchain not available" in done.stderr:
        pytest.skip(f"{toolchain} is not to be had")
    assert done.returncode == 0, done.stderr
    return binary


@pytest.fixture(scope="module")
def limited(
    go_toolchain: Path, machine: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """The cases of bench/vm.py: a large live heap under load."""
    folder = tmp_path_factory.mktemp("vm")
    init = build(go_toolchain, "vm", folder / "init")
    heap = build(go_toolchain, "heap", folder / "heap")
    return machine.run_cases(init, {"heap": heap}, machine.limit_cases(), folder)


def test_memory_max_kills_go_and_not_us(limited: dict[str, Any]) -> None:
    ours, bare = limited["memory.max, layerkit"], limited["memory.max, Go's defaults"]
    assert (bare["status"], bare["events"]["oom_kill"]) == (-9, 1)
    assert (ours["status"], ours["events"]["oom_kill"]) == (0, 0)
    assert ours["printed"]["limit"] < 0.9 * 400e6 + 4096


def test_memory_high_slows_go_down_and_not_us(limited: dict[str, Any]) -> None:
    ours, bare = limited["memory.high, layerkit"], limited["memory.high, Go's defaults"]
    assert bare["events"]["high"] > 20
    assert ours["status"] == 0
    assert ours["events"]["high"] <= bare["events"]["high"] / 10


def test_an_ancestors_limit_counts(limited: dict[str, Any]) -> None:
    ours = limited["memory.max of the parent, layerkit"]
    assert ours["status"] == 0
    assert ours["printed"]["limit"] == limited["memory.max, layerkit"]["printed"]["limit"]


def test_a_limit_is_found_where_only_the_own_cgroup_is_mounted(limited: dict[str, Any]) -> None:
    ours = limited["memory.max, own cgroup mounted, layerkit"]
    assert ours["printed"]["limit"] == limited["memory.max, layerkit"]["printed"]["limit"]


@pytest.mark.parametrize(
    ("release", "parent", "mounted"),
    [("go1.25.4", 4, 4), ("go1.26.8", 4, 2), ("go1.27.1", 4, 2)],
)
def test_what_go_knows_of_its_processors(
    release: str,
    parent: int,
    mounted: int,
    go_toolchain: Path,
    machine: ModuleType,
    tmp_path: Path,
) -> None:
    """GOMAXPROCS is Go's own. It does not see a parent's quota (golang/go#81180, open), and before
    1.26 none where only the own cgroup is mounted (golang/go#76390). When a number here changes,
    docs/functions.md has to."""
    init = build(go_toolchain, "vm", tmp_path / "init", release)
    argv = ["/init", "procs"]
    cases = [
        machine.Case("own", [QUOTA], argv),
        machine.Case("parent", [QUOTA, {}], argv),
        machine.Case("mounted", [QUOTA], argv, bind=True),
        machine.Case("parent, by hand", [QUOTA, {}], argv, ["GOMAXPROCS=2"]),
    ]
    found = machine.run_cases(init, {}, cases, tmp_path)
    got = {name: one["printed"]["gomaxprocs"] for name, one in found.items()}
    assert got == {"own": 2, "parent": parent, "mounted": mounted, "parent, by hand": 2}
    assert {one["printed"]["go"] for one in found.values()} == {release}


def test_an_initrd_is_what_the_kernel_unpacks(tmp_path: Path) -> None:
    vm = importlib.import_module("vm")
    raw = vm.make_initrd({"init": b"x" * 5, "a": b""})
    assert raw[:6] == b"070701" and len(raw) % 4 == 0
    assert raw.count(b"TRAILER!!!\0") == 1
    assert raw[110:115] == b"init\0"
    assert int(raw[54:62], 16) == 5
