"""Build the programs that are measured: workloads of this folder, and releases of public tools.

Each comes with its symbols (`-w`), as layerkit links; `strip_symbols` gives the file that ships. A
build is kept under bench/work by the digest of its sources, flags and Go release.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from layerkit.formats.elf import parse_elf, strip_symbols

BENCH = Path(__file__).resolve().parent
WORK = BENCH / "work"
WORKLOADS = BENCH / "workloads"
GO = "go1.26.8"
FLAGS = ["-trimpath", "-buildvcs=false", "-ldflags=-w -buildid="]
EDITS = {  # the rows of issue 4: name -> old and new workload
    "base -> a_literal": ("base", "a_literal"),
    "base -> b_logline": ("base", "b_logline"),
    "base -> c1_base64": ("base", "c1_base64"),
    "base -> c2_template": ("base", "c2_template"),
    "zerolog 1.33.0 -> 1.34.0": ("d_zerolog_1.33.0", "d_zerolog_1.34.0"),
    "zerolog 1.34.0 -> 1.35.1": ("d_zerolog_1.34.0", "d_zerolog_1.35.1"),
    "base -> f2": ("base", "f2"),
}
ISSUE = {name for pair in EDITS.values() for name in pair}
TOOLS = {  # chosen before anything was measured: module, package, old and new release
    "crane": ("github.com/google/go-containerregistry", "./cmd/crane", "v0.22.0", "v0.22.1"),
    "goimports": ("golang.org/x/tools", "./cmd/goimports", "v0.51.0", "v0.52.0"),
    "oras": ("oras.land/oras", "./cmd/oras", "v1.3.5", "v1.3.6"),
    "shfmt": ("mvdan.cc/sh/v3", "./cmd/shfmt", "v3.14.0", "v3.14.1"),
    "staticcheck": ("honnef.co/go/tools", "./cmd/staticcheck", "v0.8.1", "v0.8.2"),
    "yq": ("github.com/mikefarah/yq/v4", ".", "v4.54.1", "v4.54.2"),
}


@dataclass(frozen=True)
class Built:
    """A binary with its symbols, and as it ships."""

    name: str
    path: Path

    @cached_property
    def named(self) -> bytes:
        return self.path.read_bytes()

    @cached_property
    def binary(self) -> bytes:
        return strip_symbols(parse_elf(self.named))


def others() -> list[str]:
    """The other functions: every workload that is not in issue 4's list."""
    return sorted(p.name for p in WORKLOADS.iterdir() if p.is_dir() and p.name not in ISSUE)


def environment(arch: str = "amd64") -> dict[str, str]:
    return os.environ | {"CGO_ENABLED": "0", "GOTOOLCHAIN": GO, "GOOS": "linux", "GOARCH": arch}


def build_workload(name: str, arch: str = "amd64") -> Built:
    """Build bench/workloads/NAME in a folder called `fn`, as an edit of one function would be."""
    source = WORKLOADS / name
    key = hashlib.sha256(f"{GO} {FLAGS}{'' if arch == 'amd64' else ' ' + arch}".encode())
    for path in sorted(source.iterdir()):
        key.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    target = WORK / "built" / key.hexdigest()[:24] / "binary"
    if not target.exists():
        folder = WORK / "src" / name / "fn"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder)
        _go_build(folder, ".", target, arch)
    return Built(name, target)


def build_release(module: str, package: str, version: str) -> Built:
    """Build a package of a module from the proxy, as its own main module."""
    key = hashlib.sha256(f"{GO} {FLAGS} {module} {package} {version}".encode())
    target = WORK / "built" / key.hexdigest()[:24] / "binary"
    if not target.exists():
        argv = ["go", "mod", "download", "-json", f"{module}@{version}"]
        (WORK / "src").mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            argv, env=environment(), cwd=WORK / "src", check=True, capture_output=True
        )
        folder = WORK / "src" / "release"
        if folder.exists():
            shutil.rmtree(folder)
        shutil.copytree(json.loads(done.stdout)["Dir"], folder, copy_function=shutil.copyfile)
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        _go_build(folder, package, target)
    return Built(f"{module} {version}", target)


def _go_build(folder: Path, package: str, target: Path, arch: str = "amd64") -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_suffix(".part")
    argv = ["nice", "go", "build", *FLAGS, "-o", str(temporary), package]
    subprocess.run(argv, cwd=folder, env=environment(arch), check=True)
    temporary.rename(target)
