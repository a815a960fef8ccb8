"""Compile the kernel (layerkit/native/*.c) with Zig's C compiler from the `ziglang` wheel.

A hatchling build hook (pyproject.toml), so that `pip install` needs nothing but Python. Where it
cannot compile, the install goes on and says so: layerkit then takes its plain Python ways.

    python tools/build_kernel.py         compile into the source tree, with an installed ziglang
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run by hand
    BuildHookInterface = object  # type: ignore[assignment,misc]

MACHINES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}
# No C library: nothing is asked of it, so one shared object serves glibc and musl
FLAGS = ["-shared", "-fPIC", "-ffreestanding", "-nostdlib", "-fvisibility=hidden"]
FLAGS += ["-std=c11", "-O3", "-g0", "-Wall", "-Wextra", "-Werror"]
SHARED_OBJECT = "layerkit/native/_kernel.so"


def target() -> tuple[str, str] | None:
    """Zig's name of this platform, and the wheel's tag; None where there is no kernel."""
    machine = MACHINES.get(platform.machine().lower())
    if sys.platform != "linux" or machine is None or sys.maxsize < 1 << 32:
        return None
    return f"{machine}-linux-gnu", f"py3-none-manylinux_2_17_{machine}.musllinux_1_1_{machine}"


def compile_kernel(root: Path) -> str | None:
    """Compile; returns the wheel's tag, or None after saying why there is no kernel."""
    found = target()
    if found is None:
        say(f"no kernel for {sys.platform} {platform.machine()}: plain Python will be used")
        return None
    zig_target, tag = found
    place = root / SHARED_OBJECT
    sources = sorted(str(path) for path in (root / "layerkit/native").glob("*.c"))
    with tempfile.TemporaryDirectory(prefix="layerkit-zig-") as scratch:
        made = Path(scratch) / place.name
        argv = [sys.executable, "-m", "ziglang", "cc", "-target", zig_target, *FLAGS]
        env = os.environ | {"ZIG_GLOBAL_CACHE_DIR": scratch, "ZIG_LOCAL_CACHE_DIR": scratch}
        try:
            done = subprocess.run(
                [*argv, "-o", str(made), *sources], env=env, capture_output=True, text=True
            )
        except OSError as exc:
            done = subprocess.CompletedProcess(argv, 1, "", str(exc))
        if done.returncode or not made.exists():
            say("the kernel did not compile: plain Python will be used")
            say("\n".join(done.stderr.strip().splitlines()[-8:]))
            place.unlink(missing_ok=True)  # one of older sources must not stay
            return None
        # a new file and a rename: who loads it meanwhile finds the old one or the new one, whole
        fresh = place.with_suffix(f".{os.getpid()}")
        fresh.write_bytes(made.read_bytes())
        fresh.replace(place)
    return tag


def say(text: str) -> None:
    print(f"build_kernel: {text}", file=sys.stderr)


class KernelHook(BuildHookInterface):  # type: ignore[misc,type-arg,unused-ignore]
    """What hatchling calls before it packs a wheel or makes an editable install."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        tag = compile_kernel(Path(self.root))
        if tag is None:
            return
        build_data["pure_python"] = False
        build_data["tag"] = tag
        build_data["artifacts"].append(SHARED_OBJECT)


if __name__ == "__main__":
    sys.exit(compile_kernel(Path(__file__).parent.parent) is None)
